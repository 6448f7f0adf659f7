// The operands of a linear on a GPU, and what a launch of DeepGEMM's kernel passes.

#ifndef FP8RT_TEST_FAKE_LINEAR_HPP
#define FP8RT_TEST_FAKE_LINEAR_HPP

#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "caller.hpp"
#include "linear_form.hpp"

namespace fp8rt_test {

struct LinearShape {
  std::int64_t m, n, k;
  std::uint32_t bias_dtype = 0;
  std::uint32_t output_dtype = FP8RT_DTYPE_BF16;
  std::uint32_t layout = FP8RT_SCALE_LAYOUT_COLUMN_MAJOR;
  std::vector<std::int64_t> parts = {};
  std::int64_t extra_stride = 0;  // added to the row stride of x, of the weight and of y
  std::uint32_t backends = 0;
};

class LinearOperands {
 public:
  explicit LinearOperands(const LinearShape &shape_, int device = 0) : shape(shape_) {
    const auto &[m, n, k] = std::tie(shape.m, shape.n, shape.k);
    const std::int64_t extra = shape.extra_stride;
    x = matrix(device, FP8RT_DTYPE_BF16, m, k, k + extra);
    x_codes = matrix(device, FP8RT_DTYPE_E4M3, m, k, k + extra);
    weight = matrix(device, FP8RT_DTYPE_E4M3, n, k, k + extra);
    y = matrix(device, shape.output_dtype, m, n, n + extra);
    if (shape.bias_dtype != 0) {
      bias = place(device, fp8rt::tensor(nullptr, static_cast<fp8rt_dtype>(shape.bias_dtype), {n}));
    }
    fp8rt_quantize_desc parts = fp8rt::quantize_desc();
    parts.num_parts = static_cast<std::uint32_t>(shape.parts.size());
    parts.part_rows = shape.parts.data();
    fp8rt::check(fp8rt_weight_scales_layout(&parts, 0, n, k, &weight_scales));
    fp8rt::check(fp8rt_activation_scales_layout(nullptr, shape.layout, m, k, &x_scales));
    weight_scales = place(device, weight_scales);
    x_scales = place(device, x_scales);
  }

  fp8rt_linear_desc desc() const {
    fp8rt_linear_desc desc = fp8rt::linear_desc();
    desc.max_m = shape.m;
    desc.n = shape.n;
    desc.k = shape.k;
    desc.output_dtype = shape.output_dtype;
    desc.bias_dtype = shape.bias_dtype;
    desc.activation_scale_layout = shape.layout;
    desc.backends = shape.backends;
    desc.num_parts = static_cast<std::uint32_t>(shape.parts.size());
    desc.part_rows = shape.parts.empty() ? nullptr : shape.parts.data();
    desc.input_stride = x_codes.stride[0];
    desc.weight_stride = weight.stride[0];
    desc.output_stride = y.stride[0];
    return desc;
  }
  fp8rt::LinearPlan plan(const fp8rt::Context &context) const { return fp8rt::LinearPlan(context, desc()); }
  fp8rt_status prepare(const fp8rt::LinearPlan &plan, const Stream &stream) const {
    return fp8rt_linear_plan_prepare(plan.get(), &weight, &weight_scales, bias_or_none(), stream.get());
  }
  fp8rt_status run(Form form, const fp8rt::LinearPlan &plan, const Memory &workspace, const Stream &stream) const {
    if (form == Form::kValues) {
      return fp8rt_linear(plan.get(), &x, &weight, &weight_scales, bias_or_none(), &y, workspace.data(),
                          workspace.bytes(), stream.get());
    }
    return fp8rt_linear_prequantized(plan.get(), &x_codes, &x_scales, &weight, &weight_scales, bias_or_none(), &y,
                                     workspace.data(), workspace.bytes(), stream.get());
  }

  const LinearShape shape;
  fp8rt_tensor x{}, x_codes{}, x_scales{}, weight{}, weight_scales{}, bias{}, y{};

