// Scales of groups: half a warp takes a group, a thread takes eight elements of it.
#pragma once

#include "common.cuh"

// Largest of a value over half a warp.
__device__ inline uint32_t largest_of_half_warp(uint32_t value) {
#pragma unroll
  for (int step = kChunks / 2; step > 0; step /= 2) value = max(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}

// Writes the scale of a group, by one of its threads; zeros in the padding.
__device__ inline void write_scale(const Header &h, const Matrix &m, uint32_t row, uint32_t group, float scale,
                                   bool exists) {
  if (h.format == kPacked) {
    uint8_t *at = exponent_at(m, 0, row, group);
    if (at != nullptr) *at = exists ? to_bits(scale) >> 23 : 0;
    return;
  }
  const int64_t index = row * m.scale_row + group * m.scale_column;
  if (index < m.scale_limit) static_cast<float *>(m.scales)[index] = exists ? scale : 0.0f;
}

// The scalings of a half warp's groups, each made by one thread: thread i of the half warp has that of group i. Of one
// group, every thread has it. All threads of the warp must call it.
template <class T, int kPasses>
__device__ inline Scaling scaling_of_groups(const Header &h, const Chunk<T> (&chunks)[kPasses]) {
  const uint32_t own = threadIdx.x % kChunks;
  uint32_t amax = 0, largest = 0;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const uint32_t of_group = largest_of_half_warp(chunks[i].amax());
    largest = max(largest, of_group);
    if (own == i || kPasses == 1) amax = of_group;
  }
  const bool finite = !__any_sync(0xFFFFFFFFu, largest >= T::kInfinityBits);
  if (!finite) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const uint32_t of_group = largest_of_half_warp(chunks[i].finite_amax());
      if (own == i || kPasses == 1) amax = of_group;
    }
  }
  return make_scaling(T::to_float(amax), h.floor, h.recipe, h.format);
}
