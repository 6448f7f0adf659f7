// A kernel that does nothing, with as many bytes of parameters as asked, to see what a launch alone costs.

#ifndef FP8RT_BENCH_EMPTY_KERNEL_HPP
#define FP8RT_BENCH_EMPTY_KERNEL_HPP

#include <cstddef>

// Of these sizes there is one each.
constexpr std::size_t kEmptyKernelBytes[] = {8, 160, 192, 1024, 4000};
// As much as the quantizer that fp8rt_linear launches takes.
constexpr std::size_t kQuantizerBytes = 192;

// The kernel's symbol for the CUDA runtime; NULL for a size that there is none of.
extern "C" const void *fp8rt_empty_kernel(std::size_t parameter_bytes);

// One with the parameters of DeepGEMM's kernel: two pointers, three numbers, four tensor maps.
constexpr std::size_t kProductParameters[] = {8, 8, 4, 4, 4, 128, 128, 128, 128};
extern "C" const void *fp8rt_empty_product();

#endif  // FP8RT_BENCH_EMPTY_KERNEL_HPP
