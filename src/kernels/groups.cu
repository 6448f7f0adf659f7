// Activations: groups of 1x128. Half a warp takes a group; a thread takes eight elements of it.

#include "scaling.cuh"

namespace {

constexpr int kGroupsAtOnce = 4;

// This thread's place: eight columns of a group, in rows `first`, first + kRowsAtOnce, ...
template <class T>
struct Cursor {
  uint32_t group, column, first;

  __device__ Cursor(uint32_t quad, uint32_t first_row) {
    const uint32_t half_warp = threadIdx.x / kChunks;
    group = quad * kGroupsAtOnce + half_warp % kGroupsAtOnce;
    column = group * kBlock + threadIdx.x % kChunks * kChunk;
    first = first_row + half_warp / kGroupsAtOnce;
  }

  __device__ const typename T::Bits *source(const Matrix &m, uint32_t row) const {
    return static_cast<const typename T::Bits *>(m.source) + row * m.source_stride + column;
  }
};

// `kPasses` groups for each half warp, four neighboring groups of as many rows as there are. All exist and are aligned; all
// are loaded before the first is used.
template <class T, int kRowsAtOnce, int kPasses>
__device__ void quantize_whole(const Header &h, const Matrix &m, uint32_t quad, uint32_t first_row) {
  const Cursor<T> cursor(quad, first_row);
  Chunk<T> chunks[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) chunks[i].load_aligned(cursor.source(m, cursor.first + i * kRowsAtOnce));
  const Scaling own = scaling_of_groups(h, chunks);
  // The thread that made a scale stores it.
  const uint32_t pass = threadIdx.x % kChunks;
  if (pass < kPasses) *scale_at(m, 0, cursor.first + pass * kRowsAtOnce, cursor.group) = own.scale;
  uint8_t *codes = m.codes + cursor.first * m.codes_stride + cursor.column;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    Scaling scaling = own;
    if (kPasses > 1) {
      scaling.scale = __shfl_sync(0xFFFFFFFFu, own.scale, i, kChunks);
      scaling.factor = __shfl_sync(0xFFFFFFFFu, own.factor, i, kChunks);
    }
    store_aligned(codes + i * kRowsAtOnce * m.codes_stride, encode_chunk(chunks[i], scaling));
  }
}

// One row of any kind, by any rule, padding included. `kVectors`: aligned, and of whole chunks.
template <class T, bool kGeneral, bool kVectors>
__device__ void quantize_any(const Header &h, const Matrix &m, const Cursor<T> &cursor, uint32_t row, Health &health) {
  const uint32_t groups = (m.columns + kBlock - 1) / kBlock;
  const bool exists = row < m.rows && cursor.group < groups;
  const bool given = kGeneral && h.rule == kGiven;
  const int count = exists ? max(0, min(kChunk, int(m.columns) - int(cursor.column))) : 0;
  Chunk<T> chunks[1];
  load<kVectors>(chunks[0], cursor.source(m, row), count);
  Scaling scaling{};
  if (!given) {
    scaling = scaling_of_groups(h, chunks);
    const uint32_t stored_groups = h.format == kPacked ? (groups + 3) / 4 * 4 : groups;
    const bool stored = row < m.rows + m.padding && cursor.group < stored_groups;
    if (threadIdx.x % kChunks == 0 && stored) write_scale(h, m, row, cursor.group, scaling.scale, exists);
    if (kGeneral && h.rule == kScalesOnly) return;
  } else if (exists) {
    scaling = given_scaling(read_scale(m, h.format, 0, row, row, cursor.group));
  }
  if (count == 0) return;
  const uint2 eight = encode_chunk(chunks[0], scaling);
  store<kVectors>(m.codes + row * m.codes_stride + cursor.column, eight, count);
  if (kGeneral && h.health != nullptr) health.examine(chunks[0], eight, scaling, given, count);
}

// The weight of the linear that this activation is for. L2 may have it before the activation exists: asking changes nothing
// that can be seen, so it needs no wait.
__device__ void ask_for_weight(const Ahead &a) {
#if __CUDA_ARCH__ >= 900
  if (blockIdx.x >= a.blocks) return;
  // Asking for each line of 128 bytes was no faster.
  constexpr uint32_t kStep = 256;
  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x, threads = a.blocks * blockDim.x;
  auto ask = [](const uint8_t *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); };
  for (uint32_t i = thread; i * kStep < a.scale_bytes; i += threads) ask(a.scales + i * kStep);
  const uint32_t steps = (a.bytes + kStep - 1) / kStep;
  for (uint32_t i = thread; i < a.rows * steps; i += threads) ask(a.weight + i / steps * a.stride + i % steps * kStep);
