// Test data from fixed seeds, and one seed of the day that is printed and can be given back.

#ifndef FP8RT_TEST_RANDOM_HPP
#define FP8RT_TEST_RANDOM_HPP

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>
#include <string>

#include "matrix.hpp"

namespace fp8rt_test {

// FP8RT_TEST_SEED, or a new one for each run of the program.
inline std::uint32_t seed_of_the_day() {
  static const std::uint32_t seed = [] {
    const char *given = std::getenv("FP8RT_TEST_SEED");
    const std::uint32_t value =
        given != nullptr ? static_cast<std::uint32_t>(std::stoul(given)) : std::random_device{}();
    std::cout << "FP8RT_TEST_SEED=" << value << std::endl;
    return value;
  }();
  return seed;
}

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}

  std::uint32_t bits() { return static_cast<std::uint32_t>(engine_()); }
  std::int64_t between(std::int64_t least, std::int64_t most) {
    return least + static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(most - least + 1));
  }
  float normal(float deviation) { return deviation * normal_(engine_); }
  float uniform(float least, float most) {
    return least + (most - least) * (static_cast<float>(bits() >> 8) * 0x1p-24f);
  }

  // Normally distributed, as weights and activations are.
  void fill_normal(Matrix &matrix, float deviation) {
    matrix.each([&](auto expert, auto row, auto column) { matrix.set(expert, row, column, normal(deviation)); });
  }

  // Everything that a number may be: magnitudes that change from block to block over the range of the type, signed
  // zeros, subnormals, and, if asked, a NaN or an infinity now and then.
  void fill_hostile(Matrix &matrix, bool non_finite) {
    const int widest = matrix.dtype() == FP8RT_DTYPE_F16 ? 12 : 100;
    matrix.each([&](auto expert, auto row, auto column) {
      const auto block = static_cast<std::uint32_t>((expert * 31 + row / 128) * 17 + column / 128);
      const int exponent = static_cast<int>(block * 2654435761u >> 8) % widest - widest / 2;
      matrix.set(expert, row, column, hostile(exponent, non_finite));
    });
  }

 private:
  float hostile(int exponent, bool non_finite) {
    const std::uint32_t choice = bits() % 1024;
    if (non_finite && choice < 3) {
      const float specials[] = {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()};
      return choice == 2 && bits() % 2 == 0 ? -specials[2] : specials[choice];
    }
    if (choice < 40) {
      return choice % 2 == 0 ? 0.0f : -0.0f;
    }
    // A spread of 2^-24 within a block reaches codes that are subnormal, and below the smallest of them.
    const int spread = choice < 300 ? -static_cast<int>(bits() % 24) : 0;
    return normal(std::ldexp(1.0f, exponent + spread));
  }

  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_RANDOM_HPP
