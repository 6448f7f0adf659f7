// Quantize and dequantize: every byte is the oracle's, and no other byte is touched.

#include <fenv.h>
#include <gtest/gtest.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr std::uint32_t kFloats[] = {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32};

// Quantizes, and compares codes, scales and counts with the oracle's.
::testing::AssertionResult quantizes(const fp8rt::Context &context, const Rule &rule, const Matrix &values,
                                     Matrix codes, Matrix scales) {
  Matrix want_codes = codes, want_scales = scales;
  const Matrix before = values;
  const fp8rt_health want_health = oracle_quantize(rule, values, want_codes, want_scales);
  fp8rt_health health{};
  const ::testing::AssertionResult done = succeeded(quantize(context, rule, values, codes, scales, &health));
  const ::testing::AssertionResult steps[] = {done, same_bytes(codes, want_codes), same_bytes(scales, want_scales),
                                              same_bytes(values, before)};
  const char *names[] = {"call", "codes", "scales", "input"};
  for (int step = 0; step < 4; ++step) {
    if (!steps[step]) {
      return ::testing::AssertionFailure() << names[step] << ": " << steps[step].message();
    }
  }
  if (!(health == want_health)) {
    return ::testing::AssertionFailure() << "health is " << health << ", expected " << want_health;
  }
  return ::testing::AssertionSuccess();
}

class Quantize : public ::testing::TestWithParam<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>> {
 protected:
  Rule rule(bool activation) const {
    Rule rule;
    rule.recipe = std::get<0>(GetParam());
    rule.format = std::get<1>(GetParam());
    rule.activation = activation;
    return rule;
  }
  // Hostile values, rows farther apart than they are long.
  Matrix values(Extents extents) const {
    Matrix values(std::get<2>(GetParam()), extents, {extents.columns + 7});
    Random(static_cast<std::uint32_t>(extents.rows * 7919 + extents.columns)).fill_hostile(values, true);
    return values;
  }
  static Matrix codes(Extents extents) { return Matrix(FP8RT_DTYPE_E4M3, extents, {extents.columns + 3}); }
  fp8rt::Context context_ = context_with_threads(2);
};

const Extents kShapes[] = {{1, 1},     {1, 128},   {128, 128}, {130, 256}, {129, 300},
                           {576, 192}, {16, 1024}, {5, 4304},  {3, 127},   {257, 1029}};

TEST_P(Quantize, WeightsOfEveryShape) {
  for (const Extents extents : kShapes) {
    const Rule rule = this->rule(false);
    ASSERT_TRUE(quantizes(context_, rule, values(extents), codes(extents), make_scales(rule, extents)))
        << extents.rows << "x" << extents.columns;
  }
}

TEST_P(Quantize, ActivationsOfEveryShape) {
  for (const Extents extents : kShapes) {
    const Rule rule = this->rule(true);
    for (const bool column_major : {false, true}) {
      ASSERT_TRUE(
          quantizes(context_, rule, values(extents), codes(extents), make_scales(rule, extents, column_major)))
          << extents.rows << "x" << extents.columns << (column_major ? " column-major" : " row-major");
    }
  }
}

TEST_P(Quantize, Experts) {
  const Rule rule = this->rule(false);
  for (const Extents extents : {Extents{130, 260, 3}, {1, 1, 2}, {128, 640, 1}}) {
    Matrix values(std::get<2>(GetParam()), extents,
                  {extents.columns + 9, 1, extents.rows * (extents.columns + 9) + 11});
    Random(21).fill_hostile(values, true);
    const Matrix codes(FP8RT_DTYPE_E4M3, extents, {extents.columns + 2, 1, extents.rows * (extents.columns + 2) + 5});
    ASSERT_TRUE(quantizes(context_, rule, values, codes, make_scales(rule, extents)));
  }
}

TEST_P(Quantize, Parts) {
  for (const std::vector<std::int64_t> &parts :
       {std::vector<std::int64_t>{192, 64, 256}, {1, 510, 1}, {0, 512}, {512}, {128, 128, 256}}) {
    Rule rule = this->rule(false);
    rule.parts = parts;
    const Extents extents{512, 200};
    ASSERT_TRUE(quantizes(context_, rule, values(extents), codes(extents), make_scales(rule, extents)));
  }
}

