// What the quantizing kernels share: loads, amax, codes, health.
#pragma once

#include "arguments.cuh"
#include "numbers.cuh"

constexpr int kBlock = 128;
// Elements that one thread takes of a row: 16 bytes of a 16-bit type, and 8 bytes of codes.
constexpr int kChunk = 8;
constexpr int kChunks = kBlock / kChunk;

// Programmatic dependent launch: the work before this one is complete and visible after `wait`; the work after this one
// may start its own preamble from `release` on.
__device__ inline void wait_for_producer() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void release_consumer() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Eight elements of a row.
template <class T>
struct Chunk {
  typename T::Bits bits[kChunk];

  // All eight, aligned. No branch: loads that stand behind one another are all in flight at once.
  __device__ void load_aligned(const typename T::Bits *from) {
    constexpr int kVectors = sizeof(bits) / sizeof(uint4);
    uint4 vectors[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) vectors[i] = __ldcs(reinterpret_cast<const uint4 *>(from) + i);
    memcpy(bits, vectors, sizeof bits);
  }

  // `count` elements exist; the rest become zero, which changes no amax and is not written.
  __device__ void load_some(const typename T::Bits *from, int count) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) bits[i] = i < count ? from[i] : 0;
  }

  // Largest magnitude as bits; an infinity or NaN wins.
  __device__ uint32_t amax() const {
    if constexpr (sizeof(bits[0]) == 2) {
      uint32_t pairs[kChunk / 2], largest = 0;
      memcpy(pairs, bits, sizeof bits);
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i) largest = __vmaxu2(largest, pairs[i] & 0x7FFF7FFFu);
      return max(largest & 0xFFFFu, largest >> 16);
    } else {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) largest = max(largest, bits[i] & 0x7FFFFFFFu);
      return largest;
    }
  }

  // Largest finite magnitude as bits.
  __device__ uint32_t finite_amax() const {
    constexpr uint32_t kMask = sizeof(bits[0]) == 2 ? 0x7FFFu : 0x7FFFFFFFu;
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      const uint32_t magnitude = bits[i] & kMask;
      if (magnitude < T::kInfinityBits) largest = max(largest, magnitude);
    }
    return largest;
  }

  __device__ float value(int i) const { return T::to_float(bits[i]); }
};

// Counts of one thread.
struct Health {
  uint32_t non_finite = 0, saturated = 0, zero = 0, subnormal = 0;

  // Elements beyond `count` are zeros with zero codes, and count for nothing; a zero has a zero code. Four bytes or two halves are compared at once;
  // a comparison gives all ones where it holds.
  template <class T>
  __device__ void examine(const Chunk<T> &chunk, uint2 codes, const Scaling &scaling, bool given, int count) {
    if (given) {
      examine_given(chunk, codes, scaling, count);
      return;
    }
    const uint32_t low = codes.x & 0x7F7F7F7Fu, high = codes.y & 0x7F7F7F7Fu;
    const int zero_codes = (__popc(__vcmpeq4(low, 0)) + __popc(__vcmpeq4(high, 0))) / 8;
    const int small_codes = (__popc(__vcmpltu4(low, 0x08080808u)) + __popc(__vcmpltu4(high, 0x08080808u))) / 8;
    subnormal += small_codes - zero_codes;
    int zeros = 0, infinite = 0;
    if constexpr (sizeof(chunk.bits[0]) == 2) {
      uint32_t pairs[kChunk / 2];
      memcpy(pairs, chunk.bits, sizeof chunk.bits);
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i) {
        const uint32_t magnitudes = pairs[i] & 0x7FFF7FFFu;
        zeros += __popc(__vcmpeq2(magnitudes, 0)) / 16;
        infinite += __popc(__vcmpgeu2(magnitudes, T::kInfinityBits * 0x10001u)) / 16;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        zeros += (chunk.bits[i] & 0x7FFFFFFFu) == 0;
        infinite += (chunk.bits[i] & 0x7FFFFFFFu) >= kInfinity;
      }
    }
    zero += zero_codes - zeros;
    non_finite += infinite;
  }

  // Under a given scale, which may be 0 or NaN, a zero may have any code.
  template <class T>
  __device__ void examine_given(const Chunk<T> &chunk, uint2 codes, const Scaling &scaling, int count) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i >= count) break;
      const float x = chunk.value(i);
      const bool finite = (to_bits(x) & 0x7FFFFFFFu) < kInfinity;
      const uint32_t code = ((i < 4 ? codes.x : codes.y) >> (8 * (i % 4))) & 0x7Fu;
      non_finite += !finite;
      saturated += finite && fabsf(__fdiv_rn(x, scaling.scale)) > kOverflow;
      zero += x != 0.0f && code == 0;
      subnormal += code - 1 < 7u;
    }
  }

  // Adds the counts of the block's threads to the caller's counters.
  __device__ void add_to(unsigned long long *counters) const {
    const uint32_t counts[4] = {non_finite, saturated, zero, subnormal};
    for (int i = 0; i < 4; ++i) {
      const uint32_t sum = __reduce_add_sync(0xFFFFFFFFu, counts[i]);
      if (threadIdx.x % 32 == 0 && sum != 0) atomicAdd(counters + i, static_cast<unsigned long long>(sum));
    }
  }
};

