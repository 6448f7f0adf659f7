// Weights: quantize, compute scales, given scales and dequantize, every byte as the host writes it.

#include <gtest/gtest.h>

#include "both.hpp"

namespace fp8rt_test {
namespace {

const Extents kShapes[] = {{1, 1},     {1, 128},  {128, 128}, {130, 256}, {129, 300},  {192, 4096}, {48, 4096},
                           {16, 1024}, {5, 4304}, {3, 127},   {300, 8},   {257, 1029}, {128, 7},    {127, 129}};

class Weights : public ::testing::TestWithParam<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>> {
 protected:
  Rule rule() const { return rule_of(std::get<0>(GetParam()), std::get<1>(GetParam()), false); }
  Matrix values(Extents extents, Strides strides = {}, std::size_t offset = 0) const {
    return Matrix(std::get<2>(GetParam()), extents, strides, 0, offset);
  }
  std::size_t element() const { return element_bytes(std::get<2>(GetParam())); }
};

TEST_P(Weights, OfEveryShape) {
  for (const Extents extents : kShapes) {
    const Operands operands = make_operands(rule(), values(extents), Fill::kSpreadNonFinite);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands)) << describe(rule(), operands.values);
  }
}

TEST_P(Weights, OfModels) {
  for (const Extents extents : {Extents{576, 7168}, {4096, 4096}, {2112, 1536}}) {
    const Operands operands = make_operands(rule(), values(extents), Fill::kSpread);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands)) << describe(rule(), operands.values);
  }
}

// Row strides that keep 16-byte alignment and ones that do not, and first elements aligned to their own size alone.
TEST_P(Weights, AtEveryAlignment) {
  for (const std::int64_t gap : {0, 1, 3, 8, 16, 129}) {
    for (const std::size_t elements : {0, 1, 5, 8}) {
      for (const Extents extents : {Extents{130, 384}, {129, 300}}) {
        const Strides strides{extents.columns + gap};
        Operands operands =
            make_operands(rule(), values(extents, strides, elements * element()), Fill::kSpreadNonFinite);
        operands.codes = make_codes(extents, {extents.columns + 2 * gap}, elements);
        ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands))
            << describe(rule(), operands.values) << ", first element moved by " << elements;
      }
    }
  }
}

TEST_P(Weights, OfExperts) {
  for (const Extents extents : {Extents{130, 260, 3}, {1, 1, 2}, {128, 640, 1}, {256, 512, 8}, {40, 96, 17}}) {
    for (const std::int64_t gap : {0, 9, 16}) {
      const std::int64_t row = extents.columns + gap;
      const Strides strides{row, 1, extents.rows * row + gap};
      Operands operands = make_operands(rule(), values(extents, strides), Fill::kSpreadNonFinite);
      operands.codes = make_codes(extents, {row + gap, 1, extents.rows * (row + gap) + 5 * gap});
      ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands)) << describe(rule(), operands.values);
    }
  }
}

TEST_P(Weights, InParts) {
  for (const std::vector<std::int64_t> &parts :
       {std::vector<std::int64_t>{192, 64, 256}, {1, 510, 1}, {0, 512}, {512}, {128, 128, 256}, {256, 0, 0, 256}}) {
    for (const std::int64_t experts : {0, 3}) {
      Rule rule = this->rule();
      rule.parts = parts;
      const Operands operands = make_operands(rule, values({512, 200, experts}), Fill::kSpreadNonFinite);
      ASSERT_TRUE(same_on_both(Kind::kQuantize, rule, operands)) << describe(rule, operands.values);
    }
  }
}

TEST_P(Weights, OfAnyBits) {
  for (const Extents extents : {Extents{384, 640}, {131, 517}}) {
    const Operands operands = make_operands(rule(), values(extents), Fill::kAnyBits);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands)) << describe(rule(), operands.values);
  }
}

TEST_P(Weights, RandomShapes) {
  Bits bits(next_seed());
  for (int round = 0; round < 12; ++round) {
    const Extents extents{bits.between(1, 700), bits.between(1, 1500)};
    const Strides strides{extents.columns + bits.between(0, 40)};
    const auto offset = static_cast<std::size_t>(bits.between(0, 9)) * element();
    const Operands operands = make_operands(rule(), values(extents, strides, offset), Fill::kSpreadNonFinite);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands)) << describe(rule(), operands.values);
  }
}

