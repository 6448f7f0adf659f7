// Producers of activations: SiLU with a product, and RMS norm. Each writes its values, or quantizes them in the same pass
// without writing them. Half a warp takes a group, a thread takes eight elements of it.

#include "scaling.cuh"

namespace {

constexpr int kGroupsAtOnce = 4;

// What becomes of the values.
enum Target { kValues, kCodes, kCodesAndHealth };

// Eight elements of a row of the output, `count` of which exist.
struct Place {
  uint32_t row, group, column;
  int count;
};

template <bool kWhole>
__device__ Place place_of(const Matrix &m, uint32_t row, uint32_t column) {
  const int existing = row < m.rows ? max(0, min(kChunk, int(m.columns) - int(column))) : 0;
  return {row, column / kBlock, column, kWhole ? kChunk : existing};
}

template <class T, bool kWhole>
__device__ void load_chunk(Chunk<T> &chunk, const typename T::Bits *from, int count, bool aligned) {
  if (kWhole || (aligned && count == kChunk)) {
    chunk.load_aligned(from);
  } else {
    chunk.load_some(from, count);
  }
}

// Keeps the elements as they are stored: a compiler that remembered their float32 values too would run out of registers.
template <class T>
__device__ void pack(Chunk<T> &chunk) {
  constexpr int kWords = sizeof(chunk.bits) / 4;
  uint32_t words[kWords];
  memcpy(words, chunk.bits, sizeof words);
#pragma unroll
  for (int i = 0; i < kWords; ++i) asm volatile("" : "+r"(words[i]));
  memcpy(chunk.bits, words, sizeof words);
}

// As `load_chunk`, of what every row reads again.
template <class T, bool kWhole>
__device__ void load_shared(Chunk<T> &chunk, const typename T::Bits *from, int count) {
  if constexpr (kWhole) {
    constexpr int kVectors = sizeof(chunk.bits) / sizeof(uint4);
    uint4 vectors[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) vectors[i] = __ldg(reinterpret_cast<const uint4 *>(from) + i);
    memcpy(chunk.bits, vectors, sizeof chunk.bits);
  } else {
    chunk.load_some(from, count);
  }
}

template <class T, bool kWhole>
__device__ void store_values(typename T::Bits *to, const Chunk<T> &chunk, int count, bool aligned) {
  if (kWhole || (aligned && count == kChunk)) {
    constexpr int kVectors = sizeof(chunk.bits) / sizeof(uint4);
    uint4 vectors[kVectors];
    memcpy(vectors, chunk.bits, sizeof chunk.bits);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) __stcs(reinterpret_cast<uint4 *>(to) + i, vectors[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) to[i] = chunk.bits[i];
    }
  }
}

template <bool kWhole>
__device__ void store_codes(uint8_t *to, uint2 codes, int count, bool aligned) {
  if (kWhole || (aligned && count == kChunk)) {
    store_aligned(to, codes);
  } else {
    store_some(to, codes, count);
  }
}

// Groups that have a place in the scales.
__device__ uint32_t stored_groups(const Header &h, const Matrix &m) {
  const uint32_t groups = (m.columns + kBlock - 1) / kBlock;
  return h.format == kPacked ? (groups + 3) / 4 * 4 : groups;
}

template <bool kWhole>
__device__ void write_scale_of(const Header &h, const Matrix &m, const Place &place, float scale) {
  if (kWhole) {
    write_scale(h, m, place.row, place.group, scale, true);
  } else if (place.row < m.rows + m.padding && place.group < stored_groups(h, m)) {
    write_scale(h, m, place.row, place.group, scale, place.row < m.rows && place.group * kBlock < m.columns);
  }
}

// Writes the chunks of a thread, whose places `place(pass)` gives.
template <class T, int kPasses, bool kWhole, class PlaceOf>
__device__ void write_values(const Matrix &m, const Chunk<T> (&chunks)[kPasses], PlaceOf place) {
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const Place at = place(i);
    auto *output = reinterpret_cast<typename T::Bits *>(m.codes) + at.row * m.codes_stride + at.column;
    store_values<T, kWhole>(output, chunks[i], at.count, m.aligned != 0);
  }
}

