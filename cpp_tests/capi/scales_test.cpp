// Shapes of scales, and computing scales alone.

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr const char *kWeightLayout = "fp8rt_weight_scales_layout";
constexpr const char *kActivationLayout = "fp8rt_activation_scales_layout";

fp8rt_tensor weight_layout(const Rule &rule, std::int64_t experts, std::int64_t n, std::int64_t k) {
  const fp8rt_quantize_desc desc = rule.desc();
  fp8rt_tensor scales;
  std::memset(&scales, kPoison, sizeof scales);
  EXPECT_OK(fp8rt_weight_scales_layout(&desc, experts, n, k, &scales));
  return scales;
}

fp8rt_tensor activation_layout(const Rule &rule, std::uint32_t layout, std::int64_t m, std::int64_t k) {
  const fp8rt_quantize_desc desc = rule.desc();
  fp8rt_tensor scales;
  std::memset(&scales, kPoison, sizeof scales);
  EXPECT_OK(fp8rt_activation_scales_layout(&desc, layout, m, k, &scales));
  return scales;
}

void expect_layout(const fp8rt_tensor &scales, std::uint32_t dtype, std::vector<std::int64_t> shape,
                   std::vector<std::int64_t> stride, std::uint64_t bytes) {
  EXPECT_EQ(scales.data, nullptr);
  EXPECT_EQ(scales.device, -1);
  EXPECT_EQ(scales.reserved, 0u);
  EXPECT_EQ(scales.dtype, dtype);
  ASSERT_EQ(scales.rank, shape.size());
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    EXPECT_EQ(scales.shape[axis], shape[axis]) << "axis " << axis;
    EXPECT_EQ(scales.stride[axis], stride[axis]) << "axis " << axis;
  }
  EXPECT_EQ(scales.bytes, bytes);
}

TEST(WeightScalesLayout, OneScaleForEachBlock) {
  for (const std::uint32_t format : {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2}) {
    Rule rule;
    rule.format = format;
    expect_layout(weight_layout(rule, 0, 4096, 7168), FP8RT_DTYPE_F32, {32, 56}, {56, 1}, 32 * 56 * 4);
    expect_layout(weight_layout(rule, 0, 130, 257), FP8RT_DTYPE_F32, {2, 3}, {3, 1}, 24);
    expect_layout(weight_layout(rule, 0, 1, 1), FP8RT_DTYPE_F32, {1, 1}, {1, 1}, 4);
    expect_layout(weight_layout(rule, 3, 130, 257), FP8RT_DTYPE_F32, {3, 2, 3}, {6, 3, 1}, 72);
  }
}

TEST(WeightScalesLayout, EachPartBeginsAGrid) {
  Rule rule;
  rule.parts = {192, 64, 256};
  expect_layout(weight_layout(rule, 0, 512, 300), FP8RT_DTYPE_F32, {5, 3}, {3, 1}, 60);
  rule.parts = {0, 512, 0};
  expect_layout(weight_layout(rule, 0, 512, 300), FP8RT_DTYPE_F32, {4, 3}, {3, 1}, 48);
}

TEST(WeightScalesLayout, PackedScalesAreOneForEachRow) {
  Rule rule;
  rule.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  expect_layout(weight_layout(rule, 0, 576, 7168), FP8RT_DTYPE_INT32, {576, 14}, {1, 576}, 576 * 14 * 4);
  expect_layout(weight_layout(rule, 0, 6, 513), FP8RT_DTYPE_INT32, {6, 2}, {1, 8}, 64);
  expect_layout(weight_layout(rule, 2, 6, 513), FP8RT_DTYPE_INT32, {2, 6, 2}, {16, 1, 8}, 128);
}

TEST(WeightScalesLayout, NothingHasNoScales) {
  const Rule rule;
  expect_layout(weight_layout(rule, 0, 0, 4096), FP8RT_DTYPE_F32, {0, 32}, {32, 1}, 0);
  EXPECT_EQ(weight_layout(rule, 0, 4096, 0).bytes, 0u);
}

