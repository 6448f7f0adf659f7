// Weights: blocks of 128x128, one pass over the source. A thread block holds a whole block of the weight in registers, so
// its amax is known before any of it is rounded. Thread blocks walk over the tiles of all matrices of the launch.

#include "common.cuh"

constexpr int kThreads = 512;
constexpr int kRowsAtOnce = kThreads / kChunks;
constexpr int kPasses = kBlock / kRowsAtOnce;
constexpr int kWarps = kThreads / 32;

namespace {

// Where a tile lies.
struct Tile {
  uint32_t expert, band, group;
  uint32_t first_row, rows, columns;  // of the part of the block that exists
};

__device__ const Matrix &find(const Matrix *matrices, uint32_t count, uint32_t tile) {
  uint32_t low = 0, high = count;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (matrices[middle].first_tile <= tile) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return matrices[low];
}

__device__ Tile place(const Matrix &m, uint32_t tile) {
  const uint32_t bands = (m.rows + kBlock - 1) / kBlock, groups = (m.columns + kBlock - 1) / kBlock;
  uint32_t local = tile - m.first_tile;
  Tile t;
  t.group = local % groups;
  local /= groups;
  t.band = local % bands;
  t.expert = local / bands;
  t.first_row = t.band * kBlock;
  t.rows = min(m.rows - t.first_row, uint32_t(kBlock));
  t.columns = min(m.columns - t.group * kBlock, uint32_t(kBlock));
  return t;
}

// Largest of a value over the thread block. `shared` has a word for each warp, and is not reused before the next barrier.
__device__ uint32_t block_max(uint32_t value, uint32_t *shared) {
  value = __reduce_max_sync(0xFFFFFFFFu, value);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  uint32_t largest = shared[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) largest = max(largest, shared[i]);
  return largest;
}

// The scale of the tile in every row's word, the missing groups and the padding rows as zeros.
__device__ void store_packed(const Matrix &m, const Tile &t, float scale) {
  const uint32_t groups = (m.columns + kBlock - 1) / kBlock;
  const bool last_band = t.first_row + t.rows == m.rows, last_group = t.group + 1 == groups;
  const uint32_t rows = t.rows + (last_band ? m.padding : 0);
  for (uint32_t row = threadIdx.x; row < rows; row += kThreads) {
    const uint32_t exponent = row < t.rows ? to_bits(scale) >> 23 : 0;
    uint8_t *at = exponent_at(m, t.expert, t.first_row + row, t.group);
    if (at == nullptr) continue;
    *at = exponent;
    if (last_group) {
      for (uint32_t missing = t.group % 4 + 1; missing < 4; ++missing) *++at = 0;
    }
  }
}

// `kGeneral` takes every rule, packed scales and health. The other form, which refits use, computes float scales and codes
// alone, and needs half of the registers.
// `kWhole`: the tile has all of its 128x128 elements, and they are aligned.
template <class T, bool kGeneral, bool kWhole>
__device__ void quantize_tile(const Header &h, const Matrix &m, const Tile &t, uint32_t *shared, Health &health) {
  using Bits = typename T::Bits;
  const uint32_t chunk_column = threadIdx.x % kChunks * kChunk, first = threadIdx.x / kChunks;
  const int count = kWhole ? kChunk : max(0, min(kChunk, int(t.columns) - int(chunk_column)));
  const uint32_t column = t.group * kBlock + chunk_column;
  const Bits *source = static_cast<const Bits *>(m.source) + t.expert * m.source_expert +
                       (t.first_row + first) * m.source_stride + column;
  Chunk<T> chunks[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const Bits *from = source + i * kRowsAtOnce * m.source_stride;
    if constexpr (kWhole) {
      chunks[i].load_aligned(from);
    } else {
      chunks[i].load_some(from, first + i * kRowsAtOnce < t.rows ? count : 0);
    }
  }
  Scaling scaling;
  const bool given = kGeneral && h.rule == kGiven;
  if (!given) {
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) amax = max(amax, chunks[i].amax());
    amax = block_max(amax, shared);
    const bool finite = amax < T::kInfinityBits;
    if (!finite) {
      amax = 0;
#pragma unroll
      for (int i = 0; i < kPasses; ++i) amax = max(amax, chunks[i].finite_amax());
      amax = block_max(amax, shared + kWarps);
    }
    scaling = make_scaling(T::to_float(amax), h.floor, h.recipe, h.format);
    if (!finite) scaling = without_short_division(scaling);
    if (kGeneral && h.format == kPacked) {
      store_packed(m, t, scaling.scale);
    } else if (threadIdx.x == 0) {
      *scale_at(m, t.expert, t.band, t.group) = scaling.scale;
    }
    if (kGeneral && h.rule == kScalesOnly) return;
  } else if (h.format != kPacked) {
    scaling = given_scaling(*scale_at(m, t.expert, t.band, t.group));
  }
  uint8_t *codes = m.codes + t.expert * m.codes_expert + (t.first_row + first) * m.codes_stride + column;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const uint32_t row = first + i * kRowsAtOnce;
    if (!kWhole && (row >= t.rows || count == 0)) continue;
    if (given && h.format == kPacked) {
      scaling = given_scaling(read_scale(m, kPacked, t.expert, t.band, t.first_row + row, t.group));
    }
    const uint2 eight = encode_chunk(chunks[i], scaling);
    uint8_t *to = codes + i * kRowsAtOnce * m.codes_stride;
    if constexpr (kWhole) {
      store_aligned(to, eight);
    } else {
      store_some(to, eight, count);
    }
    if (kGeneral && h.health != nullptr) health.examine(chunks[i], eight, scaling, given, count);
  }
}

