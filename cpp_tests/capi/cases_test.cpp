// Cases from public reports, by their names: what people saw go wrong elsewhere, and what is right.

#include <fenv.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "linear_problem.hpp"

namespace fp8rt_test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Rule rule_of(std::uint32_t recipe, std::uint32_t format, bool activation) {
  Rule rule;
  rule.recipe = recipe;
  rule.format = format;
  rule.activation = activation;
  return rule;
}

// A matrix with its codes and scales, quantized by the library.
struct Quantized {
  Quantized(const fp8rt::Context &context, const Rule &rule_, const Matrix &values)
      : rule(rule_), codes(FP8RT_DTYPE_E4M3, values.extents()), scales(make_scales(rule_, values.extents())) {
    EXPECT_OK(quantize(context, rule, values, codes, scales, &health));
  }
  std::int64_t count(std::uint8_t code) const {
    std::int64_t found = 0;
    codes.each(
        [&](auto expert, auto row, auto column) { found += codes.load<std::uint8_t>(expert, row, column) == code; });
    return found;
  }
  // Relative Frobenius error against the values, in float64.
  double error(const Matrix &values) const {
    const Exact exact = dequantized(rule, codes, scales);
    Relative relative;
    values.each([&](auto, auto row, auto column) { relative.add(exact.at(row, column), values.get(row, column)); });
    return relative.value();
  }

  Rule rule;
  Matrix codes, scales;
  fp8rt_health health{};
};

Matrix filled(std::uint32_t dtype, Extents extents, float value) {
  Matrix matrix(dtype, extents);
  matrix.fill(value);
  return matrix;
}

class Values : public ::testing::Test {
 protected:
  fp8rt::Context context_ = context_with_threads(2);
};

TEST_F(Values, V1) {
  for (const std::uint32_t dtype : {FP8RT_DTYPE_F32, FP8RT_DTYPE_BF16}) {
    for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
      for (const std::uint32_t format : {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2}) {
        for (const float tiny : {1e-37f, 1e-38f, 1e-40f}) {
          Matrix weight = filled(dtype, {128, 128}, 0.0f);
          weight.set(0, 0, tiny);
          const Quantized result(context_, rule_of(recipe, format, false), weight);
          const float scale = result.scales.get(0, 0);
          EXPECT_TRUE(std::isfinite(scale) && scale > 0) << scale;
          EXPECT_EQ(result.count(0x7F) + result.count(0xFF), 0) << "recipe " << recipe << ", " << tiny;
          EXPECT_GE(result.count(0x00), 128 * 128 - 1);
        }
      }
    }
  }
}

TEST_F(Values, V2) {
  for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
    for (const std::uint32_t format : {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2}) {
      Matrix weight = filled(FP8RT_DTYPE_BF16, {256, 256}, 0.0f);
      weight.set(0, 0, 1.0f);
      const Quantized result(context_, rule_of(recipe, format, false), weight);
      EXPECT_EQ(result.count(0x00), 256 * 256 - 1);
      result.scales.each([&](auto, auto row, auto column) {
        const float scale = result.scales.get(row, column);
        EXPECT_TRUE(std::isfinite(scale) && scale > 0) << row << ", " << column << ": " << scale;
      });
    }
  }
}

TEST_F(Values, V3) {
  LinearProblem problem({1, 64, 128});
  problem.x.fill(0.0f);
  const Quantized x(context_, problem.x_rule, problem.x);
  EXPECT_EQ(x.count(0x00), 128);
  EXPECT_TRUE(std::isfinite(x.scales.get(0, 0)) && x.scales.get(0, 0) > 0);
  const fp8rt::LinearPlan plan(context_, problem.desc());
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  problem.y.each([&](auto, auto row, auto column) { EXPECT_EQ(problem.y.get(row, column), 0.0f); });
}

