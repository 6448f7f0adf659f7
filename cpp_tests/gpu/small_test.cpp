// Every kernel once at small sizes in tight buffers: for compute-sanitizer, under which everything else is too slow.

#include <gtest/gtest.h>

#include "refit.hpp"

namespace fp8rt_test {
namespace {

// Aligned for the widest loads, and not.
struct Shape {
  Extents extents;
  std::int64_t gap;
};

const Shape kWeightShapes[] = {{{130, 256}, 0}, {{128, 128}, 0}, {{5, 300}, 1}, {{33, 136, 2}, 0}};
const Shape kActivationShapes[] = {{{1, 512}, 0}, {{5, 300}, 1}, {{70, 256}, 0}};

class Small : public ::testing::Test {
 protected:
  void SetUp() override { DeviceMatrix::tight_buffers() = true; }
  void TearDown() override { DeviceMatrix::tight_buffers() = false; }

  static Operands operands_of(const Rule &rule, std::uint32_t dtype, const Shape &shape) {
    const auto offset = static_cast<std::size_t>(shape.gap) * element_bytes(dtype);
    const Strides strides{shape.extents.columns + shape.gap};
    return make_operands(rule, Matrix(dtype, shape.extents, strides, 0, offset), Fill::kSpreadNonFinite, true);
  }
  static void check(Kind kind, const Rule &rule, std::uint32_t dtype, const Shape &shape) {
    Operands operands = operands_of(rule, dtype, shape);
    if (kind == Kind::kWithScales || kind == Kind::kDequantize) {
      ASSERT_OK(call_on_host(function_of(Kind::kQuantize, rule.activation), rule, operands, nullptr));
      if (kind == Kind::kWithScales) {
        operands.codes = make_codes(shape.extents);
      } else {
        operands.values = Matrix(dtype, shape.extents);
      }
    }
    ASSERT_TRUE(same_on_both(kind, rule, operands)) << describe(rule, operands.values);
  }
  static void check_all(Kind kind) {
    for (const std::uint32_t dtype : kFloats) {
      for (const std::uint32_t format : kFormats) {
        for (const Shape &shape : kWeightShapes) {
          check(kind, rule_of(FP8RT_RECIPE_NEMO_RL, format, false), dtype, shape);
        }
        for (const Shape &shape : kActivationShapes) {
          check(kind, rule_of(FP8RT_RECIPE_VLLM, format, true), dtype, shape);
        }
      }
    }
  }
};

TEST_F(Small, Quantize) { check_all(Kind::kQuantize); }

TEST_F(Small, ComputeScales) { check_all(Kind::kCompute); }

TEST_F(Small, GivenScales) { check_all(Kind::kWithScales); }

TEST_F(Small, Dequantize) { check_all(Kind::kDequantize); }

TEST_F(Small, Recipes) {
  for (const std::uint32_t recipe : kRecipes) {
    for (const bool activation : {false, true}) {
      check(Kind::kQuantize, rule_of(recipe, FP8RT_SCALE_FORMAT_FP32, activation), FP8RT_DTYPE_BF16, {{130, 260}, 0});
    }
  }
}

TEST_F(Small, Parts) {
  Rule rule;
  rule.parts = {60, 0, 70};
  check(Kind::kQuantize, rule, FP8RT_DTYPE_BF16, {{130, 260}, 0});
}

class SmallRefit : public Small {};

TEST_F(SmallRefit, CallAndTable) {
  Refit refit(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, 5);
  const Stream stream;
  const fp8rt_quantize_desc desc = refit.desc();
  const WeightTable table(gpu(), desc, refit.entries());
  const DeviceHealth health;
  ASSERT_OK(quantize_weights(gpu(), refit, refit.entries(), health.get(), stream.get()));
  stream.synchronize();
  ASSERT_TRUE(refit.is_right());
  refit.change();
  ASSERT_OK(table.run(health.get(), stream.get()));
  stream.synchronize();
  EXPECT_TRUE(refit.is_right());
}

TEST_F(SmallRefit, FromHost) {
  Refit refit(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, 5);
  const PinnedSources sources(refit);
  const DeviceBuffer staging(refit.least_staging());
  const Stream stream;
  ASSERT_OK(quantize_from_host(gpu(), refit, sources, staging, nullptr, stream.get()));
  stream.synchronize();
  EXPECT_TRUE(refit.is_right());
}

}  // namespace
}  // namespace fp8rt_test
