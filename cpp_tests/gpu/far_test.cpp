// S9: more than 2^31 elements and 2^32 bytes. The source repeats a period of rows, so that the host's answer for one
// period is compared with all of the output; the last rows are of their own.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "both.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kRows = 524416, kColumns = 4096, kPeriod = 8192, kTail = kRows % kPeriod;
static_assert(kTail == 128 && kRows * kColumns > std::int64_t{1} << 31, "the far end lies beyond 32 bits");

// A compact matrix of the far shape in device memory, poisoned, with guards.
class FarMatrix {
 public:
  FarMatrix(std::uint32_t dtype, Extents extents)
      : view_(fp8rt::tensor(nullptr, static_cast<fp8rt_dtype>(dtype), {extents.rows, extents.columns})),
        buffer_(static_cast<std::size_t>(view_.bytes) + 2 * kGuardBytes) {
    buffer_.fill(kPoison);
    view_.data = buffer_.data() + kGuardBytes;
    view_.device = kDevice;
  }

  const fp8rt_tensor &tensor() const { return view_; }
  // Views the memory as column-major.
  void transpose_strides() {
    view_.stride[0] = 1;
    view_.stride[1] = view_.shape[0];
  }
  // Fills it with `period` again and again, and the end with `tail`.
  void repeat(const Matrix &period, const Matrix &tail) {
    const std::size_t step = period.bytes();
    buffer_.upload(period.data(), step, kGuardBytes);
    std::uint8_t *const first = buffer_.data() + kGuardBytes;
    for (std::size_t at = step; at + step <= view_.bytes; at += step) {
      CUDA(cudaMemcpy(first + at, first, step, cudaMemcpyDeviceToDevice));
    }
    buffer_.upload(tail.data(), tail.bytes(), kGuardBytes + static_cast<std::size_t>(view_.bytes) - tail.bytes());
  }
  ::testing::AssertionResult repeats(const Matrix &period, const Matrix &tail) const {
    const std::size_t step = period.bytes(), bytes = static_cast<std::size_t>(view_.bytes);
    std::vector<std::uint8_t> part(step);
    for (std::size_t at = 0; at < bytes; at += step) {
      const std::size_t length = std::min(step, bytes - at);
      buffer_.download(part.data(), length, kGuardBytes + at);
      if (std::memcmp(part.data(), length == step ? period.data() : tail.data(), length) != 0) {
        return ::testing::AssertionFailure() << "differs within " << step << " bytes from byte " << at;
      }
    }
    return guards();
  }
  std::vector<float> floats() const {
    std::vector<float> all(static_cast<std::size_t>(view_.bytes) / 4);
    buffer_.download(all.data(), static_cast<std::size_t>(view_.bytes), kGuardBytes);
    return all;
  }
  ::testing::AssertionResult guards() const {
    std::vector<std::uint8_t> guard(kGuardBytes);
    for (const std::size_t at : {std::size_t{0}, buffer_.bytes() - kGuardBytes}) {
      buffer_.download(guard.data(), kGuardBytes, at);
      for (const std::uint8_t byte : guard) {
        if (byte != kPoison) {
          return ::testing::AssertionFailure() << "a guard was written";
        }
      }
    }
    return ::testing::AssertionSuccess();
  }

 private:
  fp8rt_tensor view_;
  DeviceBuffer buffer_;
};

class Far : public ::testing::Test {
 protected:
  static Operands on_host(const Rule &rule, std::int64_t rows) {
    Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {rows, kColumns}), Fill::kSpreadNonFinite);
    EXPECT_OK(call_on_host(function_of(Kind::kQuantize, rule.activation), rule, operands, nullptr));
    return operands;
  }
  static fp8rt_status run(Kind kind, const Rule &rule, const FarMatrix &values, const FarMatrix &codes,
                          const FarMatrix &scales) {
    const fp8rt_quantize_desc desc = rule.desc();
    const Stream stream;
    const fp8rt_status status =
        call(function_of(kind, rule.activation), {gpu().get(), &desc, &values.tensor(), &codes.tensor(),
                                                  &scales.tensor(), nullptr, stream.get()});
    stream.synchronize();
    return status;
  }
};