TEST_F(Values, V4) {
  for (const bool activation : {false, true}) {
    for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
      for (const float nan : {std::nanf(""), -std::nanf("")}) {
        Matrix values(FP8RT_DTYPE_BF16, {128, 128});
        Random(1).fill_normal(values, 1.0f);
        const Quantized before(context_, rule_of(recipe, 0, activation), values);
        values.set(5, 7, nan);
        values.store<std::uint16_t>(0, 5, 7, std::signbit(nan) ? 0xFFC0 : 0x7FC0);
        const Quantized result(context_, rule_of(recipe, 0, activation), values);
        EXPECT_EQ(result.count(0x7F), 1);
        EXPECT_EQ(result.count(0xFF), 0);
        EXPECT_EQ(result.codes.code(5, 7), 0x7F);
        EXPECT_EQ(result.health.non_finite, 1u);
        Matrix codes = result.codes;
        codes.store(0, 5, 7, before.codes.code(5, 7));
        EXPECT_TRUE(same_bytes(codes, before.codes)) << "the other elements change";
      }
    }
  }
}

TEST_F(Values, V5) {
  for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
    for (const std::uint32_t dtype : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32}) {
      Matrix weight = filled(dtype, {128, 128}, 0.5f), finite = weight;
      weight.set(3, 4, kInfinity);
      weight.set(100, 90, -kInfinity);
      const Quantized result(context_, rule_of(recipe, 0, false), weight),
          rest(context_, rule_of(recipe, 0, false), finite);
      EXPECT_EQ(result.codes.code(3, 4), 0x7E);
      EXPECT_EQ(result.codes.code(100, 90), 0xFE);
      EXPECT_TRUE(same_bytes(result.scales, rest.scales));
      EXPECT_EQ(result.health.non_finite, 2u);
      EXPECT_EQ(result.health.saturated, 0u);
    }
  }
}

TEST_F(Values, V6) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, 0, true);
  Matrix values(FP8RT_DTYPE_F32, {1, 4}), codes(FP8RT_DTYPE_E4M3, {1, 4}),
      scales = filled(FP8RT_DTYPE_F32, {1, 1}, 1.0f);
  const float given[] = {449.0f, 464.0f, 464.1f, 1e30f};
  for (int column = 0; column < 4; ++column) {
    values.set(0, column, given[column]);
  }
  fp8rt_health health{};
  ASSERT_OK(quantize_with_scales(context_, rule, values, scales, codes, &health));
  for (int column = 0; column < 4; ++column) {
    EXPECT_EQ(codes.code(0, column), 0x7E) << given[column];
  }
  EXPECT_EQ(health, (fp8rt_health{0, 2, 0, 0}));
}

TEST_F(Values, V7) {
  Matrix weight(FP8RT_DTYPE_F32, {256, 256});
  Random(2).fill_normal(weight, 1e-9f);
  const Quantized result(context_, rule_of(FP8RT_RECIPE_NEMO_RL, 0, false), weight);
  const double error = result.error(weight);
  EXPECT_GT(error, 0.02);
  EXPECT_LT(error, 0.03);
}

TEST_F(Values, V8) {
  for (std::uint32_t recipe = 1; recipe <= 4; ++recipe) {
    for (int power = -12; power <= 12; ++power) {
      const float edge = std::ldexp(448.0f, power);
      Rule rule = rule_of(recipe, FP8RT_SCALE_FORMAT_POW2, true);
      rule.has_floor = true;
      Matrix values(FP8RT_DTYPE_F32, {2, 1});
      values.set(0, 0, edge);
      values.set(1, 0, std::nextafter(edge, kInfinity));
      const Quantized result(context_, rule, values);
      EXPECT_EQ(result.scales.get(0, 0), std::ldexp(1.0f, power)) << recipe;
      EXPECT_EQ(result.scales.get(1, 0), std::ldexp(1.0f, power + 1)) << recipe;
    }
  }
}