TEST_P(Quantize, RandomShapesFromTheSeedOfTheDay) {
  Random random(seed_of_the_day());
  for (int round = 0; round < 6; ++round) {
    const Extents extents{random.between(1, 300), random.between(1, 700)};
    const Rule rule = this->rule(round % 2 == 0);
    Matrix values(std::get<2>(GetParam()), extents, {extents.columns + random.between(0, 9)});
    random.fill_hostile(values, true);
    ASSERT_TRUE(quantizes(context_, rule, values, codes(extents), make_scales(rule, extents, random.bits() % 2 == 0)))
        << "seed " << seed_of_the_day() << ", " << extents.rows << "x" << extents.columns;
  }
}

TEST_P(Quantize, WithTheScalesOfQuantizeGivesCodesWithinOneStep) {
  for (const bool activation : {false, true}) {
    const Rule rule = this->rule(activation);
    const Extents extents{140, 600};
    const Matrix values = this->values(extents);
    Matrix scales = make_scales(rule, extents), codes = Quantize::codes(extents);
    oracle_scales(rule, values, scales);
    const Matrix scales_before = scales;
    Matrix want = codes;
    const fp8rt_health want_health = oracle_with_scales(rule, values, scales, want);
    fp8rt_health health{};
    ASSERT_OK(quantize_with_scales(context_, rule, values, scales, codes, &health));
    ASSERT_TRUE(same_bytes(codes, want));
    EXPECT_TRUE(same_bytes(scales, scales_before));
    EXPECT_EQ(health, want_health);
    if (rule.format != FP8RT_SCALE_FORMAT_FP32) {
      // Division by a power of two is exact, so the codes are those of quantize.
      Matrix computed = Quantize::codes(extents), computed_scales = make_scales(rule, extents);
      ASSERT_OK(quantize(context_, rule, values, computed, computed_scales));
      EXPECT_TRUE(same_bytes(codes, computed));
    }
  }
}

std::string parameter_name(const ::testing::TestParamInfo<Quantize::ParamType> &info) {
  const char *recipes[] = {"", "Vllm", "DeepGemm", "NemoRl", "Te"};
  const char *formats[] = {"Fp32", "Pow2", "Packed"};
  return std::string(recipes[std::get<0>(info.param)]) + formats[std::get<1>(info.param)] +
         dtype_name(std::get<2>(info.param));
}

INSTANTIATE_TEST_SUITE_P(EveryRecipeFormatAndType, Quantize,
                         ::testing::Combine(::testing::Values(1u, 2u, 3u, 4u), ::testing::Values(0u, 1u, 2u),
                                            ::testing::ValuesIn(kFloats)),
                         parameter_name);

TEST(QuantizeAll, NoDescriptorMeansTheDefaults) {
  const fp8rt::Context context;
  Matrix values(FP8RT_DTYPE_BF16, {130, 300});
  Random(31).fill_hostile(values, true);
  for (const bool activation : {false, true}) {
    Rule rule;
    rule.activation = activation;
    rule.recipe = activation ? FP8RT_RECIPE_VLLM : FP8RT_RECIPE_NEMO_RL;
    Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents());
    Matrix want_codes = codes, want_scales = scales;
    oracle_quantize(rule, values, want_codes, want_scales);
    const fp8rt_tensor views[] = {values.tensor(), codes.tensor(), scales.tensor()};
    const auto quantize = activation ? fp8rt_quantize_activation : fp8rt_quantize_weight;
    ASSERT_OK(quantize(context.get(), nullptr, &views[0], &views[1], &views[2], nullptr, nullptr));
    EXPECT_TRUE(same_bytes(codes, want_codes) && same_bytes(scales, want_scales));
  }
}

// An older descriptor that ends before the floor and the parts.
TEST(QuantizeAll, AnOlderDescriptorWorks) {
  const fp8rt::Context context;
  Matrix values(FP8RT_DTYPE_BF16, {5, 128});
  Random(32).fill_normal(values, 1.0f);
  Rule rule;
  rule.recipe = FP8RT_RECIPE_TE;
  Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents());
  Matrix want_codes = codes, want_scales = scales;
  oracle_quantize(rule, values, want_codes, want_scales);
  fp8rt_quantize_desc desc = rule.desc();
  desc.struct_size = offsetof(fp8rt_quantize_desc, floor);
  desc.num_parts = UINT32_MAX;
  const fp8rt_tensor views[] = {values.tensor(), codes.tensor(), scales.tensor()};
  ASSERT_OK(fp8rt_quantize_weight(context.get(), &desc, &views[0], &views[1], &views[2], nullptr, nullptr));
  EXPECT_TRUE(same_bytes(codes, want_codes) && same_bytes(scales, want_scales));
}