TEST_P(Weights, ScalesAlone) {
  for (const Extents extents : {Extents{1, 1}, {130, 256}, {257, 1029}, {48, 4096}, {140, 700, 3}}) {
    const Operands operands = make_operands(rule(), values(extents), Fill::kSpreadNonFinite);
    ASSERT_TRUE(same_on_both(Kind::kCompute, rule(), operands)) << describe(rule(), operands.values);
  }
}

// With the scales that quantize gives, then with scales of any bits.
TEST_P(Weights, WithGivenScales) {
  for (const Extents extents : {Extents{1, 1}, {130, 256}, {257, 1029}, {48, 4096}, {140, 700, 3}}) {
    Operands operands = make_operands(rule(), values(extents), Fill::kSpreadNonFinite);
    ASSERT_OK(call_on_host(function_of(Kind::kCompute, false), rule(), operands, nullptr));
    ASSERT_TRUE(same_on_both(Kind::kWithScales, rule(), operands)) << describe(rule(), operands.values);
    fill(operands.scales, Fill::kAnyBits, 1, next_seed());
    ASSERT_TRUE(same_on_both(Kind::kWithScales, rule(), operands)) << "any scales, "
                                                                  << describe(rule(), operands.values);
  }
}

// The dtype is that of the output here.
TEST_P(Weights, Dequantized) {
  for (const Extents extents : {Extents{1, 1}, {130, 256}, {257, 1029}, {48, 4096}, {140, 700, 3}}) {
    for (const std::size_t elements : {0, 1}) {
      Operands operands = make_operands(rule(), values(extents), Fill::kSpread);
      ASSERT_OK(call_on_host(function_of(Kind::kCompute, false), rule(), operands, nullptr));
      operands.values = values(extents, {extents.columns + static_cast<std::int64_t>(elements)}, elements * element());
      operands.codes = make_codes(extents, {}, elements);
      fill(operands.codes, Fill::kAnyBits, 1, next_seed());
      ASSERT_TRUE(same_on_both(Kind::kDequantize, rule(), operands)) << describe(rule(), operands.values);
    }
  }
}

TEST_P(Weights, DequantizedWithScalesOfAnyBits) {
  Operands operands = make_operands(rule(), values({257, 1029}), Fill::kSpread);
  operands.values = values({257, 1029});
  fill(operands.codes, Fill::kAnyBits, 1, next_seed());
  fill(operands.scales, Fill::kAnyBits, 1, next_seed());
  ASSERT_TRUE(same_on_both(Kind::kDequantize, rule(), operands)) << describe(rule(), operands.values);
}

TEST_P(Weights, UnderFloors) {
  for (const float floor : {0.0f, 1e-40f, 1e-10f, 3.0f, 1e30f}) {
    Rule rule = this->rule();
    rule.has_floor = true;
    rule.floor = floor;
    const Operands operands = make_operands(rule, values({300, 2000}), Fill::kSpreadNonFinite);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule, operands)) << "floor " << floor << ", "
                                                               << describe(rule, operands.values);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Weights,
                         ::testing::Combine(::testing::ValuesIn(kRecipes), ::testing::ValuesIn(kFormats),
                                            ::testing::ValuesIn(kFloats)),
                         [](const auto &info) { return parameter_name(info.param); });

// Scales of FP32 may have any strides that do not overlap.
TEST(WeightScales, LieWhereTheStridesSay) {
  for (const Strides strides : {Strides{5, 1, 16}, {1, 3, 12}, {8, 2, 40}, {8, 2, 1}, {2, 7, 1}}) {
    const Rule rule;
    Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {300, 500, 2}), Fill::kSpread);
    operands.scales = Matrix(FP8RT_DTYPE_F32, scales_extents(rule, operands.values.extents()), strides);
    for (const Kind kind : {Kind::kQuantize, Kind::kCompute}) {
      ASSERT_TRUE(same_on_both(kind, rule, operands)) << strides.row << ", " << strides.column;
    }
  }
}

// Packed exponents: columns farther apart, with the padding of the last one inside the tensor and not.
TEST(WeightScales, PackedWithAndWithoutPadding) {
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 130, 257}) {
    for (const std::int64_t apart : {0, 4, 64}) {
      for (const bool padded : {false, true}) {
        const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_UE8M0_PACKED, false);
        Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {rows, 1300}), Fill::kSpread);
        operands.scales =
            Matrix::column_major(FP8RT_DTYPE_INT32, {rows, 3}, ceil_div(rows, 4) * 4 + apart, padded);
        ASSERT_TRUE(same_on_both(Kind::kQuantize, rule, operands)) << rows << " rows, " << apart << " apart";
        ASSERT_TRUE(same_on_both(Kind::kCompute, rule, operands)) << rows << " rows, " << apart << " apart";
      }
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
