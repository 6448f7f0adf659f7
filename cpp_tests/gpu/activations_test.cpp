// Activations: every byte as the host writes it, the padding of column-major scales included.

#include <gtest/gtest.h>

#include "both.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kRows[] = {1, 2, 3, 5, 7, 16, 33, 64, 127, 129};
constexpr std::int64_t kColumns[] = {1, 64, 128, 192, 4096, 4304, 7168, 14336};

class Activations : public ::testing::TestWithParam<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>> {
 protected:
  Rule rule() const { return rule_of(std::get<0>(GetParam()), std::get<1>(GetParam()), true); }
  Matrix values(Extents extents, Strides strides = {}, std::size_t offset = 0) const {
    return Matrix(std::get<2>(GetParam()), extents, strides, 0, offset);
  }
  std::size_t element() const { return element_bytes(std::get<2>(GetParam())); }
  void check(Extents extents, bool column_major) const {
    const Operands operands = make_operands(rule(), values(extents), Fill::kSpreadNonFinite, column_major);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands))
        << describe(rule(), operands.values) << (column_major ? ", column-major" : ", row-major");
  }
};

TEST_P(Activations, OfEveryShape) {
  bool column_major = false;
  for (const std::int64_t rows : kRows) {
    for (const std::int64_t columns : kColumns) {
      check({rows, columns}, column_major);
      column_major = !column_major;
    }
    column_major = !column_major;
  }
}

TEST_P(Activations, OfPrefill) {
  for (const Extents extents : {Extents{1000, 4304}, {1000, 192}, {4096, 1}, {4096, 64}, {4096, 4096}}) {
    check(extents, true);
  }
  check({1000, 7168}, false);
}

TEST_P(Activations, AtEveryAlignment) {
  for (const std::int64_t gap : {0, 1, 3, 8, 129}) {
    for (const std::size_t elements : {0, 1, 5, 8}) {
      for (const Extents extents : {Extents{5, 384}, {70, 300}}) {
        Operands operands =
            make_operands(rule(), values(extents, {extents.columns + gap}, elements * element()), Fill::kSpread, true);
        operands.codes = make_codes(extents, {extents.columns + 2 * gap}, elements);
        ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands))
            << describe(rule(), operands.values) << ", first element moved by " << elements;
      }
    }
  }
}

TEST_P(Activations, OfAnyBits) {
  for (const Extents extents : {Extents{3, 640}, {257, 1029}}) {
    const Operands operands = make_operands(rule(), values(extents), Fill::kAnyBits);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands)) << describe(rule(), operands.values);
  }
}

TEST_P(Activations, RandomShapes) {
  Bits bits(next_seed());
  for (int round = 0; round < 12; ++round) {
    const Extents extents{bits.between(1, 300), bits.between(1, 3000)};
    const Strides strides{extents.columns + bits.between(0, 40)};
    const auto offset = static_cast<std::size_t>(bits.between(0, 9)) * element();
    const Operands operands =
        make_operands(rule(), values(extents, strides, offset), Fill::kSpreadNonFinite, round % 2 == 0);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule(), operands)) << describe(rule(), operands.values);
  }
}

TEST_P(Activations, ScalesAlone) {
  for (const Extents extents : {Extents{1, 1}, {7, 300}, {130, 4304}, {33, 14336}}) {
    for (const bool column_major : {false, true}) {
      const Operands operands = make_operands(rule(), values(extents), Fill::kSpreadNonFinite, column_major);
      ASSERT_TRUE(same_on_both(Kind::kCompute, rule(), operands)) << describe(rule(), operands.values);
    }
  }
}

TEST_P(Activations, WithGivenScales) {
  for (const Extents extents : {Extents{1, 1}, {7, 300}, {130, 4304}, {33, 14336}}) {
    for (const bool column_major : {false, true}) {
      Operands operands = make_operands(rule(), values(extents), Fill::kSpreadNonFinite, column_major);
      ASSERT_OK(call_on_host(function_of(Kind::kCompute, true), rule(), operands, nullptr));
      ASSERT_TRUE(same_on_both(Kind::kWithScales, rule(), operands)) << describe(rule(), operands.values);
      fill(operands.scales, Fill::kAnyBits, 1, next_seed());
      ASSERT_TRUE(same_on_both(Kind::kWithScales, rule(), operands)) << "any scales, "
                                                                    << describe(rule(), operands.values);
    }
  }
}

// The dtype is that of the output here.
TEST_P(Activations, Dequantized) {
  for (const Extents extents : {Extents{1, 1}, {7, 300}, {130, 4304}, {33, 14336}}) {
    for (const bool column_major : {false, true}) {
      Operands operands = make_operands(rule(), values(extents), Fill::kSpread, column_major);
      ASSERT_OK(call_on_host(function_of(Kind::kCompute, true), rule(), operands, nullptr));
      operands.values = values(extents, {extents.columns + 1}, element());
      fill(operands.codes, Fill::kAnyBits, 1, next_seed());
      ASSERT_TRUE(same_on_both(Kind::kDequantize, rule(), operands)) << describe(rule(), operands.values);
    }
  }
}