// Every value that bf16 and fp16 have, in groups of its own magnitude and in groups of all.
TEST(QuantizeAll, EveryValueOfTheHalfTypes) {
  const fp8rt::Context context;
  for (const std::uint32_t dtype : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16}) {
    for (const std::int64_t columns : {1, 128, 4096}) {
      Matrix values(dtype, {65536 / columns, columns});
      std::uint16_t bits = 0;
      values.each([&](auto expert, auto row, auto column) { values.store(expert, row, column, bits++); });
      for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
        Rule rule;
        rule.recipe = recipe;
        rule.activation = true;
        ASSERT_TRUE(quantizes(context, rule, values, Matrix(FP8RT_DTYPE_E4M3, values.extents()),
                              make_scales(rule, values.extents())))
            << dtype_name(dtype) << " in rows of " << columns << ", recipe " << recipe;
      }
    }
  }
}

TEST(QuantizeAll, SignsOfZeroAndNan) {
  const fp8rt::Context context;
  Matrix values(FP8RT_DTYPE_F32, {1, 6}), codes(FP8RT_DTYPE_E4M3, {1, 6}), scales(FP8RT_DTYPE_F32, {1, 1});
  const std::uint32_t bits[] = {0x80000000, 0x00000000, 0xB0000000, 0x7FC00000, 0xFFC00000, 0xFF800001};
  for (int column = 0; column < 6; ++column) {
    values.store(0, 0, column, bits[column]);
  }
  scales.set(0, 0, 1.0f);
  fp8rt_health health{};
  Rule rule;
  rule.activation = true;
  ASSERT_OK(quantize_with_scales(context, rule, values, scales, codes, &health));
  const std::uint8_t want[] = {0x80, 0x00, 0x80, 0x7F, 0x7F, 0x7F};
  for (int column = 0; column < 6; ++column) {
    EXPECT_EQ(int{codes.code(0, column)}, int{want[column]}) << "column " << column;
  }
  EXPECT_EQ(health, (fp8rt_health{3, 0, 1, 0}));
}

TEST(Health, IsAddedTo) {
  const fp8rt::Context context;
  Matrix values(FP8RT_DTYPE_F32, {1, 8}), codes(FP8RT_DTYPE_E4M3, {1, 8}), scales(FP8RT_DTYPE_F32, {1, 1});
  const float given[] = {464.0f, 464.1f, -465.0f, 1e30f, 1e-4f, 0x1p-9f, -7 * 0x1p-9f, std::nanf("")};
  for (int column = 0; column < 8; ++column) {
    values.set(0, column, given[column]);
  }
  scales.set(0, 0, 1.0f);
  fp8rt_health health{100, 200, 300, 400};
  Rule rule;
  rule.activation = true;
  ASSERT_OK(quantize_with_scales(context, rule, values, scales, codes, &health));
  EXPECT_EQ(health, (fp8rt_health{101, 203, 301, 402}));
}

TEST(Health, NothingSaturatesUnderItsOwnScale) {
  const fp8rt::Context context;
  for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
    Rule rule;
    rule.recipe = recipe;
    Matrix values(FP8RT_DTYPE_F32, {300, 300}), codes(FP8RT_DTYPE_E4M3, {300, 300});
    Random(41).fill_hostile(values, false);
    const Matrix scales = make_scales(rule, values.extents());
    fp8rt_health health{};
    ASSERT_OK(quantize(context, rule, values, codes, scales, &health));
    EXPECT_EQ(health.saturated, 0u);
    EXPECT_EQ(health.non_finite, 0u);
    EXPECT_GT(health.became_zero + health.became_subnormal, 0u);
  }
}

// Where the scales of an activation may lie.
struct ScalesPlace {
  const char *label;
  Strides strides;
  std::size_t extra;
};