#endif
}

// As `quantize_groups` in its other form, a row a thread block; the weight is asked for while the input is being made.
template <class T>
__device__ void quantize_ahead(const AheadArguments &a) {
  constexpr uint32_t kColumns = kGroupsAtOnce * kBlock;
  const Matrix &m = a.matrix;
  const uint32_t quads = (m.columns + kColumns - 1) / kColumns;
  const uint32_t quad = blockIdx.x % quads, row = blockIdx.x / quads;
  release_consumer();
  ask_for_weight(a.ahead);
  if (row >= m.rows + m.padding) return;
  wait_for_producer();
  if (m.aligned && row < m.rows && (quad + 1) * kColumns <= m.columns) {
    quantize_whole<T, 1, 1>(a.header, m, quad, row);
    return;
  }
  Health health;
  const Cursor<T> cursor(quad, row);
  if (m.aligned && m.columns % kChunk == 0) {
    quantize_any<T, false, true>(a.header, m, cursor, row, health);
  } else {
    quantize_any<T, false, false>(a.header, m, cursor, row, health);
  }
}

// `kGeneral` takes every rule, packed scales and health; the other form computes float scales and codes alone.
template <class T, int kThreads, int kPasses, bool kGeneral>
__device__ void quantize_groups(const Header &h, const Matrix &m) {
  constexpr uint32_t kRowsAtOnce = kThreads / kChunks / kGroupsAtOnce, kRows = kRowsAtOnce * kPasses;
  constexpr uint32_t kColumns = kGroupsAtOnce * kBlock;
  const uint32_t quads = (m.columns + kColumns - 1) / kColumns;
  const uint32_t quad = blockIdx.x % quads, first_row = blockIdx.x / quads * kRows;
  release_consumer();
  wait_for_producer();
  if (!kGeneral && m.aligned && first_row + kRows <= m.rows && (quad + 1) * kColumns <= m.columns) {
    quantize_whole<T, kRowsAtOnce, kPasses>(h, m, quad, first_row);
    return;
  }
  Health health;
  const Cursor<T> cursor(quad, first_row);
  const bool vectors = m.aligned && m.columns % kChunk == 0;
#pragma unroll 1
  for (int i = 0; i < kPasses; ++i) {
    const uint32_t row = cursor.first + i * kRowsAtOnce;
    if (vectors) {
      quantize_any<T, kGeneral, true>(h, m, cursor, row, health);
    } else {
      quantize_any<T, kGeneral, false>(h, m, cursor, row, health);
    }
  }
  if (kGeneral && h.health != nullptr) health.add_to(h.health);
}

}  // namespace

#define KERNEL(name, threads, resident) \
  extern "C" __global__ void __launch_bounds__(threads, resident) name(const __grid_constant__ Arguments<1> a)

// Few rows are spread over the chip; many are taken in strides that keep more loads in flight.
#define QUANTIZE_GROUPS(name, type, resident)                                                                       \
  KERNEL(quantize_groups_##name##_small, 64, 1) { quantize_groups<type, 64, 1, false>(a.header, a.matrices[0]); }         \
  KERNEL(quantize_groups_##name##_medium, 256, 1) { quantize_groups<type, 256, 1, false>(a.header, a.matrices[0]); }      \
  KERNEL(quantize_groups_##name##_large, 256, resident) { quantize_groups<type, 256, 4, false>(a.header, a.matrices[0]); } \
  KERNEL(quantize_groups_##name##_general, 256, 1) { quantize_groups<type, 256, 4, true>(a.header, a.matrices[0]); }

// Beside a thread block of DeepGEMM's kernel there is room for one of these: 64 threads of 32 registers.
#define QUANTIZE_AHEAD(name, type)                                          \
  extern "C" __global__ void __launch_bounds__(64, 32)                      \
      quantize_groups_##name##_ahead(const __grid_constant__ AheadArguments a) { \
    quantize_ahead<type>(a);                                                \
  }

QUANTIZE_AHEAD(bf16, Bf16)
QUANTIZE_AHEAD(f16, F16)
QUANTIZE_AHEAD(f32, F32)

QUANTIZE_GROUPS(bf16, Bf16, 5)
QUANTIZE_GROUPS(f16, F16, 5)
QUANTIZE_GROUPS(f32, F32, 3)
