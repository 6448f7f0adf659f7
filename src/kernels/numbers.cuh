// The numbers of this library on a GPU: the same bytes as src/formats and src/recipe.rs give on the host.
// Compiled without contraction and without flushing, with division as IEEE asks: build.rs passes the options.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// Values of src/kernels/arguments.rs.
enum : uint32_t { kVllm = 0, kDeepGemm = 1, kNemoRl = 2, kTe = 3 };
enum : uint32_t { kFp32 = 0, kPow2 = 1, kPacked = 2 };
enum : uint32_t { kCompute = 0, kGiven = 1, kScalesOnly = 2 };

constexpr float kLargest = 448.0f;
constexpr float kOverflow = 464.0f;
constexpr uint32_t kInfinity = 0x7F800000u;

__device__ inline float from_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline uint32_t to_bits(float value) { return __float_as_uint(value); }

// Source types, by their bits. Every NaN is rounded to one quiet NaN, as on the host.
struct Bf16 {
  using Bits = uint16_t;
  static constexpr uint32_t kInfinityBits = 0x7F80;
  __device__ static float to_float(uint16_t bits) { return from_bits(uint32_t(bits) << 16); }
  __device__ static uint16_t from_float(float value) {
    return value == value ? __bfloat16_as_ushort(__float2bfloat16_rn(value)) : 0x7FC0;
  }
};

struct F16 {
  using Bits = uint16_t;
  static constexpr uint32_t kInfinityBits = 0x7C00;
  __device__ static float to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
  __device__ static uint16_t from_float(float value) {
    return value == value ? __half_as_ushort(__float2half_rn(value)) : 0x7E00;
  }
};

struct F32 {
  using Bits = uint32_t;
  static constexpr uint32_t kInfinityBits = kInfinity;
  __device__ static float to_float(uint32_t bits) { return from_bits(bits); }
  __device__ static uint32_t from_float(float value) { return value == value ? to_bits(value) : 0x7FC00000u; }
};

// The code of a number, nearest even, saturating; NaN of either sign gives 0x7F.
__device__ inline uint32_t encode_by_hand(float value) {
  const uint32_t bits = to_bits(value), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t clamped = min(magnitude, 0x43E00000u);
  const uint32_t normal = ((clamped + 0x7FFFFu + ((clamped >> 20) & 1u)) >> 20) - ((127 - 7) << 3);
  const uint32_t subnormal = to_bits(__fadd_rn(from_bits(clamped), 16384.0f)) - 0x46800000u;
  const uint32_t code = (clamped < 0x3C800000u ? subnormal : normal) | ((bits >> 24) & 0x80u);
  return magnitude > kInfinity ? 0x7Fu : code;
}

// Codes of two numbers, the first in the low byte.
__device__ inline uint32_t encode_two(float low, float high) {
#if __CUDA_ARCH__ >= 890
  uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  return encode_by_hand(low) | encode_by_hand(high) << 8;
#endif
}

// The value of a code, exact.
__device__ inline float decode(uint32_t code) {
  const uint32_t magnitude = code & 0x7Fu;
  const float normal = from_bits((magnitude << 20) + ((127u - 7u) << 23));
  const float subnormal = __fsub_rn(from_bits((magnitude << 20) + ((127u - 6u) << 23)), 0.015625f);
  const float value = magnitude < 8 ? subnormal : normal;
  return from_bits((magnitude == 0x7Fu ? 0x7FC00000u : to_bits(value)) | (code & 0x80u) << 24);
}

// The value of an exponent byte.
__device__ inline float decode_exponent(uint32_t byte) {
  return from_bits(byte == 0 ? 0x00400000u : byte == 255 ? 0x7FC00000u : byte << 23);
}

// A scale, and how values become codes: x * factor, or x / scale.
struct Scaling {
  float scale;
  float factor;
  bool divide;
};

// The smallest power of two s >= 2^-126 with amax <= 448 s.
__device__ inline float least_pow2(float amax) {
  const uint32_t bits = to_bits(amax);
  const int least = int(bits >> 23) - 8 + ((bits & 0x7FFFFFu) > 0x600000u ? 1 : 0);
  return from_bits(uint32_t(max(least, 1)) << 23);
}

__device__ inline Scaling make_scaling(float amax, float floor, uint32_t recipe, uint32_t format) {
  amax = fmaxf(amax, floor);
  if (format != kFp32) {
    float scale = least_pow2(amax);
    if (recipe == kVllm) scale = fmaxf(scale, from_bits((127u - 33u) << 23));
    if (recipe >= kNemoRl && amax == 0.0f) scale = 1.0f;
    return {scale, __frcp_rn(scale), false};
  }
  constexpr float kLeast = 1.17549435e-38f;
  if (recipe == kVllm) {
    const float scale = fmaxf(__fdiv_rn(amax, kLargest), kLeast);
    return {scale, __frcp_rn(scale), false};
  }
  if (recipe == kDeepGemm) {
    const float scale = fmaxf(__fmul_rn(amax, 1.0f / kLargest), kLeast);
    return {scale, __frcp_rn(scale), false};
  }
  float inverse = recipe == kNemoRl ? __fmul_rn(__frcp_rn(amax), kLargest) : __fdiv_rn(kLargest, amax);
  inverse = amax == 0.0f ? 1.0f : fminf(inverse, 3.402823466e38f);
  return {__frcp_rn(inverse), inverse, false};
}

// Given scales are divided by, whatever they are.
__device__ inline Scaling given_scaling(float scale) { return {scale, 0.0f, true}; }