TEST(ActivationScales, LieWhereTheStridesSayAndOnlyPaddingIsZeroed) {
  const fp8rt::Context context = context_with_threads(2);
  for (const std::int64_t m : {1, 2, 3, 4, 5, 7, 8, 33}) {
    const std::int64_t aligned = ceil_div(m, 4) * 4;
    const auto padding = static_cast<std::size_t>(aligned - m) * 4;
    const ScalesPlace places[] = {
        {"row-major", {3, 1, 0}, 0},
        {"row-major, rows apart", {6, 1, 0}, 12},
        {"column-major, tight", {1, aligned, 0}, 0},
        {"column-major, padded", {1, aligned, 0}, padding},
        {"column-major, one byte short of padding", {1, aligned, 0}, padding == 0 ? 0 : padding - 1},
        {"column-major, apart by 4 more", {1, aligned + 4, 0}, padding},
        {"column-major, far apart and room behind", {1, aligned + 64, 0}, padding + 256},
    };
    for (const ScalesPlace &place : places) {
      Rule rule;
      rule.activation = true;
      rule.recipe = FP8RT_RECIPE_VLLM;
      Matrix values(FP8RT_DTYPE_BF16, {m, 300});
      Random(51).fill_normal(values, 1.0f);
      const Matrix scales(FP8RT_DTYPE_F32, {m, 3}, place.strides, place.extra), codes(FP8RT_DTYPE_E4M3, {m, 300});
      ASSERT_TRUE(quantizes(context, rule, values, codes, scales)) << place.label << ", m = " << m;
      Matrix alone = scales, want = scales;
      oracle_scales(rule, values, want);
      ASSERT_OK(compute_scales(context, rule, values, alone));
      ASSERT_TRUE(same_bytes(alone, want)) << place.label << ", m = " << m;
    }
  }
}

TEST(ActivationScales, PackedLieWhereTheStridesSay) {
  const fp8rt::Context context;
  for (const std::int64_t m : {1, 3, 5, 8}) {
    for (const std::int64_t apart : {0, 4, 64}) {
      Rule rule;
      rule.activation = true;
      rule.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
      Matrix values(FP8RT_DTYPE_BF16, {m, 1100});
      Random(52).fill_normal(values, 1.0f);
      const Matrix scales(FP8RT_DTYPE_INT32, {m, 3}, {1, ceil_div(m, 4) * 4 + apart, 0}),
          codes(FP8RT_DTYPE_E4M3, {m, 1100});
      ASSERT_TRUE(quantizes(context, rule, values, codes, scales)) << m << " rows, " << apart << " apart";
    }
  }
}

TEST(WeightScales, MayHaveAnyStridesThatDoNotOverlap) {
  const fp8rt::Context context;
  const Rule rule;
  Matrix values(FP8RT_DTYPE_BF16, {300, 500, 2});
  Random(53).fill_normal(values, 1.0f);
  const Matrix codes(FP8RT_DTYPE_E4M3, values.extents());
  const Extents extents = scales_extents(rule, values.extents());
  for (const Strides strides : {Strides{5, 1, 16}, {1, 3, 12}, {8, 2, 40}, {8, 2, 1}, {2, 7, 1}}) {
    EXPECT_TRUE(quantizes(context, rule, values, codes, Matrix(FP8RT_DTYPE_F32, extents, strides)))
        << strides.row << ", " << strides.column << ", " << strides.expert;
  }
}

// Packed scales of experts as close as their elements allow: the padding of one expert's last column would be the
// first rows of the next expert, so such strides are refused. Far enough apart they are taken.
TEST(WeightScales, PaddingOfPackedScalesSparesTheNextExpert) {
  const fp8rt::Context context;
  Rule rule;
  rule.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  Matrix values(FP8RT_DTYPE_BF16, {5, 128, 3});
  Random(54).fill_normal(values, 1.0f);
  const Matrix codes(FP8RT_DTYPE_E4M3, values.extents());
  Matrix written = codes, scales(FP8RT_DTYPE_INT32, {5, 1, 3}, {1, 8, 5});
  const Matrix untouched = scales;
  fp8rt_health health{};
  EXPECT_TRUE(failed_with(quantize(context, rule, values, written, scales, &health), FP8RT_STATUS_STRIDE,
                          "fp8rt_quantize_weight", {"5", "8"}));
  EXPECT_TRUE(same_bytes(written, codes));
  EXPECT_TRUE(same_bytes(scales, untouched));
  EXPECT_TRUE(quantizes(context, rule, values, codes, Matrix(FP8RT_DTYPE_INT32, {5, 1, 3}, {1, 8, 8})));
}

class Dequantize : public ::testing::TestWithParam<std::tuple<std::uint32_t, std::uint32_t>> {};