// Quantizes them. Elements that do not exist are zero.
template <class T, int kPasses, bool kWhole, bool kHealth, class PlaceOf>
__device__ void write_codes(const Header &h, const Matrix &m, const Chunk<T> (&chunks)[kPasses], PlaceOf place,
                            Health &health) {
  const Scaling own = scaling_of_groups(h, chunks);
  // The thread that made a scale stores it.
  const uint32_t pass = threadIdx.x % kChunks;
  if (pass < kPasses) write_scale_of<kWhole>(h, m, place(pass), own.scale);
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const Place at = place(i);
    Scaling scaling = own;
    if (kPasses > 1) {
      scaling.scale = __shfl_sync(0xFFFFFFFFu, own.scale, i, kChunks);
      scaling.factor = __shfl_sync(0xFFFFFFFFu, own.factor, i, kChunks);
    }
    const uint2 eight = encode_chunk(chunks[i], scaling);
    store_codes<kWhole>(m.codes + at.row * m.codes_stride + at.column, eight, at.count, m.aligned != 0);
    if (kHealth && at.count > 0) health.examine(chunks[i], eight, scaling, false, at.count);
  }
}

template <class T, int kPasses, Target kTarget, bool kWhole, class PlaceOf>
__device__ void finish(const Header &h, const Matrix &m, const Chunk<T> (&chunks)[kPasses], PlaceOf place,
                       Health &health) {
  if constexpr (kTarget == kValues) {
    write_values<T, kPasses, kWhole>(m, chunks, place);
  } else {
    write_codes<T, kPasses, kWhole, kTarget == kCodesAndHealth>(h, m, chunks, place, health);
  }
}

// g / (1 + exp(-g)), in a form that neither overflows nor loses small results: the divisor lies within [1, 2].
__device__ float silu(float g) {
  const float power = expf(-fabsf(g)), divisor = __fadd_rn(1.0f, power);
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(divisor));
  inverse = __fmaf_rn(__fmaf_rn(-divisor, inverse, 1.0f), inverse, inverse);
  return __fmul_rn(g < 0.0f ? __fmul_rn(g, power) : g, inverse);
}

template <class T>
__device__ void silu_and_mul_chunk(Chunk<T> &gate, const Chunk<T> &up) {
#pragma unroll
  for (int i = 0; i < kChunk; ++i) gate.bits[i] = T::from_float(__fmul_rn(silu(gate.value(i)), up.value(i)));
}

template <class T, int kRowsAtOnce, int kPasses, Target kTarget, bool kWhole>
__device__ void silu_and_mul_rows(const Header &h, const Matrix &m, uint32_t first, uint32_t column, Health &health) {
  const auto place = [&](uint32_t pass) { return place_of<kWhole>(m, first + pass * kRowsAtOnce, column); };
  Chunk<T> gates[kPasses], ups[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const Place at = place(i);
    const auto *from = static_cast<const typename T::Bits *>(m.source) + at.row * m.source_stride + at.column;
    load_chunk<T, kWhole>(gates[i], from, at.count, m.aligned != 0);
    load_chunk<T, kWhole>(ups[i], from + m.columns, at.count, m.aligned != 0);
  }
#pragma unroll
  for (int i = 0; i < kPasses; ++i) silu_and_mul_chunk(gates[i], ups[i]);
  finish<T, kPasses, kTarget, kWhole>(h, m, gates, place, health);
}

// `kPasses` groups for each half warp, four neighboring groups of as many rows as there are.
template <class T, int kThreads, int kPasses, Target kTarget>
__device__ void silu_and_mul(const Header &h, const Matrix &m) {
  constexpr uint32_t kRowsAtOnce = kThreads / kChunks / kGroupsAtOnce, kRows = kRowsAtOnce * kPasses;
  constexpr uint32_t kColumns = kGroupsAtOnce * kBlock;
  const uint32_t quads = (m.columns + kColumns - 1) / kColumns;
  const uint32_t quad = blockIdx.x % quads, first_row = blockIdx.x / quads * kRows;
  const uint32_t half_warp = threadIdx.x / kChunks;
  const uint32_t group = quad * kGroupsAtOnce + half_warp % kGroupsAtOnce;
  const uint32_t column = group * kBlock + threadIdx.x % kChunks * kChunk;
  const uint32_t first = first_row + half_warp / kGroupsAtOnce;
  Health health;
  release_consumer();
  wait_for_producer();
  if (m.aligned && first_row + kRows <= m.rows && (quad + 1) * kColumns <= m.columns) {
    silu_and_mul_rows<T, kRowsAtOnce, kPasses, kTarget, true>(h, m, first, column, health);
  } else {
#pragma unroll 1
    for (int i = 0; i < kPasses; ++i) {
      silu_and_mul_rows<T, 0, 1, kTarget, false>(h, m, first + i * kRowsAtOnce, column, health);
    }
  }
  if (kTarget == kCodesAndHealth) health.add_to(h.health);
}

