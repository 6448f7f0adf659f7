// cuLaunchKernelEx of an empty kernel, with nothing around it.

#ifndef FP8RT_BENCH_BARE_LAUNCH_HPP
#define FP8RT_BENCH_BARE_LAUNCH_HPP

#include <cuda.h>

#include <vector>

#include "cuda.hpp"
#include "empty_kernel.hpp"

namespace fp8rt_bench {

class BareLaunch {
 public:
  BareLaunch(const fp8rt_test::Stream &stream, std::size_t parameter_bytes) : bytes_(parameter_bytes) {
    CUDA(cudaGetFuncBySymbol(&function_, fp8rt_empty_kernel(parameter_bytes)));
    void *entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA(cudaGetDriverEntryPointByVersion("cuLaunchKernelEx", &entry, 12000, cudaEnableDefault, &found));
    launch_ = reinterpret_cast<Launch>(entry);
    config_.gridDimX = config_.gridDimY = config_.gridDimZ = 1;
    config_.blockDimX = 32;
    config_.blockDimY = config_.blockDimZ = 1;
    config_.hStream = stream.get();
  }

  void operator()() {
    void *parameters[] = {bytes_.data()};
    if (launch_(&config_, function_, parameters, nullptr) != CUDA_SUCCESS) {
      throw std::runtime_error("cuLaunchKernelEx failed");
    }
  }

 private:
  using Launch = CUresult (*)(const CUlaunchConfig *, CUfunction, void **, void **);

  std::vector<char> bytes_;
  cudaFunction_t function_ = nullptr;
  Launch launch_ = nullptr;
  CUlaunchConfig config_{};
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_BARE_LAUNCH_HPP