// The number that is rounded to a code.
__device__ inline float number(float x, const Scaling &scaling) {
  return scaling.divide ? __fdiv_rn(x, scaling.scale) : __fmul_rn(x, scaling.factor);
}

// Codes of eight elements.
template <class T>
__device__ inline uint2 encode_chunk(const Chunk<T> &chunk, const Scaling &scaling) {
  float numbers[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) numbers[i] = number(chunk.value(i), scaling);
  return {encode_two(numbers[0], numbers[1]) | encode_two(numbers[2], numbers[3]) << 16,
          encode_two(numbers[4], numbers[5]) | encode_two(numbers[6], numbers[7]) << 16};
}

// All eight, aligned.
__device__ inline void store_aligned(uint8_t *to, uint2 codes) { __stcs(reinterpret_cast<uint2 *>(to), codes); }

__device__ inline void store_some(uint8_t *to, uint2 codes, int count) {
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    if (i < count) to[i] = (i < 4 ? codes.x : codes.y) >> (8 * (i % 4));
  }
}

// Chunks that are whole or absent where `kVectors`, of any length where not.
template <bool kVectors, class T>
__device__ inline void load(Chunk<T> &chunk, const typename T::Bits *from, int count) {
  if constexpr (kVectors) {
    chunk = Chunk<T>{};
    if (count != 0) chunk.load_aligned(from);
  } else {
    chunk.load_some(from, count);
  }
}

template <bool kVectors>
__device__ inline void store(uint8_t *to, uint2 codes, int count) {
  if constexpr (kVectors) {
    store_aligned(to, codes);
  } else {
    store_some(to, codes, count);
  }
}

// A scale of a matrix: where it lies, for the formats that have a float each.
__device__ inline float *scale_at(const Matrix &m, uint32_t expert, uint32_t band, uint32_t group) {
  return static_cast<float *>(m.scales) + expert * m.scale_expert + band * m.scale_row + group * m.scale_column;
}

// The byte of a group in a row of packed exponents; NULL beyond what may be written.
__device__ inline uint8_t *exponent_at(const Matrix &m, uint32_t expert, uint32_t row, uint32_t group) {
  const int64_t word = expert * m.scale_expert + row * m.scale_row + (group / 4) * m.scale_column;
  return word < m.scale_limit ? static_cast<uint8_t *>(m.scales) + 4 * word + group % 4 : nullptr;
}

__device__ inline float read_scale(const Matrix &m, uint32_t format, uint32_t expert, uint32_t band, uint32_t row,
                                   uint32_t group) {
  return format == kPacked ? decode_exponent(*exponent_at(m, expert, row, group)) : *scale_at(m, expert, band, group);
}