TEST(ActivationScalesLayout, OneScaleForEachGroupOfARow) {
  Rule rule;
  rule.activation = true;
  const std::uint32_t row = FP8RT_SCALE_LAYOUT_ROW_MAJOR, column = FP8RT_SCALE_LAYOUT_COLUMN_MAJOR;
  expect_layout(activation_layout(rule, row, 5, 300), FP8RT_DTYPE_F32, {5, 3}, {3, 1}, 60);
  expect_layout(activation_layout(rule, column, 5, 300), FP8RT_DTYPE_F32, {5, 3}, {1, 8}, 96);
  expect_layout(activation_layout(rule, column, 8, 4304), FP8RT_DTYPE_F32, {8, 34}, {1, 8}, 34 * 32);
  rule.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  expect_layout(activation_layout(rule, column, 5, 4304), FP8RT_DTYPE_INT32, {5, 9}, {1, 8}, 9 * 32);
  EXPECT_EQ(activation_layout(rule, column, 0, 4304).bytes, 0u);
}

// What the layout says is what the quantizer takes.
TEST(ScalesLayout, IsTakenByTheQuantizer) {
  const fp8rt::Context context;
  for (const std::uint32_t format :
       {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2, FP8RT_SCALE_FORMAT_UE8M0_PACKED}) {
    Rule rule;
    rule.format = format;
    Matrix weight(FP8RT_DTYPE_BF16, {133, 700, 3}), codes(FP8RT_DTYPE_E4M3, {133, 700, 3});
    Random(3).fill_normal(weight, 1.0f);
    Matrix want = make_scales(rule, weight.extents());
    oracle_scales(rule, weight, want);
    const fp8rt_quantize_desc desc = rule.desc();
    fp8rt_tensor scales = weight_layout(rule, 3, 133, 700);
    std::vector<std::uint8_t> memory(scales.bytes, kPoison);
    scales.data = memory.data();
    const fp8rt_tensor weight_view = weight.tensor(), codes_view = codes.tensor();
    ASSERT_OK(fp8rt_quantize_weight(context.get(), &desc, &weight_view, &codes_view, &scales, nullptr, nullptr));
    ASSERT_EQ(scales.bytes, want.bytes());
    EXPECT_EQ(std::memcmp(memory.data(), want.data(), memory.size()), 0) << "format " << format;
  }
}

struct Refusal {
  const char *label;
  std::int64_t experts, n, k;
  std::uint32_t recipe, format, flags;
  std::vector<std::int64_t> parts;
  fp8rt_status status;
  std::vector<std::string> texts;
};

TEST(WeightScalesLayout, RefusesWhatCannotBe) {
  constexpr std::int64_t kHuge = INT64_MAX;
  const Refusal refusals[] = {
      {"negative n", 0, -1, 128, 0, 0, 0, {}, FP8RT_STATUS_SHAPE, {"n is -1"}},
      {"negative k", 0, 128, -7, 0, 0, 0, {}, FP8RT_STATUS_SHAPE, {"k is -7"}},
      {"negative experts", -2, 128, 128, 0, 0, 0, {}, FP8RT_STATUS_SHAPE, {"experts is -2"}},
      {"more than memory", kHuge, kHuge, kHuge, 0, 0, 0, {}, FP8RT_STATUS_SHAPE, {"address space"}},
      {"more packed than memory", 1, kHuge, kHuge, 0, 2, 0, {}, FP8RT_STATUS_SHAPE, {"address space"}},
      {"recipe", 0, 128, 128, 5, 0, 0, {}, FP8RT_STATUS_INVALID_ARGUMENT, {"recipe is 5", "4"}},
      {"recipe far off", 0, 128, 128, UINT32_MAX, 0, 0, {}, FP8RT_STATUS_INVALID_ARGUMENT, {"4294967295"}},
      {"format", 0, 128, 128, 0, 3, 0, {}, FP8RT_STATUS_INVALID_ARGUMENT, {"scale_format is 3", "2"}},
      {"flags", 0, 128, 128, 0, 0, 2, {}, FP8RT_STATUS_INVALID_ARGUMENT, {"0x2", "0x1"}},
      {"parts", 0, 128, 128, 0, 0, 0, {64, 63}, FP8RT_STATUS_SHAPE, {"127", "128"}},
      {"negative part", 0, 128, 128, 0, 0, 0, {129, -1}, FP8RT_STATUS_INVALID_ARGUMENT, {"part_rows[1]", "-1"}},
      {"parts that overflow", 0, 128, 128, 0, 0, 0, {kHuge, kHuge}, FP8RT_STATUS_SHAPE, {"128"}},
  };
  for (const Refusal &refusal : refusals) {
    Rule rule;
    rule.recipe = refusal.recipe;
    rule.format = refusal.format;
    rule.parts = refusal.parts;
    fp8rt_quantize_desc desc = rule.desc();
    desc.flags = refusal.flags;
    fp8rt_tensor scales, before;
    std::memset(&scales, kPoison, sizeof scales);
    before = scales;
    const fp8rt_status got = fp8rt_weight_scales_layout(&desc, refusal.experts, refusal.n, refusal.k, &scales);
    EXPECT_TRUE(failed_with(got, refusal.status, kWeightLayout, refusal.texts)) << refusal.label;
    EXPECT_EQ(std::memcmp(&scales, &before, sizeof scales), 0) << refusal.label;
  }
}

