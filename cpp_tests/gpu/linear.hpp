// A linear with its operands in device memory, and a run of it held to everything: the bits of both forms, float64, and
// all that no run may write.

#ifndef FP8RT_TEST_LINEAR_HPP
#define FP8RT_TEST_LINEAR_HPP

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "both.hpp"
#include "linear_backends.hpp"
#include "linear_form.hpp"
#include "linear_problem.hpp"
#include "linear_reference.hpp"

namespace fp8rt_test {

// Exactly the bytes asked for, full of NaN, with guards around; in tight buffers without guards.
class DeviceWorkspace {
 public:
  explicit DeviceWorkspace(std::uint64_t bytes)
      : guard_(DeviceMatrix::tight_buffers() ? 0 : kGuardBytes),
        bytes_(static_cast<std::size_t>(bytes)),
        buffer_(bytes_ + 2 * guard_) {
    poison();
  }

  void *data() const { return bytes_ == 0 ? nullptr : buffer_.data() + guard_; }
  std::uint64_t bytes() const { return bytes_; }
  void poison() {
    std::vector<std::uint8_t> image(buffer_.bytes(), kPoison);
    std::memset(image.data() + guard_, 0xFF, bytes_);
    buffer_.upload(image.data(), image.size());
  }
  ::testing::AssertionResult guards() const {
    std::vector<std::uint8_t> guard(guard_);
    for (const std::size_t at : {std::size_t{0}, guard_ + bytes_}) {
      buffer_.download(guard.data(), guard.size(), at);
      for (const std::uint8_t byte : guard) {
        if (byte != kPoison) {
          return ::testing::AssertionFailure() << "written outside a workspace of " << bytes_ << " bytes";
        }
      }
    }
    return ::testing::AssertionSuccess();
  }

 private:
  std::size_t guard_, bytes_;
  DeviceBuffer buffer_;
};

// The views of a run. Tests change some of them.
struct LinearViews {
  fp8rt_tensor x{}, x_codes{}, x_scales{}, weight{}, weight_scales{}, bias{}, y{};
  bool has_bias = false;

  const fp8rt_tensor *bias_or_none() const { return has_bias ? &bias : nullptr; }

  fp8rt_status prepare(const fp8rt::LinearPlan &plan, const Stream &stream) const {
    return fp8rt_linear_plan_prepare(plan.get(), &weight, &weight_scales, bias_or_none(), stream.get());
  }
  fp8rt_status run(Form form, const fp8rt::LinearPlan &plan, void *workspace, std::uint64_t bytes,
                   const Stream &stream) const {
    if (form == Form::kValues) {
      return fp8rt_linear(plan.get(), &x, &weight, &weight_scales, bias_or_none(), &y, workspace, bytes, stream.get());
    }
    return fp8rt_linear_prequantized(plan.get(), &x_codes, &x_scales, &weight, &weight_scales, bias_or_none(), &y,
                                     workspace, bytes, stream.get());
  }
  fp8rt_status run(Form form, const fp8rt::LinearPlan &plan, const DeviceWorkspace &workspace,
                   const Stream &stream) const {
    return run(form, plan, workspace.data(), workspace.bytes(), stream);
  }
};

// Bytes by which first elements are moved from where they are aligned.
struct Offsets {
  std::size_t x = 0, x_codes = 0, weight = 0, y = 0;
};

// The same matrix, its first element moved.
inline Matrix moved(const Matrix &matrix, std::size_t offset) {
  Matrix result(matrix.dtype(), matrix.extents(), matrix.strides(), 0, offset);
  if (result.bytes() > 0) {
    std::memcpy(result.data(), matrix.data(), result.bytes());
  }
  return result;
}

// Column-major scales with NaN in the rows below the last.
inline Matrix with_poisoned_padding(Matrix scales) {
  if (scales.strides().row != 1 || scales.strides().column == 1) {
    return scales;
  }
  for (std::int64_t column = 0; column < scales.columns(); ++column) {
    for (std::int64_t row = scales.rows(); row < ceil_div(scales.rows(), 4) * 4; ++row) {
      if (scales.offset_of(0, row, column) + 4 <= scales.bytes()) {
        scales.store<std::uint32_t>(0, row, column, 0xFFFFFFFF);
      }
    }
  }
  return scales;
}

// A y before a run: NaN in the elements, poison between and around them.
inline Matrix blank_of(const Matrix &y) {
  Matrix blank = y;
  blank.fill(std::numeric_limits<float>::quiet_NaN());
  return blank;
}

class DeviceLinear {
 public:
  explicit DeviceLinear(const LinearProblem &problem, const Offsets &offsets = {}, int device = kDevice)
      : blank(blank_of(moved(problem.y, offsets.y))),
        x(moved(problem.x, offsets.x)),
        x_codes(moved(problem.x_codes, offsets.x_codes)),
        x_scales(with_poisoned_padding(problem.x_scales)),
        weight(moved(problem.weight, offsets.weight)),
        weight_scales(problem.weight_scales),
        bias(problem.bias),
        y(blank),
        device_(device),
        has_bias_(problem.shape.bias_dtype != 0) {}