TEST_P(Dequantize, IsTheRoundedProduct) {
  const auto [format, dtype] = GetParam();
  const fp8rt::Context context = context_with_threads(2);
  for (const bool activation : {false, true}) {
    for (const Extents extents : {Extents{1, 1}, {129, 300}, {300, 1030}, {5, 4304}, {130, 140, 2}}) {
      if (activation && extents.experts != 0) {
        continue;
      }
      Rule rule;
      rule.format = format;
      rule.activation = activation;
      Matrix source(FP8RT_DTYPE_F32, extents), codes(FP8RT_DTYPE_E4M3, extents, {extents.columns + 5});
      Random(61).fill_hostile(source, false);
      Matrix scales = make_scales(rule, extents);
      oracle_quantize(rule, source, codes, scales);
      Matrix values(dtype, extents, {extents.columns + 3}), want = values;
      oracle_dequantize(rule, codes, scales, want);
      ASSERT_OK(dequantize(context, rule, codes, scales, values));
      ASSERT_TRUE(same_bytes(values, want)) << extents.rows << "x" << extents.columns;
    }
  }
}

TEST_P(Dequantize, EveryCode) {
  const auto [format, dtype] = GetParam();
  const fp8rt::Context context;
  Rule rule;
  rule.format = format;
  Matrix codes(FP8RT_DTYPE_E4M3, {2, 256}), scales = make_scales(rule, codes.extents());
  codes.each([&](auto expert, auto row, auto column) {
    codes.store(expert, row, column, static_cast<std::uint8_t>(column));
  });
  each_block(rule, codes,
             [&](const Block &block) { store_scale(rule, scales, block, block.group == 0 ? 0.25f : 0x1p-20f); });
  Matrix values(dtype, codes.extents());
  ASSERT_OK(dequantize(context, rule, codes, scales, values));
  for (std::int64_t column = 0; column < 256; ++column) {
    const float want = from_e4m3(static_cast<std::uint8_t>(column)) * (column < 128 ? 0.25f : 0x1p-20f);
    Matrix one(dtype, {1, 1});
    one.set(0, 0, want);
    const float got = values.get(1, column);
    EXPECT_TRUE(bits_of(got) == bits_of(one.get(0, 0)) || (std::isnan(got) && std::isnan(want))) << "code " << column;
  }
}

TEST_P(Dequantize, PartsHaveTheirOwnScales) {
  const auto [format, dtype] = GetParam();
  const fp8rt::Context context;
  Rule rule;
  rule.format = format;
  rule.parts = {192, 64, 256};
  Matrix source(FP8RT_DTYPE_F32, {512, 130}), codes(FP8RT_DTYPE_E4M3, {512, 130});
  Random(62).fill_hostile(source, false);
  Matrix scales = make_scales(rule, source.extents());
  oracle_quantize(rule, source, codes, scales);
  Matrix values(dtype, source.extents()), want = values;
  oracle_dequantize(rule, codes, scales, want);
  ASSERT_OK(dequantize(context, rule, codes, scales, values));
  EXPECT_TRUE(same_bytes(values, want));
}

INSTANTIATE_TEST_SUITE_P(EveryFormatAndType, Dequantize,
                         ::testing::Combine(::testing::Values(0u, 1u, 2u), ::testing::ValuesIn(kFloats)));

// A problem whose bytes depend on rounding and on subnormals, and its right answer.
struct Sensitive {
  Sensitive()
      : values(FP8RT_DTYPE_F32, {300, 700}),
        codes(FP8RT_DTYPE_E4M3, {300, 700}),
        scales(make_scales(rule, {300, 700})) {
    Random(71).fill_hostile(values, true);
    for (std::int64_t column = 0; column < 128; ++column) {
      values.set(0, column, float_of(static_cast<std::uint32_t>(column) * 50000u));
    }
    want_codes = std::make_unique<Matrix>(codes);
    want_scales = std::make_unique<Matrix>(scales);
    want_health = oracle_quantize(rule, values, *want_codes, *want_scales);
  }

  ::testing::AssertionResult check(const fp8rt::Context &context) {
    fp8rt_health health{};
    const fp8rt_status status = quantize(context, rule, values, codes, scales, &health);
    if (status != FP8RT_STATUS_OK || !(health == want_health)) {
      return ::testing::AssertionFailure() << fp8rt_status_name(status) << ", health " << health;
    }
    const ::testing::AssertionResult same = same_bytes(codes, *want_codes);
    return same ? same_bytes(scales, *want_scales) : same;
  }

