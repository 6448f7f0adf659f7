// Weights: blocks of 128x128, one pass over the source. A thread block holds a whole block of the weight in registers, so
// its amax is known before any of it is rounded. One thread block a tile: the hardware balances matrices of every size.

#include "tiles.cuh"

constexpr int kThreads = 256;
constexpr int kRowsAtOnce = kThreads / kChunks;
constexpr int kPasses = kBlock / kRowsAtOnce;
constexpr int kWarps = kThreads / 32;

namespace {

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

// Scaling of the tile from its amax, stored where it belongs.
template <class T, bool kGeneral>
__device__ Scaling make_and_store(const Header &h, const Matrix &m, const Tile &t, uint32_t amax) {
  const Scaling scaling = make_scaling(T::to_float(amax), h.floor, h.recipe, h.format);
  if (kGeneral && h.format == kPacked) {
    store_packed(m, t, scaling.scale);
  } else if (threadIdx.x == 0) {
    *scale_at(m, t.expert, t.band, t.group) = scaling.scale;
  }
  return scaling;
}

// Where this thread begins in a tile: rows `first`, first + kRowsAtOnce, ..., eight columns from `column` on.
template <class T>
struct Cursor {
  const typename T::Bits *source;
  uint8_t *codes;
  uint32_t first, column;

  __device__ Cursor(const Matrix &m, const Tile &t) {
    first = threadIdx.x / kChunks, column = threadIdx.x % kChunks * kChunk;
    const int64_t row = t.first_row + first, at = t.group * kBlock + column;
    source = static_cast<const typename T::Bits *>(m.source) + t.expert * m.source_expert + row * m.source_stride + at;
    codes = m.codes + t.expert * m.codes_expert + row * m.codes_stride + at;
  }
};

// A tile with all of its 128x128 elements, aligned: read once, held in registers.
template <class T, bool kCounted>
__device__ void quantize_whole(const Header &h, const Matrix &m, const Tile &t, uint32_t *shared, Health &health) {
  const Cursor<T> cursor(m, t);
  Chunk<T> chunks[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) chunks[i].load_aligned(cursor.source + i * kRowsAtOnce * m.source_stride);
  uint32_t amax = 0;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) amax = max(amax, chunks[i].amax());
  amax = block_max(amax, shared);
  if (amax >= T::kInfinityBits) {
    amax = 0;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) amax = max(amax, chunks[i].finite_amax());
    amax = block_max(amax, shared + kWarps);
  }
  const Scaling scaling = make_and_store<T, kCounted>(h, m, t, amax);
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const uint2 eight = encode_chunk(chunks[i], scaling);
    store_aligned(cursor.codes + i * kRowsAtOnce * m.codes_stride, eight);
    if (kCounted) health.examine(chunks[i], eight, scaling, false, kChunk);
  }
}

// Any tile, by any rule: the second look at the source finds it in the cache. `kVectors`: aligned, and of whole chunks.
template <class T, bool kGeneral, bool kVectors>
__device__ void quantize_any(const Header &h, const Matrix &m, const Tile &t, uint32_t *shared, Health &health) {
  const Cursor<T> cursor(m, t);
  const int count = max(0, min(kChunk, int(t.columns) - int(cursor.column)));
  const bool given = kGeneral && h.rule == kGiven;
  Chunk<T> chunk;
  Scaling scaling{};
  if (!given) {
    uint32_t amax = 0;
#pragma unroll 1
    for (uint32_t row = cursor.first; row < t.rows; row += kRowsAtOnce) {
      load<kVectors>(chunk, cursor.source + (row - cursor.first) * m.source_stride, count);
      amax = max(amax, chunk.amax());
    }
    amax = block_max(amax, shared);
    if (amax >= T::kInfinityBits) {
      amax = 0;
#pragma unroll 1
      for (uint32_t row = cursor.first; row < t.rows; row += kRowsAtOnce) {
        load<kVectors>(chunk, cursor.source + (row - cursor.first) * m.source_stride, count);
        amax = max(amax, chunk.finite_amax());
      }
      amax = block_max(amax, shared + kWarps);
    }
    scaling = make_and_store<T, kGeneral>(h, m, t, amax);
    if (kGeneral && h.rule == kScalesOnly) return;
  } else if (h.format != kPacked) {
    scaling = given_scaling(*scale_at(m, t.expert, t.band, t.group));
  }
  if (count == 0) return;
#pragma unroll 1
  for (uint32_t row = cursor.first; row < t.rows; row += kRowsAtOnce) {
    if (given && h.format == kPacked) {
      scaling = given_scaling(read_scale(m, kPacked, t.expert, t.band, t.first_row + row, t.group));
    }
    load<kVectors>(chunk, cursor.source + (row - cursor.first) * m.source_stride, count);
    const uint2 eight = encode_chunk(chunk, scaling);
    store<kVectors>(cursor.codes + (row - cursor.first) * m.codes_stride, eight, count);
    if (kGeneral && h.health != nullptr) health.examine(chunk, eight, scaling, given, count);
  }
}

