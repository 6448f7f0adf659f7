// cuLaunchKernelEx of an empty kernel, with nothing around it.

#ifndef FP8RT_BENCH_BARE_LAUNCH_HPP
#define FP8RT_BENCH_BARE_LAUNCH_HPP

#include <cuda.h>

#include <vector>

#include "cuda.hpp"
#include "empty_kernel.hpp"

namespace fp8rt_bench {

// A function of the driver, which is not linked.
template <typename Function>
Function *driver_function(const char *name) {
  void *entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  CUDA(cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found));
  if (entry == nullptr) {
    throw std::runtime_error(std::string("the driver has no ") + name);
  }
  return reinterpret_cast<Function *>(entry);
}

class BareLaunch {
 public:
  // `kernel` is a symbol for the CUDA runtime, and takes parameters of so many bytes each.
  BareLaunch(const fp8rt_test::Stream &stream, const void *kernel, const std::vector<std::size_t> &parameter_bytes)
      : launch_(driver_function<decltype(cuLaunchKernelEx)>("cuLaunchKernelEx")) {
    CUDA(cudaGetFuncBySymbol(&function_, kernel));
    for (const std::size_t bytes : parameter_bytes) {
      values_.emplace_back(bytes);
      parameters_.push_back(values_.back().data());
    }
    config_.gridDimX = config_.gridDimY = config_.gridDimZ = 1;
    config_.blockDimX = 32;
    config_.blockDimY = config_.blockDimZ = 1;
    config_.hStream = stream.get();
  }
  BareLaunch(const fp8rt_test::Stream &stream, std::size_t parameter_bytes)
      : BareLaunch(stream, fp8rt_empty_kernel(parameter_bytes), {parameter_bytes}) {}
  BareLaunch(const BareLaunch &) = delete;
  BareLaunch &operator=(const BareLaunch &) = delete;

  // The kernel may begin before the one before it has ended, as those of this library may.
  void allow_early_start() {
    early_start_.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    early_start_.value.programmaticStreamSerializationAllowed = 1;
    config_.attrs = &early_start_;
    config_.numAttrs = 1;
  }

  void operator()() {
    if (launch_(&config_, function_, parameters_.data(), nullptr) != CUDA_SUCCESS) {
      throw std::runtime_error("cuLaunchKernelEx failed");
    }
  }

 private:
  std::vector<std::vector<char>> values_;
  std::vector<void *> parameters_;
  cudaFunction_t function_ = nullptr;
  decltype(cuLaunchKernelEx) *launch_;
  CUlaunchAttribute early_start_{};
  CUlaunchConfig config_{};
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_BARE_LAUNCH_HPP