  Rule rule{};
  Matrix values, codes, scales;
  std::unique_ptr<Matrix> want_codes, want_scales;
  fp8rt_health want_health{};
};

TEST(FloatingPointMode, RoundingOfTheCallerChangesNothing) {
  for (const std::uint32_t threads : {1u, 3u}) {
    const fp8rt::Context context = context_with_threads(threads);
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
      Sensitive problem;
      ASSERT_EQ(fesetround(mode), 0);
      fp8rt_health health{};
      const fp8rt_status status =
          quantize(context, problem.rule, problem.values, problem.codes, problem.scales, &health);
      const int after = fegetround();
      fesetround(FE_TONEAREST);
      EXPECT_EQ(status, FP8RT_STATUS_OK);
      EXPECT_EQ(after, mode);
      EXPECT_TRUE(same_bytes(problem.codes, *problem.want_codes)) << "mode " << mode;
      EXPECT_TRUE(same_bytes(problem.scales, *problem.want_scales)) << "mode " << mode;
      EXPECT_EQ(health, problem.want_health);
    }
  }
}

#if defined(__x86_64__)
TEST(FloatingPointMode, FlushingOfTheCallerChangesNothing) {
  constexpr unsigned kFlush = 0x8000, kDenormalsAreZero = 0x0040;
  for (const std::uint32_t threads : {1u, 3u}) {
    const fp8rt::Context context = context_with_threads(threads);
    for (const unsigned bits : {kFlush, kDenormalsAreZero, kFlush | kDenormalsAreZero}) {
      Sensitive problem;
      const unsigned before = _mm_getcsr(), mode = before | bits;
      _mm_setcsr(mode);
      const fp8rt_status status = quantize(context, problem.rule, problem.values, problem.codes, problem.scales);
      const unsigned after = _mm_getcsr();
      _mm_setcsr(before);
      EXPECT_EQ(status, FP8RT_STATUS_OK);
      EXPECT_EQ(after, mode);
      EXPECT_TRUE(same_bytes(problem.codes, *problem.want_codes)) << "mode " << bits;
      EXPECT_TRUE(same_bytes(problem.scales, *problem.want_scales)) << "mode " << bits;
    }
  }
}

TEST(FloatingPointMode, DequantizeIsTheSameUnderAnyMode) {
  const fp8rt::Context context = context_with_threads(2);
  Sensitive problem;
  ASSERT_TRUE(problem.check(context));
  Matrix values(FP8RT_DTYPE_F32, problem.values.extents()), changed = values;
  ASSERT_OK(dequantize(context, problem.rule, problem.codes, problem.scales, values));
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040 | 0x4000);
  const fp8rt_status status = dequantize(context, problem.rule, problem.codes, problem.scales, changed);
  _mm_setcsr(before);
  EXPECT_EQ(status, FP8RT_STATUS_OK);
  EXPECT_TRUE(same_bytes(changed, values));
}
#endif

TEST(Threads, TheirNumberChangesNoByte) {
  for (const std::uint32_t threads : {1u, 2u, 3u, 7u}) {
    const fp8rt::Context context = context_with_threads(threads);
    Sensitive problem;
    EXPECT_TRUE(problem.check(context)) << threads << " threads";
  }
}

std::vector<const char *> instruction_sets() {
#if defined(__x86_64__)
  std::vector<const char *> sets = {"sse2"};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back("avx2");
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    sets.push_back("avx512");
  }
  return sets;
#else
  return {"neon"};
#endif
}

TEST(InstructionSet, ChangesNoByte) {
  for (const char *name : instruction_sets()) {
    const Environment environment("FP8RT_CPU_ISA", name);
    const fp8rt::Context context = context_with_threads(2);
    for (const std::uint32_t dtype : kFloats) {
      for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
        for (const std::uint32_t format : {0u, 1u, 2u}) {
          Rule rule;
          rule.recipe = recipe;
          rule.format = format;
          rule.activation = recipe % 2 == 1;
          Matrix values(dtype, {133, 523}, {530});
          Random(81).fill_hostile(values, true);
          const Matrix codes(FP8RT_DTYPE_E4M3, values.extents());
          ASSERT_TRUE(quantizes(context, rule, values, codes, make_scales(rule, values.extents())))
              << name << ", " << dtype_name(dtype) << ", recipe " << recipe << ", format " << format;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
