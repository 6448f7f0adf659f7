// A linear with its operands, quantized by the oracle, and the ways to run it.

#ifndef FP8RT_TEST_LINEAR_PROBLEM_HPP
#define FP8RT_TEST_LINEAR_PROBLEM_HPP

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "linear_oracle.hpp"
#include "matrix.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {

// Exactly the bytes asked for, 256-byte aligned, full of NaN before a run, with guards around.
class Workspace {
 public:
  explicit Workspace(std::uint64_t bytes)
      : bytes_(bytes), storage_(2 * kGuardBytes + static_cast<std::size_t>(bytes), kPoison) {
    std::fill(storage_.begin() + kGuardBytes, storage_.end() - kGuardBytes, std::uint8_t{0xFF});
  }
  void *data() { return bytes_ == 0 ? nullptr : storage_.data() + kGuardBytes; }
  std::uint64_t bytes() const { return bytes_; }
  bool guards_intact() const {
    const auto poisoned = [](std::uint8_t byte) { return byte == kPoison; };
    return std::all_of(storage_.begin(), storage_.begin() + kGuardBytes, poisoned) &&
           std::all_of(storage_.end() - kGuardBytes, storage_.end(), poisoned);
  }

 private:
  std::uint64_t bytes_;
  AlignedBytes storage_;
};

struct LinearShape {
  std::int64_t m, n, k;
  std::uint32_t input_dtype = FP8RT_DTYPE_BF16;
  std::uint32_t output_dtype = FP8RT_DTYPE_BF16;
  std::uint32_t bias_dtype = 0;
  std::uint32_t activation_format = FP8RT_SCALE_FORMAT_FP32;
  std::uint32_t weight_format = FP8RT_SCALE_FORMAT_FP32;
  std::uint32_t layout = FP8RT_SCALE_LAYOUT_COLUMN_MAJOR;
  std::vector<std::int64_t> parts = {};
  std::int64_t extra_stride = 0;  // added to the row stride of x, of the weight and of y
  std::uint32_t flags = 0;
  std::uint32_t recipe = FP8RT_RECIPE_DEFAULT;
};

class LinearProblem {
 public:
  explicit LinearProblem(const LinearShape &shape_, std::uint32_t seed = 1)
      : shape(shape_),
        weight_rule(rule_of_weight(shape_)),
        x_rule(rule_of_x(shape_)),
        x(shape_.input_dtype, {shape_.m, shape_.k}, {shape_.k + shape_.extra_stride}),
        x_codes(FP8RT_DTYPE_E4M3, {shape_.m, shape_.k}, {shape_.k + shape_.extra_stride}),
        x_scales(make_scales(x_rule, x.extents(), shape_.layout == FP8RT_SCALE_LAYOUT_COLUMN_MAJOR)),
        weight(FP8RT_DTYPE_E4M3, {shape_.n, shape_.k}, {shape_.k + shape_.extra_stride}),
        weight_scales(make_scales(weight_rule, weight.extents())),
        bias(shape_.bias_dtype == 0 ? FP8RT_DTYPE_F32 : shape_.bias_dtype, {1, shape_.n}),
        y(shape_.output_dtype, {shape_.m, shape_.n}, {shape_.n + shape_.extra_stride}) {
    Random random(seed);
    random.fill_normal(x, 1.0f);
    random.fill_normal(bias, 2.0f);
    fill_weight(random);
    requantize_x();
  }

  fp8rt_linear_desc desc() const {
    fp8rt_linear_desc desc = fp8rt::linear_desc();
    desc.flags = shape.flags;
    desc.max_m = shape.m;
    desc.n = shape.n;
    desc.k = shape.k;
    desc.input_dtype = shape.input_dtype;
    desc.output_dtype = shape.output_dtype;
    desc.bias_dtype = shape.bias_dtype;
    desc.activation_recipe = shape.recipe;
    desc.activation_scale_format = shape.activation_format;
    desc.activation_scale_layout = shape.layout;
    desc.weight_scale_format = shape.weight_format;
    desc.num_parts = static_cast<std::uint32_t>(shape.parts.size());
    desc.part_rows = shape.parts.empty() ? nullptr : shape.parts.data();
    desc.input_stride = x_codes.strides().row;
    desc.weight_stride = weight.strides().row;
    desc.output_stride = y.strides().row;
    return desc;
  }

  // After a change of x: its codes and scales, by the oracle.
  void requantize_x() { oracle_quantize(x_rule, x, x_codes, x_scales); }

  const Matrix *bias_or_none() const { return shape.bias_dtype == 0 ? nullptr : &bias; }

  // The exact result of the quantized operands.
  Exact exact() const {
    return exact_linear(dequantized(x_rule, x_codes, x_scales), dequantized(weight_rule, weight, weight_scales),
                        bias_or_none());
  }

