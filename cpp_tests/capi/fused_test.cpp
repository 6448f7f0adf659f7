// The fused producers on the host: near float64, and the same bytes as unfused and then quantized.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "calls.hpp"
#include "matrix.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr float kEpsilon = 1e-5f;
constexpr std::int64_t kRows = 5;

fp8rt_tensor vector_of(const Matrix &row) {
  fp8rt_tensor view = row.tensor();
  view.rank = 1, view.shape[0] = row.columns(), view.stride[0] = 1;
  return view;
}

// Allowed distance from the exact result: 1 ulp of the 16-bit types, 32 of float32.
bool near(float got, double exact, std::uint32_t dtype) {
  const double ulp = dtype == FP8RT_DTYPE_BF16 ? 0x1p-7 : dtype == FP8RT_DTYPE_F16 ? 0x1p-10 : 32 * 0x1p-23;
  return std::abs(got - exact) <= ulp * std::abs(exact) + 0x1p-24;
}

class Fused : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  Matrix normal(Extents extents, std::uint32_t seed, std::int64_t gap = 0) const {
    Matrix matrix(GetParam(), extents, {extents.columns + gap});
    Random(seed).fill_normal(matrix, 2.0f);
    return matrix;
  }
  // Codes, scales and counts of `values` quantized by themselves, beside those of the fused call.
  template <class Call>
  void expect_same(const Matrix &values, Call fused) {
    for (const std::uint32_t format : {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2,
                                       FP8RT_SCALE_FORMAT_UE8M0_PACKED}) {
      Rule rule;
      rule.activation = true, rule.recipe = FP8RT_RECIPE_VLLM, rule.format = format;
      const Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents(), true);
      Matrix want_codes = codes, want_scales = scales, got_codes = codes, got_scales = scales;
      fp8rt_health want{}, got{};
      ASSERT_OK(quantize(context_, rule, values, want_codes, want_scales, &want));
      const fp8rt_quantize_desc desc = rule.desc();
      const fp8rt_tensor codes_view = got_codes.tensor(), scales_view = got_scales.tensor();
      ASSERT_OK(fused(&desc, &codes_view, &scales_view, &got));
      EXPECT_TRUE(same_bytes(got_codes, want_codes)) << format;
      EXPECT_TRUE(same_bytes(got_scales, want_scales)) << format;
      EXPECT_TRUE(got == want) << format;
    }
  }

  fp8rt::Context context_ = context_with_threads(2);
};

TEST_P(Fused, SiluAndMul) {
  for (const std::int64_t k : {1, 127, 128, 333, 1024}) {
    const Matrix gate_up = normal({kRows, 2 * k}, 1, 3);
    const Matrix output(GetParam(), {kRows, k}, {k + 1});
    const fp8rt_tensor input = gate_up.tensor(), view = output.tensor();
    ASSERT_OK(fp8rt_silu_and_mul(context_.get(), &input, &view, nullptr));
    output.each([&](std::int64_t, std::int64_t row, std::int64_t column) {
      const double gate = gate_up.get(row, column), up = gate_up.get(row, k + column);
      const double exact = gate / (1 + std::exp(-gate)) * up;
      ASSERT_TRUE(near(output.get(row, column), exact, GetParam())) << output.get(row, column) << " for " << exact;
    });
    expect_same(output, [&](auto *desc, auto *codes, auto *scales, auto *health) {
      return fp8rt_silu_and_mul_quantize(context_.get(), desc, &input, codes, scales, health, nullptr);
    });
  }
}

TEST_P(Fused, RmsNormWithAndWithoutResidual) {
  for (const std::int64_t k : {1, 127, 128, 333, 1024}) {
    for (const bool with_residual : {false, true}) {
      const Matrix x = normal({kRows, k}, 2, 1), weight = normal({1, k}, 3), before = normal({kRows, k}, 4);
      Matrix residual = before;
      const Matrix output(GetParam(), {kRows, k});
      const fp8rt_tensor input = x.tensor(), weights = vector_of(weight), view = output.tensor();
      const fp8rt_tensor residual_view = residual.tensor();
      const fp8rt_tensor *given = with_residual ? &residual_view : nullptr;
      ASSERT_OK(fp8rt_rms_norm(context_.get(), &input, given, &weights, kEpsilon, &view, nullptr));
      for (std::int64_t row = 0; row < kRows; ++row) {
        double squares = 0;
        for (std::int64_t column = 0; column < k; ++column) {
          const float sum = x.get(row, column) + before.get(row, column);
          Matrix rounded(GetParam(), {1, 1});
          rounded.set(0, 0, sum);
          if (with_residual) {
            ASSERT_EQ(residual.get(row, column), rounded.get(0, 0));
          }
          const double z = with_residual ? residual.get(row, column) : x.get(row, column);
          squares += z * z;
        }
        const double inverse = 1 / std::sqrt(squares / static_cast<double>(k) + kEpsilon);
        for (std::int64_t column = 0; column < k; ++column) {
          const double z = with_residual ? residual.get(row, column) : x.get(row, column);
          const double exact = z * inverse * weight.get(0, column);
          ASSERT_TRUE(near(output.get(row, column), exact, GetParam())) << output.get(row, column) << " for " << exact;
        }
      }
      expect_same(output, [&](auto *desc, auto *codes, auto *scales, auto *health) {
        Matrix again = before;
        const fp8rt_tensor again_view = again.tensor();
        const fp8rt_status status =
            fp8rt_rms_norm_quantize(context_.get(), desc, &input, with_residual ? &again_view : nullptr, &weights,
                                    kEpsilon, codes, scales, health, nullptr);
        EXPECT_TRUE(same_bytes(again, with_residual ? residual : before));
        return status;
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Fused, ::testing::Values(FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32));

TEST(FusedArguments, AreChecked) {
  const fp8rt::Context context;
  const Matrix gate_up(FP8RT_DTYPE_BF16, {4, 256}), output(FP8RT_DTYPE_BF16, {4, 100});
  const Matrix weight(FP8RT_DTYPE_BF16, {1, 256});
  const Matrix other(FP8RT_DTYPE_F16, {4, 128}), untouched = output;
  const fp8rt_tensor input = gate_up.tensor(), view = output.tensor(), other_view = other.tensor();
  const fp8rt_tensor weights = vector_of(weight);
  EXPECT_TRUE(failed_with(fp8rt_silu_and_mul(context.get(), &input, &view, nullptr), FP8RT_STATUS_SHAPE,
                          "fp8rt_silu_and_mul", {"256", "100"}));
  EXPECT_TRUE(failed_with(fp8rt_silu_and_mul(context.get(), &input, &other_view, nullptr), FP8RT_STATUS_DTYPE,
                          "fp8rt_silu_and_mul", {"fp16", "bf16"}));
  EXPECT_TRUE(failed_with(fp8rt_silu_and_mul(context.get(), nullptr, &view, nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_silu_and_mul", {"gate_up"}));
  EXPECT_TRUE(failed_with(fp8rt_rms_norm(context.get(), &input, nullptr, &weights, -1.0f, &input, nullptr),
                          FP8RT_STATUS_INVALID_ARGUMENT, "fp8rt_rms_norm", {"epsilon", "-1"}));
  EXPECT_TRUE(failed_with(fp8rt_rms_norm(context.get(), &input, nullptr, &weights, kEpsilon, &input, nullptr),
                          FP8RT_STATUS_OVERLAP, "fp8rt_rms_norm", {}));
  EXPECT_TRUE(same_bytes(output, untouched));
}

}  // namespace
}  // namespace fp8rt_test
