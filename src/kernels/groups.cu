// Activations: groups of 1x128. Half a warp takes a group; a thread takes eight elements of it.

#include "common.cuh"

namespace {

constexpr int kGroupsAtOnce = 4;

// Largest of a value over half a warp.
__device__ uint32_t half_warp_max(uint32_t value) {
#pragma unroll
  for (int step = kChunks / 2; step > 0; step /= 2) value = max(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}

// Writes the scale of a group, by one of its threads; zeros in the padding.
__device__ void store_scale(const Header &h, const Matrix &m, uint32_t row, uint32_t group, float scale, bool exists) {
  if (h.format == kPacked) {
    uint8_t *at = exponent_at(m, 0, row, group);
    if (at != nullptr) *at = exists ? to_bits(scale) >> 23 : 0;
    return;
  }
  const int64_t index = row * m.scale_row + group * m.scale_column;
  if (index < m.scale_limit) static_cast<float *>(m.scales)[index] = exists ? scale : 0.0f;
}

// The scalings of a half warp's groups, each made by one thread: thread i of the half warp has that of group i. Of one
// group, every thread has it.
template <class T, int kPasses>
__device__ Scaling own_scaling(const Header &h, const Chunk<T> (&chunks)[kPasses]) {
  const uint32_t own = threadIdx.x % kChunks;
  uint32_t amax = 0, largest = 0;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const uint32_t of_group = half_warp_max(chunks[i].amax());
    largest = max(largest, of_group);
    if (own == i || kPasses == 1) amax = of_group;
  }
  const bool finite = !__any_sync(0xFFFFFFFFu, largest >= T::kInfinityBits);
  if (!finite) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const uint32_t of_group = half_warp_max(chunks[i].finite_amax());
      if (own == i || kPasses == 1) amax = of_group;
    }
  }
  const Scaling scaling = make_scaling(T::to_float(amax), h.floor, h.recipe, h.format);
  return finite ? scaling : without_short_division(scaling);
}

// `kPasses` groups for each half warp, four neighboring groups of as many rows as there are, all loaded before the first is
// used.
// `kWhole`: all of them exist and are aligned.
template <class T, int kThreads, int kPasses, bool kWhole>
__device__ void quantize_tile(const Header &h, const Matrix &m, uint32_t quad, uint32_t first_row) {
  using Bits = typename T::Bits;
  constexpr int kHalfWarps = kThreads / kChunks, kRowsAtOnce = kHalfWarps / kGroupsAtOnce;
  const uint32_t groups = (m.columns + kBlock - 1) / kBlock, quads = (groups + kGroupsAtOnce - 1) / kGroupsAtOnce;
  const uint32_t half_warp = threadIdx.x / kChunks, chunk_column = threadIdx.x % kChunks * kChunk;
  const uint32_t group = quad * kGroupsAtOnce + half_warp % kGroupsAtOnce;
  const uint32_t first = first_row + half_warp / kGroupsAtOnce;
  const uint32_t column = group * kBlock + chunk_column;
  const int count = kWhole ? kChunk : max(0, min(kChunk, int(m.columns) - int(column)));
  Chunk<T> chunks[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const uint32_t row = first + i * kRowsAtOnce;
    const Bits *source = static_cast<const Bits *>(m.source) + row * m.source_stride + column;
    if constexpr (kWhole) {
      chunks[i].load_aligned(source);
    } else {
      chunks[i].load_some(source, row < m.rows ? count : 0);
    }
  }
  Scaling own{};
  if (h.rule != kGiven) {
    own = own_scaling(h, chunks);
    // The thread that made a scale stores it.
    const uint32_t pass = threadIdx.x % kChunks, row = first + pass * kRowsAtOnce;
    const uint32_t stored_groups = h.format == kPacked ? quads * kGroupsAtOnce : groups;
    if (pass < kPasses && row < m.rows + m.padding && group < stored_groups) {
      store_scale(h, m, row, group, own.scale, row < m.rows && group < groups);
    }
    if (h.rule == kScalesOnly) return;
  }
  Health health;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const uint32_t row = first + i * kRowsAtOnce;
    const bool exists = kWhole || (row < m.rows && group < groups);
    Scaling scaling = own;
    if (h.rule != kGiven && kPasses > 1) {
      scaling.scale = __shfl_sync(0xFFFFFFFFu, own.scale, i, kChunks);
      scaling.factor = __shfl_sync(0xFFFFFFFFu, own.factor, i, kChunks);
    } else if (h.rule == kGiven && exists) {
      scaling = given_scaling(read_scale(m, h.format, 0, row, row, group));
    }
    if (!kWhole && (!exists || count == 0)) continue;
    const uint2 eight = encode_chunk(chunks[i], scaling);
    uint8_t *to = m.codes + row * m.codes_stride + column;
    if constexpr (kWhole) {
      store_aligned(to, eight);
    } else {
      store_some(to, eight, count);
    }
    if (h.health != nullptr) health.examine(chunks[i], eight, scaling, h.rule == kGiven, count);
  }
  if (h.health != nullptr) health.add_to(h.health);
}

template <class T, int kThreads, int kPasses>
__device__ void quantize_groups(const Header &h, const Matrix &m) {
  constexpr uint32_t kRows = kThreads / kChunks / kGroupsAtOnce * kPasses;
  constexpr uint32_t kColumns = kGroupsAtOnce * kBlock;
  const uint32_t quads = (m.columns + kColumns - 1) / kColumns;
  const uint32_t quad = blockIdx.x % quads, first_row = blockIdx.x / quads * kRows;
  release_consumer();
  wait_for_producer();
  if (m.aligned && first_row + kRows <= m.rows && (quad + 1) * kColumns <= m.columns) {
    quantize_tile<T, kThreads, kPasses, true>(h, m, quad, first_row);
  } else {
    quantize_tile<T, kThreads, kPasses, false>(h, m, quad, first_row);
  }
}

}  // namespace

#define QUANTIZE_GROUPS(name, type)                                                                            \
  extern "C" __global__ void __launch_bounds__(64)                                                             \
      quantize_groups_##name##_small(const __grid_constant__ Arguments<1> a) {                                 \
    quantize_groups<type, 64, 1>(a.header, a.matrices[0]);                                                     \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256)                                                            \
      quantize_groups_##name##_large(const __grid_constant__ Arguments<1> a) {                                 \
    quantize_groups<type, 256, 4>(a.header, a.matrices[0]);                                                    \
  }

QUANTIZE_GROUPS(bf16, Bf16)
QUANTIZE_GROUPS(f16, F16)
QUANTIZE_GROUPS(f32, F32)