TEST_P(Activations, DequantizedWithScalesOfAnyBits) {
  Operands operands = make_operands(rule(), values({130, 1029}), Fill::kSpread);
  operands.values = values({130, 1029});
  fill(operands.codes, Fill::kAnyBits, 1, next_seed());
  fill(operands.scales, Fill::kAnyBits, 1, next_seed());
  ASSERT_TRUE(same_on_both(Kind::kDequantize, rule(), operands)) << describe(rule(), operands.values);
}

TEST_P(Activations, UnderFloors) {
  for (const float floor : {0.0f, 1e-40f, 1e-10f, 3.0f, 1e30f}) {
    Rule rule = this->rule();
    rule.has_floor = true;
    rule.floor = floor;
    const Operands operands = make_operands(rule, values({37, 2000}), Fill::kSpreadNonFinite);
    ASSERT_TRUE(same_on_both(Kind::kQuantize, rule, operands)) << "floor " << floor << ", "
                                                               << describe(rule, operands.values);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Activations,
                         ::testing::Combine(::testing::ValuesIn(kRecipes), ::testing::ValuesIn(kFormats),
                                            ::testing::ValuesIn(kFloats)),
                         [](const auto &info) { return parameter_name(info.param); });

// Where the scales may lie, and how far their memory reaches.
struct Place {
  const char *label;
  Strides strides;
  std::size_t extra;
};

std::vector<Place> places(std::int64_t rows, std::int64_t columns) {
  const std::int64_t aligned = ceil_div(rows, 4) * 4;
  const auto padding = static_cast<std::size_t>(aligned - rows) * 4;
  return {{"row-major", {columns, 1, 0}, 0},
          {"row-major, rows apart", {columns + 3, 1, 0}, 12},
          {"column-major, tight", {1, aligned, 0}, 0},
          {"column-major, padded", {1, aligned, 0}, padding},
          {"column-major, one byte short of padding", {1, aligned, 0}, padding == 0 ? 0 : padding - 1},
          {"column-major, 4 more apart", {1, aligned + 4, 0}, padding},
          {"column-major, far apart, room behind", {1, aligned + 64, 0}, padding + 256}};
}

// Rows of padding are zeroed as far as the tensor reaches, and nothing else is touched.
TEST(ActivationScales, LieWhereTheStridesSay) {
  for (const std::int64_t rows : {1, 2, 3, 4, 5, 7, 8, 33, 65, 1001}) {
    for (const std::int64_t columns : {300, 4096}) {
      for (const Place &place : places(rows, ceil_div(columns, 128))) {
        const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
        Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {rows, columns}), Fill::kSpread);
        operands.scales = Matrix(FP8RT_DTYPE_F32, {rows, ceil_div(columns, 128)}, place.strides, place.extra);
        for (const Kind kind : {Kind::kQuantize, Kind::kCompute}) {
          ASSERT_TRUE(same_on_both(kind, rule, operands)) << place.label << ", " << rows << " rows";
        }
      }
    }
  }
}

TEST(ActivationScales, PackedLieWhereTheStridesSay) {
  for (const std::int64_t rows : {1, 3, 5, 8, 130}) {
    for (const std::int64_t columns : {100, 512, 1100}) {
      for (const std::int64_t apart : {0, 4, 64}) {
        for (const bool padded : {false, true}) {
          const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_UE8M0_PACKED, true);
          Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {rows, columns}), Fill::kSpread);
          operands.scales = Matrix::column_major(FP8RT_DTYPE_INT32, {rows, ceil_div(columns, 512)},
                                                 ceil_div(rows, 4) * 4 + apart, padded);
          for (const Kind kind : {Kind::kQuantize, Kind::kCompute}) {
            ASSERT_TRUE(same_on_both(kind, rule, operands)) << rows << "x" << columns << ", " << apart << " apart";
          }
        }
      }
    }
  }
}

// I2: what lies in the padding of given scales changes nothing.
TEST(ActivationScales, PaddingIsNotRead) {
  for (const std::uint32_t format : {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_UE8M0_PACKED}) {
    const Rule rule = rule_of(FP8RT_RECIPE_VLLM, format, true);
    Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {5, 1100}), Fill::kSpread, true);
    ASSERT_OK(call_on_host(function_of(Kind::kQuantize, true), rule, operands, nullptr));
    Operands poisoned = operands;
    for (std::int64_t column = 0; column < operands.scales.columns(); ++column) {
      for (std::int64_t row = 5; row < 8; ++row) {
        poisoned.scales.store(0, row, column, 0xFFFFFFFFu);
      }
    }
    for (const Kind kind : {Kind::kWithScales, Kind::kDequantize}) {
      Operands want = operands, given = poisoned;
      Matrix Operands::*const output = kind == Kind::kWithScales ? &Operands::codes : &Operands::values;
      given.*output = want.*output = Matrix((operands.*output).dtype(), {5, 1100});
      ASSERT_OK(call_on_host(function_of(kind, true), rule, want, nullptr));
      want.scales = given.scales;
      const DeviceOperands device(given);
      const Stream stream;
      ASSERT_OK(device.call(function_of(kind, true), rule, nullptr, stream.get()));
      stream.synchronize();
      EXPECT_TRUE(device.same(want)) << "format " << format;
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