TEST(ActivationScalesLayout, RefusesWhatCannotBe) {
  Rule packed;
  packed.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  fp8rt_quantize_desc desc = packed.desc();
  fp8rt_tensor scales{};
  const auto refused = [&](std::uint32_t layout, std::int64_t m, std::int64_t k, fp8rt_status status,
                           const std::vector<std::string> &texts) {
    return failed_with(fp8rt_activation_scales_layout(&desc, layout, m, k, &scales), status, kActivationLayout,
                       texts);
  };
  EXPECT_TRUE(
      refused(FP8RT_SCALE_LAYOUT_ROW_MAJOR, 4, 4, FP8RT_STATUS_INVALID_ARGUMENT, {"ROW_MAJOR", "COLUMN_MAJOR"}));
  desc = Rule{}.desc();
  EXPECT_TRUE(refused(2, 4, 4, FP8RT_STATUS_INVALID_ARGUMENT, {"layout is 2", "1"}));
  EXPECT_TRUE(refused(UINT32_MAX, 4, 4, FP8RT_STATUS_INVALID_ARGUMENT, {"4294967295"}));
  EXPECT_TRUE(refused(0, -1, 4, FP8RT_STATUS_SHAPE, {"m is -1"}));
  EXPECT_TRUE(refused(0, 4, -1, FP8RT_STATUS_SHAPE, {"k is -1"}));
  EXPECT_TRUE(refused(0, INT64_MAX, INT64_MAX, FP8RT_STATUS_SHAPE, {"address space"}));
  EXPECT_TRUE(refused(0, INT64_MAX, 1, FP8RT_STATUS_SHAPE, {"address space"}));
  EXPECT_TRUE(refused(1, INT64_MAX, 128, FP8RT_STATUS_SHAPE, {"address space"}));
  const std::int64_t part = 4;
  desc.num_parts = 1;
  desc.part_rows = &part;
  EXPECT_TRUE(refused(0, 4, 4, FP8RT_STATUS_INVALID_ARGUMENT, {"num_parts is 1"}));
  desc = Rule{}.desc();
  EXPECT_TRUE(failed_with(fp8rt_activation_scales_layout(&desc, 0, 1, 1, nullptr), FP8RT_STATUS_NULL_POINTER,
                          kActivationLayout, {"scales"}));
  EXPECT_TRUE(failed_with(fp8rt_weight_scales_layout(&desc, 0, 1, 1, nullptr), FP8RT_STATUS_NULL_POINTER,
                          kWeightLayout, {"scales"}));
}

class ComputeScales : public ::testing::TestWithParam<std::tuple<std::uint32_t, std::uint32_t>> {
 protected:
  Rule rule(bool activation) const {
    Rule rule;
    std::tie(rule.recipe, rule.format) = GetParam();
    rule.activation = activation;
    return rule;
  }
  fp8rt::Context context_ = context_with_threads(2);
};

TEST_P(ComputeScales, AreThoseOfTheTable) {
  for (const bool activation : {false, true}) {
    for (const Extents extents : {Extents{1, 1}, {129, 300}, {258, 1030}}) {
      for (const std::uint32_t dtype : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32}) {
        const Rule rule = this->rule(activation);
        Matrix values(dtype, extents, {extents.columns + 5});
        Random(11).fill_hostile(values, true);
        Matrix scales = make_scales(rule, extents, activation), want = scales;
        oracle_scales(rule, values, want);
        ASSERT_OK(compute_scales(context_, rule, values, scales));
        ASSERT_TRUE(same_bytes(scales, want)) << dtype_name(dtype);
      }
    }
  }
}

