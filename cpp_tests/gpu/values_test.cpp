// Chosen values: the cases of public reports, every exponent of amax, given scales, health.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "both.hpp"

namespace fp8rt_test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Matrix zeros(std::uint32_t dtype, Extents extents) {
  Matrix matrix(dtype, extents);
  matrix.fill(0.0f);
  return matrix;
}

// All recipes and formats, as a weight and as an activation.
void check_all(const Matrix &values, Kind kind = Kind::kQuantize) {
  for (const std::uint32_t recipe : kRecipes) {
    for (const std::uint32_t format : kFormats) {
      for (const bool activation : {false, true}) {
        const Rule rule = rule_of(recipe, format, activation);
        const Operands operands{values, make_codes(values.extents()), make_scales(rule, values.extents())};
        ASSERT_TRUE(same_on_both(kind, rule, operands)) << describe(rule, values);
      }
    }
  }
}

TEST(Values, V1TinyAmax) {
  for (const std::uint32_t dtype : {FP8RT_DTYPE_F32, FP8RT_DTYPE_BF16}) {
    for (const float tiny : {1e-37f, 1e-38f, 1e-40f, 1.4e-45f}) {
      Matrix values = zeros(dtype, {128, 128});
      values.set(0, 0, tiny);
      check_all(values);
    }
  }
}

TEST(Values, V2AndV3Zeros) {
  Matrix values = zeros(FP8RT_DTYPE_BF16, {256, 256});
  check_all(values);
  values.set(0, 0, 1.0f);
  check_all(values);
}

TEST(Values, V4AndV5NonFinite) {
  for (const std::uint32_t dtype : kFloats) {
    Matrix values(dtype, {130, 300});
    fill(values, Fill::kPlain, 128, next_seed());
    values.set(5, 7, std::nanf(""));
    values.set(6, 7, -std::nanf(""));
    values.set(129, 299, kInfinity);
    values.set(128, 2, -kInfinity);
    check_all(values);
  }
}

TEST(Values, NothingFinite) {
  for (const std::uint32_t dtype : kFloats) {
    Matrix values(dtype, {3, 260});
    for (const float value : {kInfinity, -kInfinity, std::nanf("")}) {
      values.fill(value);
      check_all(values);
    }
  }
}

// V6, and what GPU and host then say of it.
TEST(Values, V6GivenScaleOfOne) {
  const float given[] = {449.0f, 464.0f, 464.1f, 1e30f, -449.0f, -1e30f, 448.0f, kInfinity};
  for (const bool activation : {false, true}) {
    const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, activation);
    Operands operands{zeros(FP8RT_DTYPE_F32, {1, 128}), make_codes({1, 128}), make_scales(rule, {1, 128})};
    operands.scales.set(0, 0, 1.0f);
    for (int column = 0; column < 8; ++column) {
      operands.values.set(0, column, given[column]);
    }
    ASSERT_TRUE(same_on_both(Kind::kWithScales, rule, operands));
    const DeviceOperands device(operands);
    const DeviceHealth health;
    const Stream stream;
    ASSERT_OK(device.call(function_of(Kind::kWithScales, activation), rule, health.get(), stream.get()));
    stream.synchronize();
    const Matrix codes = device.codes.download();
    for (int column = 0; column < 8; ++column) {
      EXPECT_EQ(codes.code(0, column), given[column] < 0 ? 0xFE : 0x7E) << given[column];
    }
    EXPECT_TRUE(same_health(health.download(), {1, 3, 0, 0}));
  }
}

// V8: amax / 448 exactly a power of two, and one ulp around it.
TEST(Values, V8EdgesOfPowersOfTwo) {
  Matrix values(FP8RT_DTYPE_F32, {3 * 240, 128});
  values.fill(0.0f);
  for (std::int64_t row = 0; row < values.rows(); ++row) {
    const float edge = std::ldexp(448.0f, static_cast<int>(row / 3) - 120);
    const float ends[] = {std::nextafter(edge, 0.0f), edge, std::nextafter(edge, kInfinity)};
    values.set(row, row % 128, ends[row % 3]);
  }
  check_all(values);
}

// Every value of the half types, as itself, in groups of its neighbors and in groups of all magnitudes.
TEST(Values, EveryValueOfTheHalfTypes) {
  for (const std::uint32_t dtype : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16}) {
    for (const std::int64_t columns : {1, 128, 4096}) {
      Matrix values(dtype, {65536 / columns, columns});
      std::uint16_t bits = 0;
      values.each([&](auto expert, auto row, auto column) { values.store(expert, row, column, bits++); });
      check_all(values);
      Matrix mixed = values;
      mixed.each([&](auto expert, auto row, auto column) {
        mixed.store(expert, row, column, static_cast<std::uint16_t>((row * columns + column) * 40503));
      });
      check_all(mixed);
    }
  }
}

// A group of amax `bits` and smaller values at every distance that a code tells apart.
void fill_group(Matrix &values, std::int64_t row, std::int64_t column, std::uint32_t amax, Bits &random) {
  const float top = float_of(amax);
  values.store(0, row, column, amax);
  for (std::int64_t at = 1; at < 128; ++at) {
    const float part = top * static_cast<float>(random.next() >> 40) * 0x1p-24f;
    values.set(row, column + at, std::ldexp(at % 2 == 0 ? part : -part, -static_cast<int>(at % 20)));
  }
}