// The sum over the thread block, of the same bits in every thread. The order depends on the number of threads alone.
__device__ float sum_of_block(float value) {
  __shared__ float of_warps[32];
  const uint32_t lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  if (lane == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = lane < blockDim.x / 32 ? of_warps[lane] : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}

template <class T>
__device__ float sum_of_squares(const Chunk<T> &chunk) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) sum = __fmaf_rn(chunk.value(i), chunk.value(i), sum);
  return sum;
}

// What the values of a row are multiplied by.
__device__ float inverse_norm(float squares, uint32_t columns, float epsilon) {
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, float(columns)), epsilon)));
}

// One row of a norm.
template <class T>
struct NormRow {
  const FusedArguments &a;
  uint32_t row;

  using Bits = typename T::Bits;

  __device__ const Bits *input(uint32_t column) const {
    return static_cast<const Bits *>(a.matrix.source) + row * a.matrix.source_stride + column;
  }

  __device__ Bits *residual(uint32_t column) const {
    return static_cast<Bits *>(a.residual) + row * a.residual_stride + column;
  }

  // Adds the residual, and makes the sum the new one.
  template <bool kWhole>
  __device__ void add(Chunk<T> &chunk, const Chunk<T> &other, const Place &at) const {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) chunk.bits[i] = T::from_float(__fadd_rn(chunk.value(i), other.value(i)));
    store_values<T, kWhole>(residual(at.column), chunk, at.count, a.matrix.aligned != 0);
  }

  template <bool kWhole>
  __device__ void scale(Chunk<T> &chunk, const Place &at, float inverse) const {
    Chunk<T> weight;
    load_shared<T, kWhole>(weight, static_cast<const Bits *>(a.weight) + at.column, at.count);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const Bits bits = T::from_float(__fmul_rn(__fmul_rn(chunk.value(i), inverse), weight.value(i)));
      chunk.bits[i] = kWhole || i < at.count ? bits : 0;
    }
    pack(chunk);
  }
};

// A row that the registers of the thread block hold: aligned, and as long as its threads take.
template <class T, int kPasses, Target kTarget>
__device__ void norm_row(const FusedArguments &a, Health &health) {
  const Matrix &m = a.matrix;
  const NormRow<T> row{a, blockIdx.x};
  const auto place = [&](uint32_t pass) {
    return place_of<true>(m, blockIdx.x, (pass * blockDim.x + threadIdx.x) * kChunk);
  };
  Chunk<T> chunks[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    load_chunk<T, true>(chunks[i], row.input(place(i).column), kChunk, true);
  }
  if (a.residual != nullptr) {
    Chunk<T> others[kPasses];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      load_chunk<T, true>(others[i], row.residual(place(i).column), kChunk, true);
    }
#pragma unroll
    for (int i = 0; i < kPasses; ++i) row.template add<true>(chunks[i], others[i], place(i));
  }
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    pack(chunks[i]);
    squares = __fadd_rn(squares, sum_of_squares(chunks[i]));
    pack(chunks[i]);
  }
  const float inverse = inverse_norm(sum_of_block(squares), m.columns, a.epsilon);
#pragma unroll
  for (int i = 0; i < kPasses; ++i) row.template scale<true>(chunks[i], place(i), inverse);
  finish<T, kPasses, kTarget, true>(a.header, m, chunks, place, health);
}