// A weight quantized with FP32 scales is read as it is. Quantized a second time with POW2 scales it would lose as
// much again, which the linear would show.
TEST_F(Values, V9) {
  Matrix weight(FP8RT_DTYPE_BF16, {256, 512});
  Random(3).fill_normal(weight, 1.0f);
  const Rule exact_rule = rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false);
  const Rule pow2_rule = rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_POW2, false);
  const Quantized once(context_, exact_rule, weight), pow2(context_, pow2_rule, weight);
  EXPECT_NEAR(once.error(weight), 0.0264, 0.0005);
  EXPECT_NEAR(pow2.error(weight), 0.0266, 0.0005);
  Matrix decoded(FP8RT_DTYPE_BF16, weight.extents());
  ASSERT_OK(dequantize(context_, exact_rule, once.codes, once.scales, decoded));
  EXPECT_NEAR(Quantized(context_, pow2_rule, decoded).error(weight), 0.0373, 0.001);

  LinearProblem problem({4, 256, 512});
  problem.weight = once.codes;
  problem.weight_scales = once.scales;
  const fp8rt::LinearPlan plan(context_, problem.desc());
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  EXPECT_TRUE(within_bounds(problem.y, problem.exact()));
  EXPECT_TRUE(same_bytes(problem.weight, once.codes) && same_bytes(problem.weight_scales, once.scales));
}

TEST_F(Values, V10) {
  // All bf16 subnormals of both signs, and steps of 2^-11 across the subnormals of E4M3, under scales of 1 and of
  // 2^-126.
  Matrix values(FP8RT_DTYPE_BF16, {3, 128});
  for (std::int64_t column = 0; column < 128; ++column) {
    values.store(0, 0, column, static_cast<std::uint16_t>(column));
    values.store(0, 1, column, static_cast<std::uint16_t>(0x8000 | column));
    values.set(2, column, static_cast<float>(column - 64) * 0x1p-11f);
  }
  for (const float scale : {1.0f, 0x1p-126f}) {
    const Rule rule = rule_of(FP8RT_RECIPE_VLLM, 0, true);
    const Matrix scales = filled(FP8RT_DTYPE_F32, {3, 1}, scale);
    Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), want = codes;
    fp8rt_health health{};
    const fp8rt_health want_health = oracle_with_scales(rule, values, scales, want);
    ASSERT_OK(quantize_with_scales(context_, rule, values, scales, codes, &health));
    EXPECT_TRUE(same_bytes(codes, want)) << scale;
    EXPECT_EQ(health, want_health) << scale;
    EXPECT_GT(want_health.became_subnormal, 0u);
  }
}

// Runs `work` with rounding upward, FTZ and DAZ, and says whether the mode was the same after it.
template <typename Work>
bool under_hostile_mode(Work work) {
  const int rounding = fegetround();
  fesetround(FE_UPWARD);
#if defined(__x86_64__)
  const unsigned before = _mm_getcsr(), mode = before | 0x8040;
  _mm_setcsr(mode);
#endif
  work();
  bool kept = fegetround() == FE_UPWARD;
#if defined(__x86_64__)
  kept = kept && _mm_getcsr() == mode;
  _mm_setcsr(before);
#endif
  fesetround(rounding);
  return kept;
}

TEST_F(Values, V11) {
  LinearShape shape{33, 100, 300};
  shape.output_dtype = FP8RT_DTYPE_F32;
  LinearProblem problem(shape);
  problem.x.set(0, 0, 1e-39f);
  const Rule rule = rule_of(FP8RT_RECIPE_NEMO_RL, 0, false);
  Matrix weight(FP8RT_DTYPE_F32, {130, 300}), codes(FP8RT_DTYPE_E4M3, {130, 300}),
      scales = make_scales(rule, {130, 300});
  Random(4).fill_hostile(weight, true);
  const Quantized want(context_, rule, weight);
  const fp8rt::LinearPlan plan(context_, problem.desc());
  Matrix y = problem.y;
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  fp8rt_status quantized = FP8RT_STATUS_INTERNAL, multiplied = FP8RT_STATUS_INTERNAL;
  EXPECT_TRUE(under_hostile_mode([&] { quantized = quantize(context_, rule, weight, codes, scales); }));
  EXPECT_TRUE(under_hostile_mode([&] { multiplied = problem.run(plan, problem.x, y); }));
  EXPECT_OK(quantized);
  EXPECT_OK(multiplied);
  EXPECT_TRUE(same_bytes(codes, want.codes));
  EXPECT_TRUE(same_bytes(scales, want.scales));
  EXPECT_TRUE(same_bytes(y, problem.y));
}

