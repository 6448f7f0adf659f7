// The fused producers equal the unfused export followed by quantize, byte for byte; the unfused ones are near float64.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "fused.hpp"

namespace fp8rt_test {
namespace {

constexpr Producer kProducers[] = {Producer::kSilu, Producer::kNorm, Producer::kNormWithResidual};

::testing::AssertionResult fused_is_unfused(const Rule &rule, const Inputs &inputs, bool column_major) {
  const Extents extents = inputs.extents();
  const Produced empty{make_codes(extents, {extents.columns + 3}), make_scales(rule, extents, column_major),
                       inputs.residual, {}};
  Produced fused = empty, unfused = empty;
  Matrix output(inputs.input.dtype(), extents);
  const auto first = run_fused(rule, inputs, fused), second = run_unfused(rule, inputs, unfused, output);
  return all_of({{"", first}, {"", second}, {"fused and unfused", same_product(fused, unfused)}});
}

class Fused : public ::testing::TestWithParam<std::tuple<Producer, std::uint32_t>> {
 protected:
  Producer producer() const { return std::get<0>(GetParam()); }
  std::uint32_t dtype() const { return std::get<1>(GetParam()); }
};

TEST_P(Fused, EqualsUnfusedForEveryShape) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  bool column_major = false;
  for (const std::int64_t rows : {1, 2, 3, 7, 16, 33, 127, 1000}) {
    for (const std::int64_t columns : {1, 64, 128, 192, 4096, 4304, 14336}) {
      const Inputs inputs = make_inputs(producer(), dtype(), {rows, columns}, Fill::kPlain);
      ASSERT_TRUE(fused_is_unfused(rule, inputs, column_major)) << rows << "x" << columns;
      column_major = !column_major;
    }
  }
}

TEST_P(Fused, EqualsUnfusedForEveryRecipeAndFormat) {
  for (const std::uint32_t recipe : kRecipes) {
    for (const std::uint32_t format : kFormats) {
      for (const Extents extents : {Extents{5, 4304}, {130, 1024}}) {
        const Inputs inputs = make_inputs(producer(), dtype(), extents, Fill::kPlain);
        ASSERT_TRUE(fused_is_unfused(rule_of(recipe, format, true), inputs, true))
            << "recipe " << recipe << ", format " << format;
      }
    }
  }
}

TEST_P(Fused, EqualsUnfusedForHostileValues) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  for (const Fill kind : {Fill::kSpread, Fill::kSpreadNonFinite, Fill::kAnyBits}) {
    for (const Extents extents : {Extents{7, 300}, {130, 4096}}) {
      const Inputs inputs = make_inputs(producer(), dtype(), extents, kind);
      ASSERT_TRUE(fused_is_unfused(rule, inputs, true)) << extents.rows << "x" << extents.columns;
    }
  }
}

TEST_P(Fused, EqualsUnfusedAtEveryAlignment) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  for (const std::int64_t gap : {1, 3, 8, 16}) {
    for (const Extents extents : {Extents{5, 384}, {70, 300}}) {
      const Inputs inputs = make_inputs(producer(), dtype(), extents, Fill::kPlain, gap);
      ASSERT_TRUE(fused_is_unfused(rule, inputs, false)) << "rows " << gap << " apart";
    }
  }
}

// I1: a row of NaN changes no other row.
TEST_P(Fused, ARowOfNanStaysAlone) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  const Extents extents{9, 4096};
  Inputs inputs = make_inputs(producer(), dtype(), extents, Fill::kPlain);
  const Produced empty{make_codes(extents), make_scales(rule, extents), inputs.residual, {}};
  Produced before = empty, after = empty;
  ASSERT_TRUE(run_fused(rule, inputs, before));
  for (std::int64_t column = 0; column < inputs.input.columns(); ++column) {
    inputs.input.set(4, column, std::nanf(""));
  }
  ASSERT_TRUE(run_fused(rule, inputs, after));
  for (std::int64_t column = 0; column < extents.columns; ++column) {
    EXPECT_EQ(after.codes.code(4, column), 0x7F);
    after.codes.store(0, 4, column, before.codes.code(4, column));
  }
  EXPECT_TRUE(same_bytes(after.codes, before.codes));
}

TEST_P(Fused, NoRowsSucceed) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  EXPECT_TRUE(fused_is_unfused(rule, make_inputs(producer(), dtype(), {0, 128}, Fill::kPlain), true));
}