// A row of any length, read twice. A thread reads again only what it wrote itself. With as many threads, the sum has the
// same order as in `norm_row`: both give the same bits.
template <class T, Target kTarget>
__device__ void norm_long_row(const FusedArguments &a, Health &health) {
  const Matrix &m = a.matrix;
  const NormRow<T> row{a, blockIdx.x};
  const uint32_t columns = (m.columns + 4 * kBlock - 1) / (4 * kBlock) * (4 * kBlock), step = blockDim.x * kChunk;
  float squares = 0.0f;
#pragma unroll 1
  for (uint32_t first = 0; first < columns; first += step) {
    const Place at = place_of<false>(m, blockIdx.x, first + threadIdx.x * kChunk);
    Chunk<T> chunk, other;
    load_chunk<T, false>(chunk, row.input(at.column), at.count, m.aligned != 0);
    if (a.residual != nullptr) {
      load_chunk<T, false>(other, row.residual(at.column), at.count, m.aligned != 0);
      row.template add<false>(chunk, other, at);
    }
    squares = __fadd_rn(squares, sum_of_squares(chunk));
  }
  const float inverse = inverse_norm(sum_of_block(squares), m.columns, a.epsilon);
#pragma unroll 1
  for (uint32_t first = 0; first < columns; first += step) {
    const Place at = place_of<false>(m, blockIdx.x, first + threadIdx.x * kChunk);
    const auto *from = a.residual != nullptr ? row.residual(at.column) : row.input(at.column);
    Chunk<T> chunks[1];
    load_chunk<T, false>(chunks[0], from, at.count, m.aligned != 0);
    row.template scale<false>(chunks[0], at, inverse);
    finish<T, 1, kTarget, false>(a.header, m, chunks, [&](uint32_t) { return at; }, health);
  }
}

// A thread block takes a row; below the last they zero the padding of the scales. `kPasses` 0: a row of any length.
template <class T, int kPasses, Target kTarget>
__device__ void rms_norm(const FusedArguments &a) {
  const Matrix &m = a.matrix;
  release_consumer();
  wait_for_producer();
  if (blockIdx.x >= m.rows) {
    for (uint32_t group = threadIdx.x; group < stored_groups(a.header, m); group += blockDim.x) {
      write_scale(a.header, m, blockIdx.x, group, 0.0f, false);
    }
    return;
  }
  Health health;
  if constexpr (kPasses == 0) {
    norm_long_row<T, kTarget>(a, health);
  } else if (m.aligned && m.columns == blockDim.x * kPasses * kChunk) {
    norm_row<T, kPasses, kTarget>(a, health);
  } else {
    norm_long_row<T, kTarget>(a, health);
  }
  if (kTarget == kCodesAndHealth) health.add_to(a.header.health);
}

}  // namespace

#define KERNEL(name, threads, resident) \
  extern "C" __global__ void __launch_bounds__(threads, resident) name(const __grid_constant__ FusedArguments a)

#define SILU_AND_MUL(name, type, resident, target)                                                   \
  KERNEL(name##_small, 64, 1) { silu_and_mul<type, 64, 1, target>(a.header, a.matrix); }             \
  KERNEL(name##_large, 256, resident) { silu_and_mul<type, 256, 2, target>(a.header, a.matrix); }

#define RMS_NORM(name, type, resident, target)                                      \
  KERNEL(name##_two, 256, resident) { rms_norm<type, 2, target>(a); }               \
  KERNEL(name##_four, 512, (resident) / 2) { rms_norm<type, 4, target>(a); }          \
  KERNEL(name##_any, 512, 1) { rms_norm<type, 0, target>(a); }

#define FUSED(name, type, resident)                                                \
  SILU_AND_MUL(silu_and_mul_##name, type, resident, kValues)                       \
  SILU_AND_MUL(silu_and_mul_quantize_##name, type, resident, kCodes)               \
  SILU_AND_MUL(silu_and_mul_examine_##name, type, resident, kCodesAndHealth)       \
  RMS_NORM(rms_norm_##name, type, resident, kValues)                               \
  RMS_NORM(rms_norm_quantize_##name, type, resident, kCodes)                       \
  RMS_NORM(rms_norm_examine_##name, type, resident, kCodesAndHealth)

FUSED(bf16, Bf16, 4)
FUSED(f16, F16, 4)
FUSED(f32, F32, 3)
