// Ownership over the CUDA runtime: memory, streams, events, graphs. Every failure is an exception that names the call.

#ifndef FP8RT_TEST_CUDA_HPP
#define FP8RT_TEST_CUDA_HPP

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace fp8rt_test {

// The device that all tests but those of several devices run on.
constexpr int kDevice = 0;

inline void cuda_check(cudaError_t error, const char *call) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
  }
}

#define CUDA(call) ::fp8rt_test::cuda_check((call), #call)

// Number of GPUs that this process may use, and why there are none.
inline std::pair<int, std::string> count_devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return {0, cudaGetErrorString(error)};
  }
  return {count, count == 0 ? "no device is visible" : ""};
}

inline int current_device() {
  int device = -1;
  CUDA(cudaGetDevice(&device));
  return device;
}

// Makes a device current for as long as it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) { CUDA(cudaSetDevice(device)); }
  CurrentDevice(const CurrentDevice &) = delete;
  CurrentDevice &operator=(const CurrentDevice &) = delete;
  ~CurrentDevice() { cudaSetDevice(before_); }

 private:
  int before_ = current_device();
};

// Device memory of the current device. Copies from and to the host are complete when they return.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::size_t bytes) : bytes_(bytes) {
    void *data = nullptr;
    CUDA(cudaMalloc(&data, bytes == 0 ? 1 : bytes));
    data_.reset(static_cast<std::uint8_t *>(data));
  }

  std::uint8_t *data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

  // The device-wide wait is for streams that do not wait for the default one.
  void upload(const void *from, std::size_t bytes, std::size_t offset = 0) {
    CUDA(cudaMemcpy(data() + offset, from, bytes, cudaMemcpyHostToDevice));
    CUDA(cudaDeviceSynchronize());
  }
  void download(void *to, std::size_t bytes, std::size_t offset = 0) const {
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(to, data() + offset, bytes, cudaMemcpyDeviceToHost));
  }
  void fill(std::uint8_t byte) {
    CUDA(cudaMemset(data(), byte, bytes_));
    CUDA(cudaDeviceSynchronize());
  }

 private:
  struct Free {
    void operator()(std::uint8_t *data) const { cudaFree(data); }
  };
  std::size_t bytes_ = 0;
  std::unique_ptr<std::uint8_t, Free> data_;
};

// Page-locked host memory.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t bytes) : bytes_(bytes) {
    void *data = nullptr;
    CUDA(cudaMallocHost(&data, bytes == 0 ? 1 : bytes));
    data_.reset(static_cast<std::uint8_t *>(data));
  }

  std::uint8_t *data() const { return data_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::uint8_t *data) const { cudaFreeHost(data); }
  };
  std::size_t bytes_;
  std::unique_ptr<std::uint8_t, Free> data_;
};

// A stream that does not wait for the default one, so that a launch on the wrong stream shows.
class Stream {
 public:
  Stream() { CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }
  void synchronize() const { CUDA(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { CUDA(cudaEventCreate(&event_)); }
  Event(const Event &) = delete;
  Event &operator=(const Event &) = delete;
  ~Event() { cudaEventDestroy(event_); }

  cudaEvent_t get() const { return event_; }
  void record(const Stream &stream) const { CUDA(cudaEventRecord(event_, stream.get())); }
  double microseconds_since(const Event &begin) const {
    float milliseconds = 0;
    CUDA(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
    return milliseconds * 1e3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// What `record` enqueues on a stream, captured to be replayed.
class Graph {
 public:
  template <typename Record>
  Graph(const Stream &stream, Record record) {
    CUDA(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    record();
    cudaGraph_t graph = nullptr;
    CUDA(cudaStreamEndCapture(stream.get(), &graph));
    CUDA(cudaGraphGetNodes(graph, nullptr, &nodes_));
    const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    cuda_check(error, "cudaGraphInstantiate");
  }
  Graph(const Graph &) = delete;
  Graph &operator=(const Graph &) = delete;
  ~Graph() { cudaGraphExecDestroy(executable_); }

  std::size_t nodes() const { return nodes_; }
  void launch(const Stream &stream) const { CUDA(cudaGraphLaunch(executable_, stream.get())); }

 private:
  std::size_t nodes_ = 0;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_CUDA_HPP
