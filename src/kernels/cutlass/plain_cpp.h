// Lets a plain C++ compiler read CUTLASS's headers as the host's half of nvcc does, without CUDA's run-time library.
// Include it before them.
#pragma once

// Before GCC 13 <iostream> leaves an object in each file that needs libstdc++ when the library is loaded.
#include <ostream>
#define _GLIBCXX_IOSTREAM 1
namespace std {
extern ostream cout, cerr;
}

#include <cuda.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <cudaTypedefs.h>
#include <device_launch_parameters.h>

// Fragments of whole warps have types that only nvcc knows. An old version number keeps them out; the right one lets
// all else in.
#define __CUDACC_VER_MAJOR__ 8
#define __CUDACC_VER_MINOR__ 0
#include <cutlass/arch/wmma.h>
#undef __CUDACC_VER_MAJOR__
#undef __CUDACC_VER_MINOR__
#define __CUDACC_VER_MAJOR__ (CUDA_VERSION / 1000)
#define __CUDACC_VER_MINOR__ (CUDA_VERSION % 1000 / 10)

// Functions of the device that the headers name. They have no definition here: the host calls none of them.
void __syncthreads();
void __syncwarp(unsigned mask = ~0u);
void __threadfence();
int __ffs(int value);
int __dp4a(int a, int b, int sum);
unsigned __byte_perm(unsigned a, unsigned b, unsigned selector);
__half2 __hfma2(__half2 a, __half2 b, __half2 c);
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32);
template <class T>
T __shfl_up_sync(unsigned mask, T value, int lanes, int width = 32);
template <class T>
T __shfl_down_sync(unsigned mask, T value, int lanes, int width = 32);
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32);
template <class T>
T atomicAdd(T *address, T value);
template <class T>
T atomicCAS(T *address, T expected, T value);
namespace cutlass::arch {
int SmId();
}

// CUTLASS encodes its tensor maps through this. It succeeds in CUTLASS's eyes, which would print otherwise; `encoding`
// keeps the truth.
namespace fp8rt {

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

struct Encoding {
  EncodeTensorMap encode;
  CUresult result;
};
inline thread_local Encoding encoding;

inline CUresult encode_tensor_map(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                  const cuuint64_t *extents, const cuuint64_t *strides, const cuuint32_t *box,
                                  const cuuint32_t *steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  // Operands come from memory once and are then shared: L2 fetches as much at once as it can.
  constexpr auto kPromotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
  const CUresult result = encoding.encode(map, type, rank, address, extents, strides, box, steps, interleave, swizzle,
                                          kPromotion, fill);
  if (result != CUDA_SUCCESS) encoding.result = result;
  return CUDA_SUCCESS;
}

}  // namespace fp8rt

#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL 1
#define cuTensorMapEncodeTiled fp8rt::encode_tensor_map