class Shapes : public ::testing::Test {
 protected:
  ::testing::AssertionResult right(const LinearShape &shape) {
    LinearProblem problem(shape);
    const fp8rt::LinearPlan plan(context_, problem.desc());
    const ::testing::AssertionResult done = succeeded(problem.run(plan, problem.x, problem.y));
    return done ? within_bounds(problem.y, problem.exact()) : done;
  }
  fp8rt::Context context_ = context_with_threads(2);
};

TEST_F(Shapes, S1) {
  Matrix weight(FP8RT_DTYPE_F32, {130, 256});
  Random(5).fill_normal(weight, 0.01f);
  weight.set(129, 255, 100.0f);
  const Quantized result(context_, rule_of(FP8RT_RECIPE_NEMO_RL, 0, false), weight);
  EXPECT_NEAR(result.scales.get(1, 1), 100.0 / 448, 0.001);
  for (const auto &[row, column] : {std::make_pair(0, 0), {0, 1}, {1, 0}}) {
    EXPECT_GT(result.scales.get(row, column), 3e-5f) << row << ", " << column;
    EXPECT_LT(result.scales.get(row, column), 2e-4f) << row << ", " << column;
  }
}

TEST_F(Shapes, S2) {
  const std::int64_t shapes[][2] = {{192, 4096}, {576, 7168}, {2112, 7168}, {48, 4096}, {16, 1024}};
  for (const auto &[n, k] : shapes) {
    EXPECT_TRUE(right(LinearShape{2, n, k})) << n << "x" << k;
  }
}

TEST_F(Shapes, S3) {
  for (const std::int64_t k : {64, 192, 4304}) {
    for (const std::int64_t m : {1, 20}) {
      EXPECT_TRUE(right(LinearShape{m, 136, k})) << m << ", " << k;
    }
  }
}

TEST_F(Shapes, S4) {
  for (const std::int64_t m : {1, 2, 3, 5, 7, 33, 127, 129}) {
    EXPECT_TRUE(right(LinearShape{m, 256, 384})) << m;
  }
}

TEST_F(Shapes, S5) { EXPECT_TRUE(right(LinearShape{3, 7168, 1152})); }

TEST_F(Shapes, S6) {
  for (const LinearShape &shape : {LinearShape{0, 128, 128}, {7, 0, 128}}) {
    LinearProblem problem(shape);
    const fp8rt::LinearPlan plan(context_, problem.desc());
    const Matrix before = problem.y;
    EXPECT_OK(problem.run(plan, problem.x, problem.y));
    EXPECT_TRUE(same_bytes(problem.y, before));
  }
  for (const std::uint32_t bias : {0u, std::uint32_t{FP8RT_DTYPE_F32}}) {
    LinearShape shape{7, 130, 0};
    shape.bias_dtype = bias;
    LinearProblem problem(shape);
    const fp8rt::LinearPlan plan(context_, problem.desc());
    ASSERT_OK(problem.run(plan, problem.x, problem.y));
    Matrix want = problem.y;
    want.each(
        [&](auto, auto row, auto column) { want.set(row, column, bias == 0 ? 0.0f : problem.bias.get(0, column)); });
    EXPECT_TRUE(same_bytes(problem.y, want));
  }
}

TEST_F(Shapes, S7) {
  constexpr std::int64_t kM = 1088, kFirst = 1080;
  LinearProblem problem({kM, 2048, 2048});
  const fp8rt::LinearPlan plan(context_, problem.desc());
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  // The rows of the last tile, as a problem of their own for the oracle.
  const Rule rule = problem.x_rule;
  const Matrix x = rows_of(problem.x, kFirst, kM - kFirst);
  Matrix codes(FP8RT_DTYPE_E4M3, x.extents()), scales = make_scales(rule, x.extents());
  oracle_quantize(rule, x, codes, scales);
  const Exact want = exact_linear(dequantized(rule, codes, scales),
                                  dequantized(problem.weight_rule, problem.weight, problem.weight_scales), nullptr);
  EXPECT_TRUE(within_bounds(rows_of(problem.y, kFirst, kM - kFirst), want));
}

