// Random numbers by their bits, fast enough for matrices of a hundred million elements.

#ifndef FP8RT_TEST_DATA_HPP
#define FP8RT_TEST_DATA_HPP

#include <cstdint>
#include <type_traits>

#include "matrix.hpp"

namespace fp8rt_test {

enum class Fill {
  // A magnitude of its own for each block over the whole range of the type, a spread within it that reaches codes that
  // are subnormal or zero, signed zeros.
  kSpread,
  // As kSpread, with a NaN or an infinity now and then.
  kSpreadNonFinite,
  // Any bits.
  kAnyBits,
  // Magnitudes of 2^-6 to 2, as weights and activations have them.
  kPlain,
};

// 64 random bits a call.
class Bits {
 public:
  explicit Bits(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  std::int64_t between(std::int64_t least, std::int64_t most) {
    return least + static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(most - least + 1));
  }

 private:
  std::uint64_t state_;
};

// The fields of a floating-point type.
struct Fields {
  int exponent_bits, mantissa_bits;

  std::uint32_t top() const { return (1u << exponent_bits) - 1; }
  std::uint32_t bias() const { return top() >> 1; }
  std::uint32_t compose(bool sign, std::uint32_t exponent, std::uint32_t mantissa) const {
    const std::uint32_t kept = mantissa & ((1u << mantissa_bits) - 1);
    return static_cast<std::uint32_t>(sign) << (exponent_bits + mantissa_bits) | exponent << mantissa_bits | kept;
  }
};

inline Fields fields_of(std::uint32_t dtype) {
  return dtype == FP8RT_DTYPE_BF16 ? Fields{8, 7} : dtype == FP8RT_DTYPE_F16 ? Fields{5, 10} : Fields{8, 23};
}

inline std::uint32_t random_element(const Fields &fields, Fill fill, std::uint32_t base, std::uint64_t random) {
  const auto mantissa = static_cast<std::uint32_t>(random);
  const bool sign = random >> 63 != 0;
  const auto choice = static_cast<std::uint32_t>(random >> 32) & 0xFFF;
  const auto depth = static_cast<std::uint32_t>(random >> 44);
  if (fill == Fill::kSpreadNonFinite && choice < 8) {
    return fields.compose(sign, fields.top(), choice < 4 ? 0 : mantissa);
  }
  if (choice < 60 && fill != Fill::kPlain) {
    return fields.compose(sign, 0, 0);
  }
  const std::uint32_t below = fill == Fill::kPlain ? depth % 7 : choice < 1500 ? depth % 27 : depth % 3;
  return fields.compose(sign, base > below ? base - below : 0, mantissa);
}

template <typename T>
void fill_as(Matrix &matrix, Fill fill, std::int64_t height, std::uint64_t seed) {
  const Fields fields = fields_of(matrix.dtype());
  Bits bits(seed), bases(seed ^ 0x5DEECE66D);
  const std::uint64_t salt = bases.next();
  for (std::int64_t expert = 0; expert < matrix.experts(); ++expert) {
    for (std::int64_t row = 0; row < matrix.rows(); ++row) {
      T *at = reinterpret_cast<T *>(matrix.data() + matrix.offset_of(expert, row, 0));
      const std::uint64_t band = static_cast<std::uint64_t>(expert * matrix.rows() + row / height * height);
      std::uint32_t base = fields.bias();
      for (std::int64_t column = 0; column < matrix.columns(); ++column) {
        if (column % 128 == 0 && fill != Fill::kPlain) {
          const std::uint64_t block = (band * 40503 + static_cast<std::uint64_t>(column / 128)) ^ salt;
          base = static_cast<std::uint32_t>(block * 0x9E3779B97F4A7C15u >> 40) % fields.top();
        }
        const std::uint64_t random = bits.next();
        at[column] = static_cast<T>(fill == Fill::kAnyBits ? random : random_element(fields, fill, base, random));
      }
    }
  }
}

// `height`: 128 for a weight, 1 for an activation. Writes the elements alone.
inline void fill(Matrix &matrix, Fill fill, std::int64_t height, std::uint64_t seed) {
  switch (element_bytes(matrix.dtype())) {
    case 1:
      return fill_as<std::uint8_t>(matrix, Fill::kAnyBits, height, seed);
    case 2:
      return fill_as<std::uint16_t>(matrix, fill, height, seed);
    default:
      return fill_as<std::uint32_t>(matrix, fill, height, seed);
  }
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_DATA_HPP