 private:
  const fp8rt_tensor *bias_or_none() const { return shape.bias_dtype == 0 ? nullptr : &bias; }
  fp8rt_tensor place(int device, fp8rt_tensor view) {
    memory_.emplace_back(device, view.bytes);
    view.data = memory_.back().data();
    view.device = device;
    return view;
  }
  fp8rt_tensor matrix(int device, std::uint32_t dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
    return place(device, fp8rt::tensor(nullptr, static_cast<fp8rt_dtype>(dtype), {rows, columns}, stride));
  }

  std::vector<Memory> memory_;
};

// What the driver passes to DeepGEMM's kernel. The tensor maps are the last of its parameters; what lies between them
// and the numbers depends on the compiler, which aligns them where they are on the device.
struct DeepGemmParameters {
  struct Scalars {
    const void *weight_scales;
    const void *layout;
    std::uint32_t m, n, k;
  } scalars;
  fake_cuda_tensor_map x, weight, y, x_scales;

  static DeepGemmParameters of(const fake_cuda_launch &launch) {
    const auto map = [&](std::size_t from_end) {
      const std::size_t offset = launch.parameter_bytes - from_end * sizeof(fake_cuda_tensor_map);
      return parameters<fake_cuda_tensor_map>(launch, offset);
    };
    return {parameters<Scalars>(launch), map(4), map(3), map(2), map(1)};
  }
};

// What a kernel was compiled for, from its mangled name: its numbers, in the order of the template.
struct DeepGemmKernel {
  std::uint32_t m, n, k, groups, rows, columns, depth, x_swizzle, weight_swizzle, y_swizzle, stages, load_threads,
      math_threads, cluster, thread_blocks;

  // None for a launch of another kernel.
  static std::optional<DeepGemmKernel> of(const fake_cuda_launch &launch) {
    const std::string name = launch.kernel, number = "Lj";
    std::vector<std::uint32_t> numbers;
    for (std::size_t at = name.find(number); at != std::string::npos; at = name.find(number, at + 1)) {
      numbers.push_back(static_cast<std::uint32_t>(std::strtoul(name.c_str() + at + number.size(), nullptr, 10)));
    }
    DeepGemmKernel kernel{};
    if (name.find("sm90_fp8_gemm_1d2d_impl") == std::string::npos || sizeof kernel != numbers.size() * 4) {
      return std::nullopt;
    }
    std::memcpy(&kernel, numbers.data(), sizeof kernel);
    return kernel;
  }
};

inline LinearShape by_deepgemm(LinearShape shape) {
  shape.backends = FP8RT_BACKEND_DEEPGEMM;
  return shape;
}

inline bool begins_with(const fake_cuda_launch &launch, const std::string &begin) {
  return std::string(launch.kernel).compare(0, begin.size(), begin) == 0;
}

// Whether an address is among the parameters of a launch.
inline bool passes(const fake_cuda_launch &launch, const void *address) {
  for (std::uint32_t at = 0; at + sizeof address <= launch.parameter_bytes; at += sizeof address) {
    if (std::memcmp(launch.parameters + at, &address, sizeof address) == 0) return true;
  }
  return false;
}

class LinearLaunches : public ::testing::Test {
 protected:
  void SetUp() override { fake_cuda_reset(); }

  // The launches of one prepared run.
  std::vector<fake_cuda_launch> launches_of(Form form, const LinearOperands &operands, const fp8rt::LinearPlan &plan) {
    const Memory workspace(0, plan.query().workspace_bytes);
    EXPECT_OK(operands.prepare(plan, stream));
    fake_cuda_reset();
    EXPECT_OK(operands.run(form, plan, workspace, stream)) << plan.describe();
    EXPECT_TRUE(only_light_calls());
    EXPECT_TRUE(no_violations());
    return launches();
  }

  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
};

// The backends whose steps are known here.
class LinearOf : public LinearLaunches, public ::testing::WithParamInterface<std::uint32_t> {
 public:
  static std::string name(const ::testing::TestParamInfo<std::uint32_t> &info) {
    return info.param == FP8RT_BACKEND_PLAIN ? "Plain" : "DeepGemm";
  }

 protected:
  LinearOperands operands_of() const {
    LinearShape shape{21, 512, 1024};
    shape.bias_dtype = FP8RT_DTYPE_BF16;
    shape.backends = GetParam();
    return LinearOperands(shape);
  }
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_FAKE_LINEAR_HPP
