// What a program with CUDA code of its own has: contexts, memory, streams. Made through the fake driver, which these
// tests link; it is one library with what fp8rt opens.

#ifndef FP8RT_TEST_CALLER_HPP
#define FP8RT_TEST_CALLER_HPP

#include <gtest/gtest.h>

#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "calls.hpp"
#include "fake_cuda.h"
#include "fp8rt.hpp"

namespace kernels {
#include "arguments.cuh"
}

namespace fp8rt_test {

inline void cuda(CUresult result) {
  if (result != CUDA_SUCCESS) throw std::runtime_error("the test's own CUDA call fails with " + std::to_string(result));
}

// The primary context of a device, retained for as long as the program runs, as torch does.
inline CUcontext primary(int device) {
  static CUcontext contexts[FAKE_CUDA_DEVICES] = {};
  if (contexts[device] == nullptr) {
    cuda(cuInit(0));
    cuda(cuDevicePrimaryCtxRetain(&contexts[device], device));
  }
  return contexts[device];
}

inline CUcontext current_context() {
  CUcontext context = nullptr;
  cuda(cuCtxGetCurrent(&context));
  return context;
}

// A device is current for as long as this lives; -1: nothing changes.
class Current {
 public:
  explicit Current(int device) : pushed_(device >= 0) {
    if (pushed_) cuda(cuCtxPushCurrent(primary(device)));
  }
  Current(const Current &) = delete;
  Current &operator=(const Current &) = delete;
  ~Current() {
    if (pushed_) cuCtxPopCurrent(nullptr);
  }

 private:
  bool pushed_;
};

// Memory of a device; device -1: pinned host memory.
class Memory {
 public:
  Memory(int device, std::uint64_t bytes) : device_(device), bytes_(std::max<std::uint64_t>(bytes, 1)) {
    const Current current(device < 0 ? 0 : device);
    if (device < 0) {
      cuda(cuMemAllocHost(&data_, bytes_));
    } else {
      CUdeviceptr pointer = 0;
      cuda(cuMemAlloc(&pointer, bytes_));
      data_ = reinterpret_cast<void *>(pointer);
    }
  }
  Memory(Memory &&other) noexcept
      : device_(other.device_), bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  ~Memory() {
    if (data_ == nullptr) return;
    const Current current(device_ < 0 ? 0 : device_);
    if (device_ < 0) {
      cuMemFreeHost(data_);
    } else {
      cuMemFree(address());
    }
  }

  int device() const { return device_; }
  std::uint64_t bytes() const { return bytes_; }
  void *data() const { return data_; }
  std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(data_); }

 private:
  int device_;
  std::uint64_t bytes_;
  void *data_ = nullptr;
};

class Stream {
 public:
  explicit Stream(int device) {
    const Current current(device);
    cuda(cuStreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
  }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  ~Stream() { cuStreamDestroy(stream_); }

  CUstream get() const { return stream_; }

 private:
  CUstream stream_ = nullptr;
};

// A stream is in a graph capture for as long as this lives.
class Capture {
 public:
  explicit Capture(const Stream &stream) : stream_(stream.get()) { fake_cuda_set_capturing(stream_, 1); }
  Capture(const Capture &) = delete;
  Capture &operator=(const Capture &) = delete;
  ~Capture() { fake_cuda_set_capturing(stream_, 0); }

 private:
  CUstream stream_;
};

inline fp8rt::Context gpu_context(int device) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.device = device;
  desc.num_threads = 1;
  return fp8rt::Context(desc);
}

inline std::vector<fake_cuda_call> recorded() {
  std::size_t count = 0;
  const fake_cuda_call *calls = fake_cuda_calls(&count);
  return {calls, calls + count};
}

inline std::vector<fake_cuda_launch> launches() {
  std::vector<fake_cuda_launch> found;
  for (const fake_cuda_call &call : recorded()) {
    if (call.launch.kernel != nullptr) found.push_back(call.launch);
  }
  return found;
}