TEST_F(Shapes, S8) {
  // Column windows whose first element is aligned to its own size and no more.
  for (const std::size_t offset : {2u, 6u, 14u}) {
    LinearProblem problem({9, 72, 200});
    Matrix x(FP8RT_DTYPE_BF16, {9, 200}, {333}, 0, offset), y(FP8RT_DTYPE_BF16, {9, 72}, {101}, 0, offset);
    problem.x.each([&](auto, auto row, auto column) { x.set(row, column, problem.x.get(row, column)); });
    Matrix weight(FP8RT_DTYPE_E4M3, {72, 200}, {211}, 0, offset / 2);
    problem.weight.each(
        [&](auto, auto row, auto column) { weight.store(0, row, column, problem.weight.code(row, column)); });
    problem.weight = weight;
    fp8rt_linear_desc desc = problem.desc();
    desc.output_stride = 101;
    const fp8rt::LinearPlan plan(context_, desc);
    const Matrix fresh = y;
    ASSERT_OK(problem.run(plan, x, y));
    EXPECT_TRUE(within_bounds(y, problem.exact())) << "offset " << offset;
    EXPECT_TRUE(untouched_between_elements(y, fresh));
  }
}

// Address space without memory behind it: what is never touched costs nothing.
class Sparse {
 public:
  explicit Sparse(std::size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  Sparse(const Sparse &) = delete;
  Sparse &operator=(const Sparse &) = delete;
  ~Sparse() { munmap(data_, bytes_); }
  bool mapped() const { return data_ != MAP_FAILED; }
  std::uint8_t *data() const { return static_cast<std::uint8_t *>(data_); }

 private:
  std::size_t bytes_;
  void *data_;
};

// More than 2^31 bytes, and more than 2^31 elements, between the first row and the last of values, codes and scales.
TEST_F(Shapes, S9) {
  constexpr std::int64_t kRows = 300, kColumns = 300, kStride = std::int64_t{1} << 23, kGroups = 3;
  constexpr std::int64_t kScaleStride = std::int64_t{1} << 30;
  const Sparse values(kRows * kStride * 2), codes(kRows * kStride), scales(kGroups * kScaleStride * 4);
  ASSERT_TRUE(values.mapped() && codes.mapped() && scales.mapped());
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, 0, true);
  Matrix near(FP8RT_DTYPE_BF16, {kRows, kColumns}), want(FP8RT_DTYPE_E4M3, {kRows, kColumns});
  Random(6).fill_normal(near, 1.0f);
  Matrix want_scales = make_scales(rule, near.extents());
  oracle_quantize(rule, near, want, want_scales);
  for (std::int64_t row = 0; row < kRows; ++row) {
    std::memcpy(values.data() + row * kStride * 2, near.data() + near.offset_of(0, row, 0), kColumns * 2);
  }
  const fp8rt_tensor values_view = fp8rt::tensor(values.data(), FP8RT_DTYPE_BF16, {kRows, kColumns}, kStride);
  const fp8rt_tensor codes_view = fp8rt::tensor(codes.data(), FP8RT_DTYPE_E4M3, {kRows, kColumns}, kStride);
  const fp8rt_tensor scales_view =
      fp8rt::strided_tensor(scales.data(), FP8RT_DTYPE_F32, {kRows, kGroups}, {1, kScaleStride});
  ASSERT_OK(
      fp8rt_quantize_activation(context_.get(), nullptr, &values_view, &codes_view, &scales_view, nullptr, nullptr));
  for (std::int64_t row = 0; row < kRows; ++row) {
    ASSERT_EQ(std::memcmp(codes.data() + row * kStride, want.data() + want.offset_of(0, row, 0), kColumns), 0) << row;
    for (std::int64_t group = 0; group < kGroups; ++group) {
      float scale = 0;
      std::memcpy(&scale, scales.data() + (group * kScaleStride + row) * 4, 4);
      ASSERT_EQ(scale, want_scales.get(row, group)) << row << ", " << group;
    }
  }
}