// Bits as a number that counts the values of the type between two of them.
std::int64_t place_of(const Matrix &matrix, std::int64_t row, std::int64_t column) {
  const bool wide = matrix.dtype() == FP8RT_DTYPE_F32;
  const std::uint32_t bits =
      wide ? matrix.load<std::uint32_t>(0, row, column) : matrix.load<std::uint16_t>(0, row, column);
  const std::uint32_t sign = wide ? 0x80000000u : 0x8000u;
  const auto magnitude = static_cast<std::int64_t>(bits & ~sign);
  return bits & sign ? -magnitude : magnitude;
}

// One element of a type, for rounding and for its neighbors.
class Element {
 public:
  Element(std::uint32_t dtype, double value) : matrix_(dtype, {1, 1}) { matrix_.set(0, 0, static_cast<float>(value)); }

  std::int64_t place() const { return place_of(matrix_, 0, 0); }
  double value() const { return static_cast<double>(matrix_.get(0, 0)); }
  Element moved(int steps) const {
    const double toward = steps > 0 ? 1 : -1;
    Element other(*this);
    if (matrix_.dtype() == FP8RT_DTYPE_F32) {
      other.matrix_.set(0, 0, std::nextafterf(matrix_.get(0, 0), static_cast<float>(toward) * INFINITY));
    } else {
      const std::int64_t to = place() + steps;
      const auto magnitude = static_cast<std::uint16_t>(std::abs(to));
      other.matrix_.store(0, 0, 0, static_cast<std::uint16_t>(magnitude | (to < 0 ? 0x8000u : 0u)));
    }
    return other;
  }

 private:
  Matrix matrix_;
};

// Whether a result is within a step of `first * second` in float64, where the type may hold `first` rounded in between,
// itself a step to either side. Steps of float32 are finer than its functions are exact: 32 of them.
bool is_near(const Matrix &got, std::int64_t row, std::int64_t column, double first, double second) {
  const std::int64_t steps = got.dtype() == FP8RT_DTYPE_F32 ? 32 : 1, place = place_of(got, row, column);
  if (std::fabs(static_cast<double>(got.get(row, column)) - first * second) < 1e-30) {
    return true;
  }
  if (std::abs(place - Element(got.dtype(), first * second).place()) <= steps) {
    return true;
  }
  const Element between(got.dtype(), first);
  const double candidates[] = {between.value(), between.moved(1).value(), between.moved(-1).value()};
  for (const double candidate : candidates) {
    if (std::abs(place - Element(got.dtype(), candidate * second).place()) <= steps) {
      return true;
    }
  }
  return false;
}

void expect_near_silu(const Inputs &inputs, const Matrix &output) {
  output.each([&](auto, auto row, auto column) {
    const double gate = static_cast<double>(inputs.input.get(row, column)),
                 up = static_cast<double>(inputs.input.get(row, column + output.columns()));
    ASSERT_TRUE(is_near(output, row, column, gate / (1 + std::exp(-gate)), up))
        << row << ", " << column << ": silu(" << gate << ") * " << up << " gave " << output.get(row, column);
  });
}

// `residual` is what the call left there, or the input where there is none.
void expect_near_norm(const Inputs &inputs, const Matrix &residual, const Matrix &output) {
  for (std::int64_t row = 0; row < output.rows(); ++row) {
    double squares = 0;
    for (std::int64_t column = 0; column < output.columns(); ++column) {
      squares += std::pow(static_cast<double>(residual.get(row, column)), 2);
    }
    const double factor =
        1 / std::sqrt(squares / static_cast<double>(output.columns()) + static_cast<double>(kEpsilon));
    for (std::int64_t column = 0; column < output.columns(); ++column) {
      const double x = static_cast<double>(residual.get(row, column));
      ASSERT_TRUE(is_near(output, row, column, x * factor, static_cast<double>(inputs.weight.get(0, column))))
          << row << ", " << column << ": x " << x << " gave " << output.get(row, column);
    }
  }
}

// The sum that the residual becomes: added in float32, rounded to the type.
Matrix expected_residual(const Inputs &inputs) {
  Matrix sum = inputs.residual;
  sum.each([&](auto, auto row, auto column) {
    sum.set(row, column, inputs.input.get(row, column) + inputs.residual.get(row, column));
  });
  return sum;
}