// Nothing but what a prepared call may do: look at contexts and captures, encode tensor maps, launch.
inline ::testing::AssertionResult only_light_calls() {
  const std::vector<std::string> light = {"cuCtxGetCurrent", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2",
                                          "cuCtxSetCurrent", "cuCtxGetDevice", "cuStreamIsCapturing",
                                          "cuStreamGetCaptureInfo_v2", "cuStreamGetCaptureInfo_v3",
                                          "cuTensorMapEncodeTiled", "cuLaunchKernelEx"};
  for (const fake_cuda_call &call : recorded()) {
    if (std::find(light.begin(), light.end(), call.function) == light.end()) {
      return ::testing::AssertionFailure() << call.function << " is called";
    }
  }
  return ::testing::AssertionSuccess();
}

// No call was a mistake, whatever became of its error.
inline ::testing::AssertionResult no_violations() {
  for (const fake_cuda_call &call : recorded()) {
    if (call.violation != nullptr) return ::testing::AssertionFailure() << call.function << ": " << call.violation;
  }
  return ::testing::AssertionSuccess();
}

// A struct at the beginning of the parameters of a launch.
template <class T>
T parameters(const fake_cuda_launch &launch, std::size_t offset = 0) {
  T value{};
  if (offset + sizeof(T) > launch.parameter_bytes) throw std::runtime_error("the launch has fewer parameters");
  std::memcpy(&value, launch.parameters + offset, sizeof value);
  return value;
}

// The matrices that a launch of a quantizing kernel passes.
inline std::vector<kernels::Matrix> matrices(const fake_cuda_launch &launch) {
  const auto header = parameters<kernels::Header>(launch);
  std::vector<kernels::Matrix> found;
  for (std::uint32_t i = 0; i < std::max(header.count, 1u); ++i) {
    found.push_back(parameters<kernels::Matrix>(launch, sizeof header + i * sizeof(kernels::Matrix)));
  }
  return found;
}

inline const char *kernel_dtype(std::uint32_t dtype) {
  return dtype == FP8RT_DTYPE_BF16 ? "bf16" : dtype == FP8RT_DTYPE_F16 ? "f16" : "f32";
}

// Operands of one of the eight functions, in device memory.
class Operands {
 public:
  Operands(int device, const Function &function, std::uint32_t dtype, std::int64_t rows, std::int64_t columns)
      : values_(device, static_cast<std::uint64_t>(rows * columns) * element_bytes(dtype)),
        codes_(device, static_cast<std::uint64_t>(rows * columns)),
        scales_(device, layout(function, rows, columns).bytes),
        health_(device, sizeof(fp8rt_health)),
        function_(function) {
    values = fp8rt::tensor(values_.data(), static_cast<fp8rt_dtype>(dtype), {rows, columns});
    codes = fp8rt::tensor(codes_.data(), FP8RT_DTYPE_E4M3, {rows, columns});
    scales = layout(function, rows, columns);
    scales.data = scales_.data();
    values.device = codes.device = scales.device = device;
  }

  Pointers pointers(const fp8rt::Context &context, const Stream &stream) const {
    Pointers p;
    p.context = context.get();
    p.values = &values;
    p.codes = function_.has_codes() ? &codes : nullptr;
    p.scales = &scales;
    p.stream = stream.get();
    return p;
  }

  fp8rt_status run(const fp8rt::Context &context, const Stream &stream) const {
    return call(function_, pointers(context, stream));
  }

  fp8rt_health *health() const { return static_cast<fp8rt_health *>(health_.data()); }

  fp8rt_tensor values{}, codes{}, scales{};

 private:
  static fp8rt_tensor layout(const Function &function, std::int64_t rows, std::int64_t columns) {
    fp8rt_tensor scales{};
    fp8rt::check(function.activation ? fp8rt_activation_scales_layout(nullptr, FP8RT_SCALE_LAYOUT_COLUMN_MAJOR, rows,
                                                                      columns, &scales)
                                     : fp8rt_weight_scales_layout(nullptr, 0, rows, columns, &scales));
    return scales;
  }

  Memory values_, codes_, scales_, health_;
  Function function_;
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_CALLER_HPP