// Every exponent of float32, with mantissas at the edges of the formulas.
Matrix sweep() {
  const std::uint32_t mantissas[] = {0,        1,        0x3FFFFF, 0x400000, 0x5FFFFF, 0x600000, 0x600001, 0x7FFFFF,
                                     0x155555, 0x2AAAAA, 0,        0,        0,        0,        0,        0};
  Bits random(next_seed());
  Matrix values(FP8RT_DTYPE_F32, {255 * 2, 8 * 128});
  for (std::int64_t row = 0; row < values.rows(); ++row) {
    for (std::int64_t group = 0; group < 8; ++group) {
      const std::int64_t index = row % 2 * 8 + group;
      const auto mantissa =
          index < 10 ? mantissas[index] : static_cast<std::uint32_t>(random.next() & 0x7FFFFF);
      fill_group(values, row, group * 128, static_cast<std::uint32_t>(row / 2) << 23 | mantissa, random);
    }
  }
  return values;
}

TEST(Values, EveryExponentOfAmaxInGroups) {
  const Matrix values = sweep();
  for (const std::uint32_t recipe : kRecipes) {
    for (const std::uint32_t format : kFormats) {
      for (const float floor : {-1.0f, 0.0f, 1e-40f, 3.0f}) {
        Rule rule = rule_of(recipe, format, true);
        rule.has_floor = floor >= 0;
        rule.floor = floor;
        const Operands operands{values, make_codes(values.extents()), make_scales(rule, values.extents())};
        ASSERT_TRUE(same_on_both(Kind::kQuantize, rule, operands)) << "floor " << floor << ", "
                                                                   << describe(rule, values);
      }
    }
  }
}

// The same groups as weights of one row each: an expert is a row.
TEST(Values, EveryExponentOfAmaxInBlocks) {
  const Matrix groups = sweep();
  Matrix values(FP8RT_DTYPE_F32, {1, groups.columns(), groups.rows()});
  std::memcpy(values.data(), groups.data(), groups.bytes());
  for (const std::uint32_t recipe : kRecipes) {
    for (const std::uint32_t format : kFormats) {
      const Rule rule = rule_of(recipe, format, false);
      const Operands operands{values, make_codes(values.extents()), make_scales(rule, values.extents())};
      ASSERT_TRUE(same_on_both(Kind::kQuantize, rule, operands)) << describe(rule, values);
    }
  }
}

// Exact quotients on every boundary between two codes, and one ulp around it.
TEST(Values, EveryBoundaryBetweenCodes) {
  Matrix values(FP8RT_DTYPE_F32, {126, 3});
  const auto &magnitudes = e4m3_magnitudes();
  for (std::int64_t row = 0; row < 126; ++row) {
    const auto at = static_cast<std::size_t>(row);
    const auto boundary = static_cast<float>((magnitudes[at] + magnitudes[at + 1]) / 2);
    values.set(row, 0, std::nextafter(boundary, 0.0f));
    values.set(row, 1, row % 2 == 0 ? boundary : -boundary);
    values.set(row, 2, std::nextafter(boundary, kInfinity));
  }
  for (int power = -126; power <= 118; power += 4) {
    const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
    Operands operands{values, make_codes(values.extents()), make_scales(rule, values.extents())};
    operands.scales.fill(std::ldexp(1.0f, power));
    operands.values.each([&](auto, auto row, auto column) {
      operands.values.set(row, column, std::ldexp(values.get(row, column), power));
    });
    ASSERT_TRUE(same_on_both(Kind::kWithScales, rule, operands)) << "scale 2^" << power;
  }
}

TEST(Health, AddsUpInDeviceMemory) {
  const fp8rt_health begin{100, 200, 300, 1ull << 40};
  const DeviceHealth counters(begin);
  fp8rt_health want = begin;
  const Stream stream;
  std::vector<std::unique_ptr<DeviceOperands>> kept;
  for (const std::uint32_t dtype : kFloats) {
    for (const bool activation : {false, true}) {
      const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, activation);
      for (const Kind kind : {Kind::kQuantize, Kind::kWithScales}) {
        Operands operands = make_operands(rule, Matrix(dtype, {260, 700}), Fill::kSpreadNonFinite);
        operands.scales.fill(0.25f);
        kept.push_back(std::make_unique<DeviceOperands>(operands));
        ASSERT_OK(kept.back()->call(function_of(kind, activation), rule, counters.get(), stream.get()));
        ASSERT_OK(call_on_host(function_of(kind, activation), rule, operands, &want));
      }
    }
  }
  stream.synchronize();
  EXPECT_TRUE(same_health(counters.download(), want));
  EXPECT_GT(want.non_finite, begin.non_finite);
  EXPECT_GT(want.saturated, begin.saturated);
  EXPECT_GT(want.became_zero, begin.became_zero);
  EXPECT_GT(want.became_subnormal, begin.became_subnormal);
}

// Health is asked for or not: the bytes are the same.
TEST(Health, ChangesNoByte) {
  for (const bool activation : {false, true}) {
    const Rule rule = rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, activation);
    Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {260, 700}), Fill::kSpreadNonFinite);
    const DeviceOperands device(operands);
    const Stream stream;
    ASSERT_OK(device.call(function_of(Kind::kQuantize, activation), rule, nullptr, stream.get()));
    ASSERT_OK(call_on_host(function_of(Kind::kQuantize, activation), rule, operands, nullptr));
    stream.synchronize();
    EXPECT_TRUE(device.same(operands));
  }
}

}  // namespace
}  // namespace fp8rt_test