  LinearViews views() const {
    LinearViews views{x.tensor(device_),      x_codes.tensor(device_),       x_scales.tensor(device_),
                      weight.tensor(device_), weight_scales.tensor(device_), bias.tensor(device_),
                      y.tensor(device_),      has_bias_};
    views.bias.rank = 1;
    views.bias.shape[0] = views.bias.shape[1];
    views.bias.stride[0] = 1;
    return views;
  }
  // Views of the first rows of x and y.
  LinearViews views(std::int64_t rows) const {
    LinearViews views = this->views();
    for (fp8rt_tensor *view : {&views.x, &views.x_codes, &views.x_scales, &views.y}) {
      view->shape[0] = rows;
    }
    return views;
  }
  void blank_y() { y.upload(blank); }

  // All but the elements of the first rows of y is as it was.
  ::testing::AssertionResult untouched_elsewhere(const Matrix &got, std::int64_t rows) const {
    Matrix want = blank;
    const std::size_t length = static_cast<std::size_t>(want.columns()) * element_bytes(want.dtype());
    for (std::int64_t row = 0; row < rows && length > 0; ++row) {
      const std::size_t at = want.offset_of(0, row, 0);
      std::memcpy(want.data() + at, got.data() + at, length);
    }
    return same_bytes(got, want);
  }
  ::testing::AssertionResult inputs_are(const LinearProblem &problem) const {
    return all_of({{"x", same_bytes(x.download(), problem.x)},
                   {"codes of x", same_bytes(x_codes.download(), problem.x_codes)},
                   {"scales of x", same_bytes(x_scales.download(), with_poisoned_padding(problem.x_scales))},
                   {"weight", same_bytes(weight.download(), problem.weight)},
                   {"scales of the weight", same_bytes(weight_scales.download(), problem.weight_scales)},
                   {"bias", same_bytes(bias.download(), problem.bias)}});
  }

  const Matrix blank;
  DeviceMatrix x, x_codes, x_scales, weight, weight_scales, bias, y;

 private:
  int device_;
  bool has_bias_;
};

// A linear whose operands nobody has seen before.
inline LinearProblem make_problem(const LinearShape &shape) {
  return LinearProblem(shape, static_cast<std::uint32_t>(next_seed() * 0x9E3779B97F4A7C15u >> 32));
}

inline std::string describe(const LinearShape &shape) {
  std::string text = "M = " + std::to_string(shape.m) + ", N = " + std::to_string(shape.n) +
                     ", K = " + std::to_string(shape.k) + ", " + dtype_name(shape.input_dtype) + " to " +
                     dtype_name(shape.output_dtype) + ", bias " + dtype_name(shape.bias_dtype) + ", formats " +
                     std::to_string(shape.activation_format) + " and " + std::to_string(shape.weight_format) +
                     ", layout " + std::to_string(shape.layout) + ", strides + " + std::to_string(shape.extra_stride) +
                     ", recipe " + std::to_string(shape.recipe) + ", flags " + std::to_string(shape.flags) + ", parts";
  for (const std::int64_t rows : shape.parts) {
    text += " " + std::to_string(rows);
  }
  return text + ", FP8RT_TEST_SEED=" + std::to_string(seed_of_the_day());
}

// One run into a poisoned y, from a poisoned workspace. All of y's memory in `got`.
inline ::testing::AssertionResult run_once(Form form, const fp8rt::LinearPlan &plan, DeviceLinear &device,
                                           std::int64_t rows, Matrix &got) {
  const DeviceWorkspace workspace(plan.workspace(rows));
  const Stream stream;
  device.blank_y();
  const auto done = succeeded(device.views(rows).run(form, plan, workspace, stream));
  stream.synchronize();
  if (!done) {
    return ::testing::AssertionFailure() << name_of(form) << ": " << done.message();
  }
  got = device.y.download();
  return all_of({{name_of(form), workspace.guards()}, {name_of(form), device.untouched_elsewhere(got, rows)}});
}

// The first `rows` rows by both forms: the same bits, and close to the reference.
inline ::testing::AssertionResult is_right(const fp8rt::LinearPlan &plan, DeviceLinear &device, const Reference &want,
                                           std::int64_t rows) {
  Matrix values = device.blank, quantized = device.blank;
  for (const auto &[form, got] : {std::make_pair(Form::kValues, &values), {Form::kQuantized, &quantized}}) {
    const auto done = run_once(form, plan, device, rows, *got);
    if (!done) {
      return done;
    }
  }
  return all_of({{"y", is_close(values, want, rows)}, {"the two forms", same_bytes(quantized, values)}});
}

// Every backend that takes a problem, on the first rows of it, for each of `rows`.
inline ::testing::AssertionResult right_by_all(const LinearProblem &problem, const Reference &want,
                                               const std::vector<std::int64_t> &rows, const Offsets &offsets = {}) {
  DeviceLinear device(problem, offsets);
  const Stream stream;
  for (const Backend &backend : kBackends) {
    const auto plan = plan_by(backend, problem);
    if (!plan) {
      continue;
    }
    const auto prepared = succeeded(device.views().prepare(*plan, stream));
    if (!prepared) {
      return ::testing::AssertionFailure() << backend.name << ", prepare: " << prepared.message();
    }
    for (const std::int64_t count : rows) {
      const auto right = is_right(*plan, device, want, count);
      if (!right) {
        return ::testing::AssertionFailure() << plan->describe() << ", " << count << " rows: " << right.message()
                                             << "\n  " << describe(problem.shape);
      }
    }
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult right_by_all(const LinearShape &shape) {
  const LinearProblem problem = make_problem(shape);
  return right_by_all(problem, reference_of(problem), {shape.m});
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_LINEAR_HPP