TEST_P(ComputeScales, AreThoseOfQuantize) {
  for (const bool activation : {false, true}) {
    const Rule rule = this->rule(activation);
    Matrix values(FP8RT_DTYPE_F32, {140, 900});
    Random(12).fill_hostile(values, true);
    Matrix codes(FP8RT_DTYPE_E4M3, values.extents());
    Matrix alone = make_scales(rule, values.extents()), together = alone;
    ASSERT_OK(compute_scales(context_, rule, values, alone));
    ASSERT_OK(quantize(context_, rule, values, codes, together));
    EXPECT_TRUE(same_bytes(alone, together));
  }
}

// Each power of two that float32 has, and the mantissas where a scale or its rounding changes.
std::vector<float> sweep() {
  std::vector<float> values = {0.0f, 448.0f, 464.0f, 1e-10f, 1e-4f};
  for (std::uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (const std::uint32_t mantissa : {0u, 1u, 0x400000u, 0x5FFFFFu, 0x600000u, 0x600001u, 0x7FFFFFu}) {
      values.push_back(float_of(exponent << 23 | mantissa));
    }
  }
  return values;
}

TEST_P(ComputeScales, OverAllExponentsOfAmax) {
  const std::vector<float> amaxes = sweep();
  for (const float floor : {-1.0f, 0.0f, 1e-40f, 3.0f}) {
    Rule rule = this->rule(true);
    rule.has_floor = floor >= 0;
    rule.floor = floor;
    Matrix values(FP8RT_DTYPE_F32, {static_cast<std::int64_t>(amaxes.size()), 3});
    for (std::size_t row = 0; row < amaxes.size(); ++row) {
      const auto at = static_cast<std::int64_t>(row);
      values.set(at, 0, amaxes[row] / 3);
      values.set(at, 1, -amaxes[row]);
      values.set(at, 2, 0);
    }
    Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents());
    Matrix want_codes = codes, want_scales = scales;
    oracle_quantize(rule, values, want_codes, want_scales);
    ASSERT_OK(quantize(context_, rule, values, codes, scales));
    ASSERT_TRUE(same_bytes(scales, want_scales)) << "floor " << floor;
    ASSERT_TRUE(same_bytes(codes, want_codes)) << "floor " << floor;
    for (std::size_t row = 0; row < amaxes.size() && !rule.packed(); ++row) {
      const float scale = scales.get(static_cast<std::int64_t>(row), 0);
      ASSERT_TRUE(std::isfinite(scale) && scale > 0) << "amax " << amaxes[row];
      ASSERT_NE(codes.code(static_cast<std::int64_t>(row), 1) & 0x7F, 0x7F) << "amax " << amaxes[row];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryRecipeAndFormat, ComputeScales,
                         ::testing::Combine(::testing::Values(1u, 2u, 3u, 4u), ::testing::Values(0u, 1u, 2u)));

TEST(ComputeScalesOf, NoDescriptorMeansTheDefaults) {
  const fp8rt::Context context;
  Matrix values(FP8RT_DTYPE_BF16, {130, 140});
  Random(13).fill_normal(values, 1.0f);
  const fp8rt_tensor values_view = values.tensor();
  for (const bool activation : {false, true}) {
    Rule rule;
    rule.activation = activation;
    rule.recipe = activation ? FP8RT_RECIPE_VLLM : FP8RT_RECIPE_NEMO_RL;
    Matrix scales = make_scales(rule, values.extents()), want = scales;
    oracle_scales(rule, values, want);
    const fp8rt_tensor scales_view = scales.tensor();
    const auto compute = activation ? fp8rt_compute_activation_scales : fp8rt_compute_weight_scales;
    ASSERT_OK(compute(context.get(), nullptr, &values_view, &scales_view, nullptr));
    EXPECT_TRUE(same_bytes(scales, want));
  }
}

}  // namespace
}  // namespace fp8rt_test