TEST_P(Fused, UnfusedIsNearFloat64) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  for (const Extents extents : {Extents{1, 1}, {3, 192}, {17, 4304}, {5, 14336}}) {
    Inputs inputs = make_inputs(producer(), dtype(), extents, Fill::kPlain);
    Random random(static_cast<std::uint32_t>(next_seed()));
    for (std::int64_t column = 0; column < extents.columns; column += 3) {
      inputs.input.set(0, column, random.uniform(-60, 60));
    }
    Produced produced{make_codes(extents), make_scales(rule, extents), inputs.residual, {}};
    Matrix output(dtype(), extents);
    ASSERT_TRUE(run_unfused(rule, inputs, produced, output));
    if (producer() == Producer::kSilu) {
      expect_near_silu(inputs, output);
    } else {
      const bool has_residual = producer() == Producer::kNormWithResidual;
      const Matrix want = has_residual ? expected_residual(inputs) : inputs.residual;
      EXPECT_TRUE(same_bytes(produced.residual, want));
      expect_near_norm(inputs, has_residual ? produced.residual : inputs.input, output);
    }
  }
}

// The host keeps the same promises; its bytes need not be the GPU's, since exp and the order of a sum may differ.
TEST_P(Fused, HostIsNearFloat64AndFusesTheSame) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  const Extents extents{7, 4304};
  const Inputs inputs = make_inputs(producer(), dtype(), extents, Fill::kPlain);
  Inputs fused = inputs, unfused = inputs;
  Matrix output(dtype(), extents);
  Operands want{output, make_codes(extents), make_scales(rule, extents)}, got = want;
  ASSERT_OK(produce(host(), producer(), views_of(unfused), want.values.tensor(), nullptr));
  ASSERT_OK(call_on_host(function_of(Kind::kQuantize, true), rule, want, nullptr));
  ASSERT_OK(produce_quantized(host(), producer(), rule, views_of(fused), got.codes.tensor(), got.scales.tensor(),
                              nullptr, nullptr));
  EXPECT_TRUE(same_bytes(got.codes, want.codes));
  EXPECT_TRUE(same_bytes(got.scales, want.scales));
  EXPECT_TRUE(same_bytes(fused.residual, unfused.residual));
  if (producer() == Producer::kSilu) {
    expect_near_silu(inputs, want.values);
  } else {
    expect_near_norm(inputs, producer() == Producer::kNorm ? inputs.input : unfused.residual, want.values);
  }
}

// A replay of a captured producer reads what its inputs then hold.
TEST_P(Fused, R2InAGraph) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  const Extents extents{16, 4096};
  const Stream stream;
  ASSERT_OK(fp8rt_context_prepare(gpu().get(), stream.get()));
  Inputs inputs = make_inputs(producer(), dtype(), extents, Fill::kPlain);
  DeviceInputs device(inputs);
  const DeviceMatrix codes(make_codes(extents)), scales(make_scales(rule, extents, true));
  const Graph graph(stream, [&] {
    EXPECT_OK(produce_quantized(gpu(), producer(), rule, device.views(), codes.tensor(), scales.tensor(), nullptr,
                                stream.get()));
  });
  for (int round = 0; round < 2; ++round) {
    inputs = make_inputs(producer(), dtype(), extents, Fill::kPlain);
    device.input.upload(inputs.input);
    device.residual.upload(inputs.residual);
    device.weight.upload(inputs.weight);
    graph.launch(stream);
    stream.synchronize();
    Produced want{make_codes(extents), make_scales(rule, extents, true), inputs.residual, {}};
    ASSERT_TRUE(run_fused(rule, inputs, want));
    EXPECT_TRUE(same_bytes(codes.download(), want.codes));
    EXPECT_TRUE(same_bytes(scales.download(), want.scales));
  }
}

std::string case_name(const ::testing::TestParamInfo<Fused::ParamType> &info) {
  const char *names[] = {"Silu", "Norm", "NormWithResidual"};
  return std::string(names[static_cast<int>(std::get<0>(info.param))]) + dtype_name(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(All, Fused,
                         ::testing::Combine(::testing::ValuesIn(kProducers), ::testing::ValuesIn(kFloats)), case_name);

}  // namespace
}  // namespace fp8rt_test