TEST_F(Shapes, S10) {
  const Matrix weight(FP8RT_DTYPE_BF16, {256, 384}), codes(FP8RT_DTYPE_E4M3, {256, 384});
  const Matrix before = codes;
  const Extents wrong[] = {{1, 3}, {2, 2}};
  const std::vector<std::string> texts[] = {{"scales has 1 rows", "needs 2"}, {"scales has 2 columns", "needs 3"}};
  for (int index = 0; index < 2; ++index) {
    const Matrix scales(FP8RT_DTYPE_F32, wrong[index]), scales_before = scales;
    EXPECT_TRUE(failed_with(quantize(context_, Rule{}, weight, codes, scales), FP8RT_STATUS_SHAPE,
                            "fp8rt_quantize_weight", texts[index]));
    EXPECT_TRUE(same_bytes(codes, before) && same_bytes(scales, scales_before));
  }
}

class Isolation : public ::testing::Test {
 protected:
  fp8rt::Context context_ = context_with_threads(2);
};

TEST_F(Isolation, I1) {
  for (const std::int64_t m : {3, 40}) {
    LinearShape shape{m, 150, 300};
    shape.input_dtype = FP8RT_DTYPE_F32;
    LinearProblem problem(shape);
    const fp8rt::LinearPlan plan(context_, problem.desc());
    ASSERT_OK(problem.run(plan, problem.x, problem.y));
    for (const float hostile : {std::nanf(""), 1e38f, kInfinity}) {
      Matrix x = problem.x, y(problem.y.dtype(), problem.y.extents());
      for (std::int64_t k = 0; k < 300; ++k) {
        x.set(1, k, hostile);
      }
      ASSERT_OK(problem.run(plan, x, y));
      EXPECT_NE(row_bits(y, 1), row_bits(problem.y, 1));
      EXPECT_EQ(std::isnan(y.get(1, 0)), std::isnan(hostile)) << hostile;
      for (std::int64_t row = 0; row < m; ++row) {
        EXPECT_TRUE(row == 1 || row_bits(y, row) == row_bits(problem.y, row)) << "row " << row << ", " << hostile;
      }
    }
  }
}

TEST_F(Isolation, I2) {
  for (const std::int64_t m : {1, 2, 3, 5, 33}) {
    LinearProblem problem({m, 150, 300});
    // Columns 8 farther apart than they must be; all that is no scale is NaN.
    const std::int64_t stride = ceil_div(m, 4) * 4 + 8;
    Matrix scales(FP8RT_DTYPE_F32, {m, 3}, {1, stride}, static_cast<std::size_t>(stride - m) * 4);
    for (std::size_t at = 0; at + 4 <= scales.bytes(); at += 4) {
      const float nan = std::nanf("");
      std::memcpy(scales.data() + at, &nan, 4);
    }
    scales.each([&](auto, auto row, auto column) { scales.set(row, column, problem.x_scales.get(row, column)); });
    const fp8rt::LinearPlan plan(context_, problem.desc());
    Matrix y = problem.y;
    ASSERT_OK(problem.run_prequantized(plan, problem.x_codes, problem.x_scales, problem.y));
    ASSERT_OK(problem.run_prequantized(plan, problem.x_codes, scales, y));
    EXPECT_TRUE(same_bytes(y, problem.y)) << m;
    EXPECT_TRUE(within_bounds(y, problem.exact())) << m;
  }
}

TEST_F(Isolation, I3) {
  for (const LinearShape &shape : {LinearShape{5, 131, 200}, {40, 260, 130}}) {
    LinearProblem problem(shape);
    const fp8rt::LinearPlan plan(context_, problem.desc());
    Matrix nan = problem.y, zero = problem.y;
    nan.each([&](auto, auto row, auto column) { nan.store<std::uint16_t>(0, row, column, 0xFFFF); });
    zero.fill(0.0f);
    ASSERT_OK(problem.run(plan, problem.x, nan));
    ASSERT_OK(problem.run(plan, problem.x, zero));
    EXPECT_TRUE(same_bytes(nan, zero));
    EXPECT_TRUE(within_bounds(nan, problem.exact()));
  }
}