  // Runs fp8rt_linear into `output`, with `input` in place of x.
  fp8rt_status run(const fp8rt::LinearPlan &plan, const Matrix &input, const Matrix &output) const {
    return run_with(plan, input, nullptr, output);
  }

  // Runs fp8rt_linear_prequantized on these codes and scales.
  fp8rt_status run_prequantized(const fp8rt::LinearPlan &plan, const Matrix &codes, const Matrix &scales,
                                const Matrix &output) const {
    return run_with(plan, codes, &scales, output);
  }

  LinearShape shape;
  Rule weight_rule, x_rule;
  Matrix x, x_codes, x_scales, weight, weight_scales, bias, y;

 private:
  static Rule rule_of_weight(const LinearShape &shape) {
    Rule rule;
    rule.format = shape.weight_format;
    rule.parts = shape.parts;
    return rule;
  }

  static Rule rule_of_x(const LinearShape &shape) {
    Rule rule;
    rule.activation = true;
    rule.recipe = shape.recipe == FP8RT_RECIPE_DEFAULT ? std::uint32_t{FP8RT_RECIPE_VLLM} : shape.recipe;
    rule.format = shape.activation_format;
    return rule;
  }

  // Codes and scales as random weights give them, without the cost of quantizing some.
  void fill_weight(Random &random) {
    weight.each([&](auto expert, auto row, auto column) {
      const std::uint32_t bits = random.bits();
      weight.store(expert, row, column, static_cast<std::uint8_t>((bits & 0x80) | (0x30 + bits % 0x4F)));
    });
    each_block(weight_rule, weight, [&](const Block &block) {
      const float scale = random.uniform(0.5f, 2.0f) * 1e-4f;
      const bool exact = shape.weight_format == FP8RT_SCALE_FORMAT_FP32;
      store_scale(weight_rule, weight_scales, block, exact ? scale : least_power_of_two(scale * 448.0f));
    });
    zero_padding(weight_rule, weight_scales);
  }

  fp8rt_status run_with(const fp8rt::LinearPlan &plan, const Matrix &input, const Matrix *input_scales,
                        const Matrix &output) const {
    Workspace workspace(plan.workspace(input.rows()));
    const fp8rt_tensor input_view = input.tensor(), weight_view = weight.tensor(),
                       scales_view = weight_scales.tensor();
    const fp8rt_tensor output_view = output.tensor();
    fp8rt_tensor bias_view = bias.tensor();
    bias_view.rank = 1;
    bias_view.shape[0] = shape.n;
    bias_view.stride[0] = 1;
    const fp8rt_tensor *bias_pointer = shape.bias_dtype == 0 ? nullptr : &bias_view;
    fp8rt_status status = FP8RT_STATUS_OK;
    if (input_scales == nullptr) {
      status = fp8rt_linear(plan.get(), &input_view, &weight_view, &scales_view, bias_pointer, &output_view,
                            workspace.data(), workspace.bytes(), nullptr);
    } else {
      const fp8rt_tensor x_scales_view = input_scales->tensor();
      status = fp8rt_linear_prequantized(plan.get(), &input_view, &x_scales_view, &weight_view, &scales_view,
                                         bias_pointer, &output_view, workspace.data(), workspace.bytes(), nullptr);
    }
    EXPECT_TRUE(workspace.guards_intact());
    return status;
  }
};

// The first `rows` rows from row `begin` on of a row-major matrix, as a matrix of the same stride.
inline Matrix rows_of(const Matrix &matrix, std::int64_t begin, std::int64_t rows) {
  Matrix result(matrix.dtype(), {rows, matrix.columns()}, {matrix.strides().row});
  const std::size_t length = static_cast<std::size_t>(matrix.columns()) * element_bytes(matrix.dtype());
  for (std::int64_t row = 0; row < rows; ++row) {
    if (length > 0) {
      std::memcpy(result.data() + result.offset_of(0, row, 0), matrix.data() + matrix.offset_of(0, begin + row, 0),
                  length);
    }
  }
  return result;
}

// All that is not an element is as it was in a fresh matrix of this form.
inline ::testing::AssertionResult untouched_between_elements(const Matrix &got, Matrix fresh) {
  got.each([&](auto expert, auto row, auto column) {
    const std::size_t at = got.offset_of(expert, row, column);
    std::memcpy(fresh.data() + at, got.data() + at, element_bytes(got.dtype()));
  });
  return same_bytes(got, fresh);
}

// Bits of a row.
inline std::vector<std::uint8_t> row_bits(const Matrix &matrix, std::int64_t row) {
  const std::uint8_t *begin = matrix.data() + matrix.offset_of(0, row, 0);
  return {begin, begin + static_cast<std::size_t>(matrix.columns()) * element_bytes(matrix.dtype())};
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_LINEAR_PROBLEM_HPP