template <class T, bool kGeneral>
__device__ void quantize_blocks(const Header &h, const Matrix *matrices) {
  __shared__ uint32_t shared[2][2 * kWarps];
  release_consumer();
  wait_for_producer();
  Health health;
  uint32_t turn = 0;
  for (uint32_t tile = blockIdx.x; tile < h.tiles; tile += gridDim.x, turn ^= 1) {
    const Matrix &m = find(matrices, h.count, tile);
    const Tile t = place(m, tile);
    if (m.aligned && t.rows == kBlock && t.columns == kBlock) {
      quantize_tile<T, kGeneral, true>(h, m, t, shared[turn], health);
    } else {
      quantize_tile<T, kGeneral, false>(h, m, t, shared[turn], health);
    }
  }
  if (kGeneral && h.health != nullptr) health.add_to(h.health);
}

}  // namespace

#define KERNEL(name, blocks_of_a_processor, parameter) \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks_of_a_processor) name(const __grid_constant__ parameter a)

// Four matrices with the launch, many with it, or a table in device memory. 16-bit types: three thread blocks a
// multiprocessor keep 96 KiB of loads in flight.
#define QUANTIZE_BLOCKS(name, type, resident)                                                                       \
  KERNEL(quantize_blocks_##name##_few, resident, Arguments<4>) { quantize_blocks<type, false>(a.header, a.matrices); }    \
  KERNEL(quantize_blocks_##name##_many, resident, Arguments<240>) { quantize_blocks<type, false>(a.header, a.matrices); } \
  KERNEL(quantize_blocks_##name##_table, resident, Header) { quantize_blocks<type, false>(a, a.table); }                  \
  KERNEL(quantize_blocks_##name##_general, 1, Arguments<240>) { quantize_blocks<type, true>(a.header, a.matrices); }      \
  KERNEL(quantize_blocks_##name##_general_table, 1, Header) { quantize_blocks<type, true>(a, a.table); }

QUANTIZE_BLOCKS(bf16, Bf16, 3)
QUANTIZE_BLOCKS(f16, F16, 3)
QUANTIZE_BLOCKS(f32, F32, 2)