TEST_F(Isolation, I4) {
  constexpr std::int64_t kM = 300, kN = 390, kK = 520;
  LinearShape shape{kM, kN, kK};
  shape.output_dtype = FP8RT_DTYPE_F32;
  LinearProblem problem(shape);
  problem.x_codes.fill(1.0f);
  problem.weight.fill(1.0f);
  const auto x_scale = [](std::int64_t m, std::int64_t g) {
    return static_cast<float>((m % 2 == 0 ? 2 : 4) + (m * 3 + g) % 5 * 8);
  };
  const auto w_scale = [](std::int64_t n, std::int64_t g) {
    return static_cast<float>((n + g) % 2 + 1 + (n * 5 + g) % 3 * 4);
  };
  problem.x_scales.each(
      [&](auto, auto row, auto column) { problem.x_scales.set(row, column, x_scale(row, column)); });
  problem.weight_scales.each(
      [&](auto, auto row, auto column) { problem.weight_scales.set(row, column, w_scale(row, column)); });
  const fp8rt::LinearPlan plan(context_, problem.desc());
  ASSERT_OK(problem.run_prequantized(plan, problem.x_codes, problem.x_scales, problem.y));
  for (std::int64_t m = 0; m < kM; ++m) {
    for (std::int64_t n = 0; n < kN; ++n) {
      float want = 0;
      for (std::int64_t g = 0; g < ceil_div(kK, 128); ++g) {
        want += static_cast<float>(std::min<std::int64_t>(128, kK - 128 * g)) * x_scale(m, g) * w_scale(n / 128, g);
      }
      ASSERT_EQ(problem.y.get(m, n), want) << m << ", " << n;
    }
  }
}

TEST_F(Isolation, I5) {
  LinearShape shape{4096, 136, 200};
  shape.flags = FP8RT_LINEAR_BATCH_INVARIANT;
  shape.output_dtype = FP8RT_DTYPE_F32;
  LinearProblem problem(shape);
  const fp8rt::LinearPlan plan(context_, problem.desc());
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  for (const std::int64_t m : {1, 2, 7, 64, 129}) {
    for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{77}, 4096 - m}) {
      const Matrix y(shape.output_dtype, {m, 136});
      ASSERT_OK(problem.run(plan, rows_of(problem.x, begin, m), y));
      EXPECT_TRUE(same_bytes(y, rows_of(problem.y, begin, m))) << m << " rows from " << begin;
    }
  }
  // A plan for fewer rows, among other rows, on another number of threads.
  const fp8rt::Context other = context_with_threads(3);
  fp8rt_linear_desc desc = problem.desc();
  desc.max_m = 7;
  const fp8rt::LinearPlan small(other, desc);
  Matrix x = rows_of(problem.x, 0, 7);
  for (std::int64_t row = 0; row < 7; ++row) {
    for (std::int64_t k = 0; k < 200; ++k) {
      x.set(row, k, row == 3 ? problem.x.get(1000, k) : 1e30f);
    }
  }
  const Matrix y(shape.output_dtype, {7, 136});
  ASSERT_OK(problem.run(small, x, y));
  EXPECT_EQ(row_bits(y, 3), row_bits(problem.y, 1000));
}

class Refit : public ::testing::Test {
 protected:
  fp8rt::Context context_ = context_with_threads(2);
};

// The weights of a running model are quantized again, in place.
void requantize_weight(const fp8rt::Context &context, LinearProblem &problem, std::uint32_t seed) {
  Matrix source(FP8RT_DTYPE_BF16, {problem.shape.n, problem.shape.k});
  Random(seed).fill_normal(source, 0.05f);
  ASSERT_OK(quantize(context, problem.weight_rule, source, problem.weight, problem.weight_scales));
}