template <class T, bool kGeneral>
__device__ void quantize_tile(const Header &h, const Matrix &m, const Tile &t, uint32_t *shared, Health &health) {
  const bool whole = m.aligned && t.rows == kBlock && t.columns == kBlock;
  if (whole && (!kGeneral || (h.rule == kCompute && h.health != nullptr))) {
    quantize_whole<T, kGeneral>(h, m, t, shared, health);
  } else if (kGeneral && m.aligned && t.columns % kChunk == 0) {
    quantize_any<T, kGeneral, true>(h, m, t, shared, health);
  } else {
    quantize_any<T, kGeneral, false>(h, m, t, shared, health);
  }
}

// `kGeneral` takes every rule, packed scales and health. The other form, which refits use, computes float scales and codes
// alone, and needs half of the registers. `kTable`: the matrices lie in device memory.
template <class T, bool kGeneral, bool kTable = false>
__device__ void quantize_blocks(const Header &h, const Matrix *matrices) {
  __shared__ uint32_t shared[2][2 * kWarps];
  release_consumer();
  wait_for_producer();
  Health health;
  uint32_t turn = 0;
  for (uint32_t tile = blockIdx.x; tile < h.tiles; tile += gridDim.x, turn ^= 1) {
    const Matrix &found = find(matrices, h.count, tile);
    if constexpr (kTable) {
      // A copy: a table in device memory could change under our own stores, for all that the compiler knows.
      const Matrix m = found;
      quantize_tile<T, kGeneral>(h, m, place(m, tile), shared[turn], health);
    } else {
      quantize_tile<T, kGeneral>(h, found, place(found, tile), shared[turn], health);
    }
  }
  if (kGeneral && h.health != nullptr) health.add_to(h.health);
}

}  // namespace

#define KERNEL(name, blocks_of_a_processor, parameter) \
  extern "C" __global__ void __launch_bounds__(kThreads, blocks_of_a_processor) name(const __grid_constant__ parameter a)

// Four matrices with the launch, many with it, or a table in device memory. 16-bit types: four thread blocks a
// multiprocessor keep 128 KiB of loads in flight.
#define QUANTIZE_BLOCKS(name, type, resident)                                                                       \
  KERNEL(quantize_blocks_##name##_few, resident, Arguments<4>) { quantize_blocks<type, false>(a.header, a.matrices); }    \
  KERNEL(quantize_blocks_##name##_many, resident, Arguments<240>) { quantize_blocks<type, false>(a.header, a.matrices); } \
  KERNEL(quantize_blocks_##name##_table, resident, Header) { quantize_blocks<type, false, true>(a, a.table); }                  \
  KERNEL(quantize_blocks_##name##_general, 2, Arguments<240>) { quantize_blocks<type, true>(a.header, a.matrices); }      \
  KERNEL(quantize_blocks_##name##_general_table, 2, Header) { quantize_blocks<type, true, true>(a, a.table); }

QUANTIZE_BLOCKS(bf16, Bf16, 4)
QUANTIZE_BLOCKS(f16, F16, 4)
QUANTIZE_BLOCKS(f32, F32, 2)
