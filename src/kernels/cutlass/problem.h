// The C interface of CUTLASS's kernels: from a product to what a launch of one of them passes. The same layout as
// src/kernels/cutlass.rs: both assert the sizes.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// y[m, n] = x[m, k] . w[n, k]^T. All extents are at least 1. Codes of both operands lie in rows whose strides are
// multiples of 16, y in rows whose stride in bytes is; any extent will do. Addresses are 16-byte aligned, those of the
// scales of the weight 4-byte.
struct fp8rt_cutlass_problem {
  const uint8_t *codes;
  const float *scales;  // of groups of 128, one column after the other
  const uint8_t *weight;
  const float *weight_scales;  // of blocks of 128 x 128, row-major and packed
  void *output;
  int64_t codes_stride, weight_stride, output_stride;  // between rows, in elements
  int64_t scales_stride;                               // between columns: a multiple of 4, at least readable_rows
  uint32_t m, n, k;
  uint32_t readable_rows;    // of codes and scales, at least m; those from m on hold anything
  uint32_t multiprocessors;  // of the device
  uint32_t order;            // in which tiles are taken: FP8RT_CUTLASS_...
  uint32_t swizzle;          // tiles that are taken side by side across that order: 1, 2, 4 or 8
  uint32_t reserved;
};

enum {
  FP8RT_CUTLASS_HEURISTIC = 0,      // along the fewer tiles
  FP8RT_CUTLASS_ALONG_ROWS = 1,     // of one column of y after the other
  FP8RT_CUTLASS_ALONG_COLUMNS = 2,  // of one row of y after the other
};

struct fp8rt_cutlass_launch {
  uint32_t grid[3], cluster[3];
  uint32_t threads, shared_bytes;
  uint32_t parameter_bytes;  // of the kernel's one parameter
  uint32_t stages;           // of its pipeline, for a person
};

// Results. A positive one is what the driver said of a tensor map.
enum {
  FP8RT_CUTLASS_OK = 0,
  FP8RT_CUTLASS_EXTENT = -1,     // one is 0 or too large, or does not fit this kernel
  FP8RT_CUTLASS_STRIDE = -2,     // one is no multiple of 16 bytes, or too small
  FP8RT_CUTLASS_ALIGNMENT = -3,  // of an address
};

// Of any kernel.
enum {
  FP8RT_CUTLASS_PARAMETER_ALIGNMENT = 128,
  FP8RT_CUTLASS_MOST_PARAMETERS = 2560,
};

// One such function for each kernel, named like it. `encode` is cuTensorMapEncodeTiled. `parameters` is aligned as
// above and has room for `parameter_bytes`. Without a problem only the sizes of the launch are given, not the grid.
typedef int32_t fp8rt_cutlass_fill(const struct fp8rt_cutlass_problem *problem, const void *encode, void *parameters,
                                   struct fp8rt_cutlass_launch *launch);

#ifdef __cplusplus
}
static_assert(sizeof(fp8rt_cutlass_problem) == 104 && sizeof(fp8rt_cutlass_launch) == 40, "as in cutlass.rs");
#endif