TEST_F(Refit, R1) {
  LinearProblem problem({5, 200, 300});
  const void *addresses[] = {problem.weight.tensor().data, problem.weight_scales.tensor().data};
  requantize_weight(context_, problem, 1);
  const Matrix first = problem.weight;
  requantize_weight(context_, problem, 2);
  EXPECT_FALSE(same_bytes(problem.weight, first));
  requantize_weight(context_, problem, 1);
  EXPECT_TRUE(same_bytes(problem.weight, first));
  EXPECT_EQ(problem.weight.tensor().data, addresses[0]);
  EXPECT_EQ(problem.weight_scales.tensor().data, addresses[1]);
}

TEST_F(Refit, R2) {
  for (const std::int64_t m : {2, 40}) {
    LinearProblem problem({m, 200, 300});
    const fp8rt::LinearPlan plan(context_, problem.desc());
    std::vector<Matrix> outputs;
    for (const std::uint32_t seed : {1u, 2u, 1u}) {
      requantize_weight(context_, problem, seed);
      Matrix y(problem.y.dtype(), problem.y.extents());
      ASSERT_OK(problem.run(plan, problem.x, y));
      EXPECT_TRUE(within_bounds(y, problem.exact())) << "weights " << seed;
      outputs.push_back(y);
    }
    EXPECT_FALSE(same_bytes(outputs[0], outputs[1]));
    EXPECT_TRUE(same_bytes(outputs[0], outputs[2]));
  }
}

// A linear from nothing: context, plan, run, comparison.
bool linear_works(std::uint32_t seed) {
  LinearProblem problem({5, 200, 300}, seed);
  const fp8rt::Context context = context_with_threads(2);
  const fp8rt::LinearPlan plan(context, problem.desc());
  return problem.run(plan, problem.x, problem.y) == FP8RT_STATUS_OK && within_bounds(problem.y, problem.exact());
}

// Runs `work(child)` in eight children at once; true if it returned true in all.
template <typename Work>
bool in_eight_children(Work work) {
  pid_t children[8];
  for (int child = 0; child < 8; ++child) {
    children[child] = fork();
    if (children[child] == 0) {
      _exit(work(child) ? 0 : 1);
    }
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = 0;
    all = waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0 && all;
  }
  return all;
}

bool maps_mention(const std::string &text) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(text) != std::string::npos) {
      return true;
    }
  }
  return false;
}

TEST_F(Refit, R5) {
  EXPECT_TRUE(in_eight_children([](int child) { return linear_works(static_cast<std::uint32_t>(child)); }));
}

// No tool can be found, nothing can be cached: there is no environment at all.
TEST_F(Refit, R6) {
  EXPECT_TRUE(in_eight_children([](int child) {
    return clearenv() == 0 && chdir("/") == 0 && linear_works(static_cast<std::uint32_t>(child));
  }));
}

TEST_F(Refit, R7) {
  ASSERT_TRUE(linear_works(1));
  EXPECT_TRUE(maps_mention("libfp8rt"));
  EXPECT_FALSE(maps_mention("libcuda"));
  EXPECT_TRUE(in_eight_children([](int child) { return linear_works(static_cast<std::uint32_t>(child)); }));
  EXPECT_TRUE(linear_works(2));
}

TEST_F(Refit, R9) {
  LinearProblem problem({5, 200, 300});
  const fp8rt::LinearPlan plan(context_, problem.desc());
  Workspace workspace(plan.workspace(5));
  const fp8rt_tensor weight = problem.weight.tensor(), scales = problem.weight_scales.tensor(),
                     y = problem.y.tensor();
  fp8rt_tensor x = problem.x.tensor();
  x.device = 0;
  const Matrix before = problem.y;
  EXPECT_TRUE(failed_with(
      fp8rt_linear(plan.get(), &x, &weight, &scales, nullptr, &y, workspace.data(), workspace.bytes(), nullptr),
      FP8RT_STATUS_DEVICE, "fp8rt_linear", {"x is on device 0", "-1"}));
  EXPECT_TRUE(same_bytes(problem.y, before));
}

}  // namespace
}  // namespace fp8rt_test
