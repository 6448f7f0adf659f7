// Number formats by their definitions: tables and arithmetic in float64, no bit tricks. Slow and plain on purpose.

#ifndef FP8RT_TEST_FLOATS_HPP
#define FP8RT_TEST_FLOATS_HPP

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "fp8rt.h"

namespace fp8rt_test {

inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Rounds to `precision` binary digits, nearest even, with subnormals below 2^least_exponent.
inline double rounded(double x, int precision, int least_exponent) {
  if (x == 0 || !std::isfinite(x)) {
    return x;
  }
  int exponent = 0;
  std::frexp(x, &exponent);
  const int step = std::max(exponent - 1, least_exponent) - (precision - 1);
  return std::ldexp(std::nearbyint(std::ldexp(x, -step)), step);
}

inline std::uint16_t bf16_of(float x) {
  if (std::isnan(x)) {
    return 0x7FC0;
  }
  const double value = rounded(x, 8, -126);
  const double magnitude = std::min(std::fabs(value), static_cast<double>(std::numeric_limits<float>::infinity()));
  const bool overflows = magnitude > static_cast<double>(std::numeric_limits<float>::max());
  const float result = overflows ? std::numeric_limits<float>::infinity() : static_cast<float>(magnitude);
  return static_cast<std::uint16_t>(bits_of(std::copysign(result, x)) >> 16);
}

inline float from_bf16(std::uint16_t bits) { return float_of(static_cast<std::uint32_t>(bits) << 16); }

inline std::uint16_t f16_of(float x) {
  const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) {
    return 0x7E00;
  }
  const double magnitude = std::fabs(rounded(x, 11, -14));
  if (magnitude > 65504) {
    return static_cast<std::uint16_t>(sign | 0x7C00);
  }
  if (magnitude < std::ldexp(1.0, -14)) {
    return static_cast<std::uint16_t>(sign | static_cast<int>(std::ldexp(magnitude, 24)));
  }
  int exponent = 0;
  const double fraction = std::frexp(magnitude, &exponent);
  const int mantissa = static_cast<int>(std::ldexp(fraction, 11)) - 1024;
  return static_cast<std::uint16_t>(sign | ((exponent + 14) << 10) | mantissa);
}

inline float from_f16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F;
  const double mantissa = bits & 0x3FF;
  double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) {
    magnitude = mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  return static_cast<float>(bits & 0x8000 ? -magnitude : magnitude);
}

// The 127 magnitudes of E4M3FN in order; the index is the code.
inline const std::array<double, 127> &e4m3_magnitudes() {
  static const std::array<double, 127> table = [] {
    std::array<double, 127> values{};
    for (int code = 0; code < 127; ++code) {
      const int exponent = code / 8, mantissa = code % 8;
      values[static_cast<std::size_t>(code)] =
          exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    }
    return values;
  }();
  return table;
}

inline float from_e4m3(std::uint8_t code) {
  const std::size_t index = code & 0x7F;
  const double magnitude = index == 0x7F ? std::numeric_limits<double>::quiet_NaN() : e4m3_magnitudes()[index];
  return static_cast<float>(code & 0x80 ? -magnitude : magnitude);
}

// The nearest code by search, ties to the even code, saturating.
inline std::uint8_t e4m3_of(float x) {
  if (std::isnan(x)) {
    return 0x7F;
  }
  const auto &table = e4m3_magnitudes();
  const double magnitude = std::min(std::fabs(static_cast<double>(x)), 448.0);
  const auto above = std::lower_bound(table.begin(), table.end(), magnitude);
  auto code = static_cast<std::size_t>(above - table.begin());
  if (*above != magnitude) {
    const double down = magnitude - table[code - 1], up = table[code] - magnitude;
    const bool lower = down < up || (down == up && (code - 1) % 2 == 0);
    code -= lower ? 1 : 0;
  }
  return static_cast<std::uint8_t>(code | (std::signbit(x) ? 0x80 : 0));
}

inline std::size_t element_bytes(std::uint32_t dtype) {
  switch (dtype) {
    case FP8RT_DTYPE_E4M3:
      return 1;
    case FP8RT_DTYPE_BF16:
    case FP8RT_DTYPE_F16:
      return 2;
    default:
      return 4;
  }
}

inline const char *dtype_name(std::uint32_t dtype) {
  static const char *const names[] = {"none", "bf16", "fp16", "fp32", "e4m3", "int32"};
  return dtype < 6 ? names[dtype] : "unknown";
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_FLOATS_HPP