TEST_F(Far, S9Activation) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  const Operands period = on_host(rule, kPeriod), tail = on_host(rule, kTail);
  FarMatrix values(FP8RT_DTYPE_BF16, {kRows, kColumns}), codes(FP8RT_DTYPE_E4M3, {kRows, kColumns}),
      scales(FP8RT_DTYPE_F32, {kRows, kColumns / 128});
  values.repeat(period.values, tail.values);
  ASSERT_OK(run(Kind::kQuantize, rule, values, codes, scales));
  EXPECT_TRUE(codes.repeats(period.codes, tail.codes));
  EXPECT_TRUE(scales.repeats(period.scales, tail.scales));
  EXPECT_TRUE(values.repeats(period.values, tail.values)) << "the input changed";
}

TEST_F(Far, S9ActivationWithColumnMajorScales) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  const Operands period = on_host(rule, kPeriod), tail = on_host(rule, kTail);
  FarMatrix values(FP8RT_DTYPE_BF16, {kRows, kColumns}), codes(FP8RT_DTYPE_E4M3, {kRows, kColumns}),
      scales(FP8RT_DTYPE_F32, {kRows, kColumns / 128});
  scales.transpose_strides();
  values.repeat(period.values, tail.values);
  ASSERT_OK(run(Kind::kQuantize, rule, values, codes, scales));
  EXPECT_TRUE(codes.repeats(period.codes, tail.codes));
  EXPECT_TRUE(scales.guards());
  const std::vector<float> got = scales.floats();
  std::int64_t different = 0;
  for (std::int64_t row = 0; row < kRows; ++row) {
    const Matrix &want = row < kRows - kTail ? period.scales : tail.scales;
    for (std::int64_t group = 0; group < kColumns / 128; ++group) {
      different += got[static_cast<std::size_t>(group * kRows + row)] != want.get(row % kPeriod, group);
    }
  }
  EXPECT_EQ(different, 0);
}

TEST_F(Far, S9Weight) {
  const Rule rule = rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false);
  const Operands period = on_host(rule, kPeriod), tail = on_host(rule, kTail);
  FarMatrix values(FP8RT_DTYPE_BF16, {kRows, kColumns}), codes(FP8RT_DTYPE_E4M3, {kRows, kColumns}),
      scales(FP8RT_DTYPE_F32, {kRows / 128, kColumns / 128});
  values.repeat(period.values, tail.values);
  ASSERT_OK(run(Kind::kQuantize, rule, values, codes, scales));
  EXPECT_TRUE(codes.repeats(period.codes, tail.codes));
  EXPECT_TRUE(scales.repeats(period.scales, tail.scales));
}

TEST_F(Far, S9Dequantize) {
  for (const bool activation : {true, false}) {
    const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, activation);
    Operands period = on_host(rule, kPeriod), tail = on_host(rule, kTail);
    const std::int64_t scale_rows = activation ? kRows : kRows / 128;
    FarMatrix values(FP8RT_DTYPE_BF16, {kRows, kColumns}), codes(FP8RT_DTYPE_E4M3, {kRows, kColumns}),
        scales(FP8RT_DTYPE_F32, {scale_rows, kColumns / 128});
    codes.repeat(period.codes, tail.codes);
    scales.repeat(period.scales, tail.scales);
    ASSERT_OK(run(Kind::kDequantize, rule, values, codes, scales));
    ASSERT_OK(call_on_host(function_of(Kind::kDequantize, activation), rule, period, nullptr));
    ASSERT_OK(call_on_host(function_of(Kind::kDequantize, activation), rule, tail, nullptr));
    EXPECT_TRUE(values.repeats(period.values, tail.values));
  }
}

}  // namespace
}  // namespace fp8rt_test
