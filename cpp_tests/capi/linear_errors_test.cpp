// What the functions of the linear refuse: the status, the message, and no byte written.

#include <gtest/gtest.h>

#include <climits>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "linear_problem.hpp"

namespace fp8rt_test {
namespace {

constexpr const char *kCreate = "fp8rt_linear_plan_create";

struct DescCase {
  const char *label;
  std::function<void(fp8rt_linear_desc &)> spoil;
  fp8rt_status status;
  std::vector<std::string> texts;
};

TEST(LinearPlanErrors, Descriptors) {
  static const std::int64_t kShort[] = {32, 31}, kNegative[] = {65, -1};
  const auto parts = [](const std::int64_t *rows, std::uint32_t count) {
    return [=](fp8rt_linear_desc &d) {
      d.part_rows = rows;
      d.num_parts = count;
    };
  };
  using Desc = fp8rt_linear_desc;
  const DescCase cases[] = {
      {"size 0", [](Desc &d) { d.struct_size = 0; }, FP8RT_STATUS_STRUCT_SIZE, {"struct_size 0"}},
      {"size huge", [](Desc &d) { d.struct_size = UINT32_MAX; }, FP8RT_STATUS_STRUCT_SIZE, {"4294967295"}},
      {"flags", [](Desc &d) { d.flags = 4; }, FP8RT_STATUS_INVALID_ARGUMENT, {"flags", "0x4", "0x3"}},
      {"negative M", [](Desc &d) { d.max_m = -1; }, FP8RT_STATUS_SHAPE, {"max_m is -1"}},
      {"negative N", [](Desc &d) { d.n = -5; }, FP8RT_STATUS_SHAPE, {"n is -5"}},
      {"negative K", [](Desc &d) { d.k = INT64_MIN; }, FP8RT_STATUS_SHAPE, {"k is -9223372036854775808"}},
      {"no input type", [](Desc &d) { d.input_dtype = 0; }, FP8RT_STATUS_DTYPE, {"input_dtype is 0"}},
      {"input of codes",
       [](Desc &d) { d.input_dtype = FP8RT_DTYPE_E4M3; },
       FP8RT_STATUS_DTYPE,
       {"input_dtype", "e4m3"}},
      {"output 6", [](Desc &d) { d.output_dtype = 6; }, FP8RT_STATUS_DTYPE, {"output_dtype is 6"}},
      {"output int32", [](Desc &d) { d.output_dtype = FP8RT_DTYPE_INT32; }, FP8RT_STATUS_DTYPE, {"output_dtype"}},
      {"bias huge", [](Desc &d) { d.bias_dtype = UINT32_MAX; }, FP8RT_STATUS_DTYPE, {"bias_dtype is 4294967295"}},
      {"bias of codes", [](Desc &d) { d.bias_dtype = FP8RT_DTYPE_E4M3; }, FP8RT_STATUS_DTYPE, {"bias_dtype"}},
      {"recipe",
       [](Desc &d) { d.activation_recipe = 5; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"activation_recipe is 5", "4"}},
      {"activation format",
       [](Desc &d) { d.activation_scale_format = 3; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"activation_scale_format is 3"}},
      {"weight format",
       [](Desc &d) { d.weight_scale_format = UINT32_MAX; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"weight_scale_format is 4294967295"}},
      {"layout",
       [](Desc &d) { d.activation_scale_layout = 2; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"activation_scale_layout is 2"}},
      {"floor",
       [](Desc &d) {
         d.flags = FP8RT_LINEAR_FLOOR;
         d.floor = -2;
       },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"floor is -2"}},
      {"floor NaN",
       [](Desc &d) {
         d.flags = FP8RT_LINEAR_FLOOR;
         d.floor = std::nanf("");
       },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"floor"}},
      {"input stride", [](Desc &d) { d.input_stride = 127; }, FP8RT_STATUS_STRIDE, {"input_stride is 127", "128"}},
      {"weight stride", [](Desc &d) { d.weight_stride = -1; }, FP8RT_STATUS_STRIDE, {"weight_stride is -1"}},
      {"output stride", [](Desc &d) { d.output_stride = 63; }, FP8RT_STATUS_STRIDE, {"output_stride is 63", "64"}},
      {"parts", parts(kShort, 2), FP8RT_STATUS_SHAPE, {"63", "64"}},
      {"negative part", parts(kNegative, 2), FP8RT_STATUS_INVALID_ARGUMENT, {"part_rows[1]", "-1"}},
      {"no parts", parts(nullptr, 2), FP8RT_STATUS_NULL_POINTER, {"part_rows"}},
      {"too many parts", parts(kShort, UINT32_MAX), FP8RT_STATUS_INVALID_ARGUMENT, {"num_parts", "4294967295"}},
  };
  const fp8rt::Context context;
  const LinearProblem problem({3, 64, 128});
  fp8rt_linear_plan *const unset = reinterpret_cast<fp8rt_linear_plan *>(std::uintptr_t{0x10});
  for (const DescCase &one : cases) {
    fp8rt_linear_desc desc = problem.desc();
    one.spoil(desc);
    fp8rt_linear_plan *plan = unset;
    EXPECT_TRUE(failed_with(fp8rt_linear_plan_create(context.get(), &desc, &plan), one.status, kCreate, one.texts))
        << one.label;
    EXPECT_EQ(plan, unset) << one.label;
  }
}

TEST(LinearPlanErrors, HugeShapesDoNotCrash) {
  const fp8rt::Context context;
  for (const std::int64_t huge : {INT64_MAX, INT64_MAX / 2, INT64_MAX / 64}) {
    for (int field = 0; field < 3; ++field) {
      fp8rt_linear_desc desc = LinearProblem({3, 64, 128}).desc();
      desc.input_stride = desc.weight_stride = desc.output_stride = 0;
      (field == 0 ? desc.max_m : field == 1 ? desc.n : desc.k) = huge;
      fp8rt_linear_plan *plan = nullptr;
      const fp8rt_status created = fp8rt_linear_plan_create(context.get(), &desc, &plan);
      EXPECT_NE(created, FP8RT_STATUS_INTERNAL) << field << ": " << fp8rt_last_error();
      if (created == FP8RT_STATUS_OK) {
        std::uint64_t bytes = 0;
        const fp8rt_status asked = fp8rt_linear_plan_workspace(plan, desc.max_m, &bytes);
        EXPECT_NE(asked, FP8RT_STATUS_INTERNAL) << field << ": " << fp8rt_last_error();
        EXPECT_OK(fp8rt_linear_plan_destroy(plan));
      }
    }
  }
}

TEST(LinearPlanErrors, NullPointers) {
  const fp8rt::Context context;
  const LinearProblem problem({3, 64, 128});
  const fp8rt_linear_desc desc = problem.desc();
  const fp8rt::LinearPlan plan(context, desc);
  fp8rt_linear_plan *made = nullptr;
  fp8rt_linear_plan_info info{};
  std::uint64_t bytes = 0;
  const auto null = [](fp8rt_status status, const char *function, const char *argument) {
    return failed_with(status, FP8RT_STATUS_NULL_POINTER, function, {argument});
  };
  EXPECT_TRUE(null(fp8rt_linear_plan_create(nullptr, &desc, &made), kCreate, "context"));
  EXPECT_TRUE(null(fp8rt_linear_plan_create(context.get(), nullptr, &made), kCreate, "desc"));
  EXPECT_TRUE(null(fp8rt_linear_plan_create(context.get(), &desc, nullptr), kCreate, "plan"));
  EXPECT_TRUE(null(fp8rt_linear_plan_query(nullptr, &info), "fp8rt_linear_plan_query", "plan"));
  EXPECT_TRUE(null(fp8rt_linear_plan_query(plan.get(), nullptr), "fp8rt_linear_plan_query", "info"));
  EXPECT_TRUE(null(fp8rt_linear_plan_workspace(nullptr, 1, &bytes), "fp8rt_linear_plan_workspace", "plan"));
  EXPECT_TRUE(null(fp8rt_linear_plan_workspace(plan.get(), 1, nullptr), "fp8rt_linear_plan_workspace", "bytes"));
  EXPECT_TRUE(null(fp8rt_linear_plan_describe(nullptr, nullptr, 0, &bytes), "fp8rt_linear_plan_describe", "plan"));
  EXPECT_TRUE(null(fp8rt_linear_plan_describe(plan.get(), nullptr, 9, &bytes), "fp8rt_linear_plan_describe", "text"));
  EXPECT_OK(fp8rt_linear_plan_destroy(nullptr));
  EXPECT_TRUE(failed_with(fp8rt_linear_plan_query(plan.get(), &info), FP8RT_STATUS_STRUCT_SIZE,
                          "fp8rt_linear_plan_query", {"struct_size 0"}));
}

TEST(LinearPlanErrors, WorkspaceOfRowsOutsideThePlan) {
  const fp8rt::Context context;
  const fp8rt::LinearPlan plan(context, LinearProblem({3, 64, 128}).desc());
  std::uint64_t bytes = 77;
  for (const std::int64_t m : {std::int64_t{4}, std::int64_t{-1}, INT64_MAX, INT64_MIN}) {
    EXPECT_TRUE(failed_with(fp8rt_linear_plan_workspace(plan.get(), m, &bytes), FP8RT_STATUS_SHAPE,
                            "fp8rt_linear_plan_workspace", {"m is " + std::to_string(m)}));
  }
  EXPECT_EQ(bytes, 77u);
}

// A valid run, which a case spoils in one place.
class Attempt {
 public:
  explicit Attempt(bool prequantized_)
      : prequantized(prequantized_), problem(shape()), plan(context, problem.desc()), workspace(plan.workspace(6)) {
    x = prequantized ? problem.x_codes.tensor() : problem.x.tensor();
    x_scales = problem.x_scales.tensor();
    weight = problem.weight.tensor();
    weight_scales = problem.weight_scales.tensor();
    bias = fp8rt::tensor(problem.bias.data(), FP8RT_DTYPE_F32, {200});
    y = problem.y.tensor();
    pointers = {&x, &x_scales, &weight, &weight_scales, &bias, &y};
    workspace_data = workspace.data();
    workspace_bytes = workspace.bytes();
  }
  Attempt(const Attempt &) = delete;
  Attempt &operator=(const Attempt &) = delete;

  const char *name() const { return prequantized ? "fp8rt_linear_prequantized" : "fp8rt_linear"; }

  fp8rt_status run() {
    if (prequantized) {
      return fp8rt_linear_prequantized(plan_handle(), pointers.x, pointers.x_scales, pointers.weight,
                                       pointers.weight_scales, pointers.bias, pointers.y, workspace_data,
                                       workspace_bytes, stream);
    }
    return fp8rt_linear(plan_handle(), pointers.x, pointers.weight, pointers.weight_scales, pointers.bias, pointers.y,
                        workspace_data, workspace_bytes, stream);
  }

  ::testing::AssertionResult refused(fp8rt_status status, const std::vector<std::string> &texts) {
    const Matrix before[] = {problem.y, problem.x, problem.x_codes, problem.weight, problem.weight_scales};
    const ::testing::AssertionResult failed = failed_with(run(), status, name(), texts);
    if (!failed) {
      return failed;
    }
    const Matrix *after[] = {&problem.y, &problem.x, &problem.x_codes, &problem.weight, &problem.weight_scales};
    for (int index = 0; index < 5; ++index) {
      const ::testing::AssertionResult same = same_bytes(*after[index], before[index]);
      if (!same) {
        return ::testing::AssertionFailure() << "tensor " << index << " was written: " << same.message();
      }
    }
    return ::testing::AssertionSuccess();
  }

  bool prequantized;
  bool no_plan = false;
  fp8rt::Context context = context_with_threads(1);
  LinearProblem problem;
  fp8rt::LinearPlan plan;
  Workspace workspace;
  fp8rt_tensor x{}, x_scales{}, weight{}, weight_scales{}, bias{}, y{};
  struct {
    const fp8rt_tensor *x, *x_scales, *weight, *weight_scales, *bias, *y;
  } pointers{};
  void *workspace_data = nullptr;
  std::uint64_t workspace_bytes = 0;
  void *stream = nullptr;

 private:
  static LinearShape shape() {
    LinearShape shape{6, 200, 300};
    shape.bias_dtype = FP8RT_DTYPE_F32;
    shape.extra_stride = 20;
    return shape;
  }
  fp8rt_linear_plan *plan_handle() const { return no_plan ? nullptr : plan.get(); }
};

struct RunCase {
  const char *label;
  std::function<void(Attempt &)> spoil;
  fp8rt_status status;
  std::vector<std::string> texts;
};

class LinearErrors : public ::testing::TestWithParam<bool> {
 protected:
  void expect_all(const std::vector<RunCase> &cases) {
    for (const RunCase &one : cases) {
      Attempt run(GetParam());
      one.spoil(run);
      EXPECT_TRUE(run.refused(one.status, one.texts)) << one.label;
    }
  }
};

TEST_P(LinearErrors, TheBaseIsValid) {
  Attempt run(GetParam());
  EXPECT_OK(run.run());
  EXPECT_TRUE(within_bounds(run.problem.y, run.problem.exact()));
}

TEST_P(LinearErrors, NullPointers) {
  expect_all({
      {"plan", [](Attempt &r) { r.no_plan = true; }, FP8RT_STATUS_NULL_POINTER, {"plan"}},
      {"x", [](Attempt &r) { r.pointers.x = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"x is NULL"}},
      {"weight", [](Attempt &r) { r.pointers.weight = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"weight is NULL"}},
      {"scales",
       [](Attempt &r) { r.pointers.weight_scales = nullptr; },
       FP8RT_STATUS_NULL_POINTER,
       {"weight_scales is NULL"}},
      {"bias", [](Attempt &r) { r.pointers.bias = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"bias is NULL"}},
      {"y", [](Attempt &r) { r.pointers.y = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"y is NULL"}},
      {"data of y", [](Attempt &r) { r.y.data = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"y has data NULL"}},
      {"data of bias", [](Attempt &r) { r.bias.data = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"bias has data NULL"}},
  });
  if (GetParam()) {
    expect_all({{"x_scales",
                 [](Attempt &r) { r.pointers.x_scales = nullptr; },
                 FP8RT_STATUS_NULL_POINTER,
                 {"x_scales is NULL"}}});
  }
}

TEST_P(LinearErrors, Shapes) {
  expect_all({
      {"K of x", [](Attempt &r) { r.x.shape[1] = 299; }, FP8RT_STATUS_SHAPE, {"x has 299", "300"}},
      {"K of the weight", [](Attempt &r) { r.weight.shape[1] = 299; }, FP8RT_STATUS_SHAPE, {"weight has 299", "300"}},
      {"N of the weight", [](Attempt &r) { r.weight.shape[0] = 199; }, FP8RT_STATUS_SHAPE, {"weight has 199", "200"}},
      {"N of y", [](Attempt &r) { r.y.shape[1] = 199; }, FP8RT_STATUS_SHAPE, {"y has 199", "200"}},
      {"M of y", [](Attempt &r) { r.y.shape[0] = 5; }, FP8RT_STATUS_SHAPE, {"y has 5", "6"}},
      {"N of the bias", [](Attempt &r) { r.bias.shape[0] = 199; }, FP8RT_STATUS_SHAPE, {"bias has 199", "200"}},
      {"rank of the bias",
       [](Attempt &r) { r.bias = r.problem.bias.tensor(); },
       FP8RT_STATUS_SHAPE,
       {"bias has rank 2", "1"}},
      {"columns of scales",
       [](Attempt &r) { r.weight_scales.shape[1] = 2; },
       FP8RT_STATUS_SHAPE,
       {"weight_scales has 2 columns", "3"}},
      {"rows of scales",
       [](Attempt &r) { r.weight_scales.shape[0] = 1; },
       FP8RT_STATUS_SHAPE,
       {"weight_scales has 1 rows", "2"}},
      {"rank of x", [](Attempt &r) { r.x.rank = 1; }, FP8RT_STATUS_SHAPE, {"x has"}},
      {"rank of y", [](Attempt &r) { r.y.rank = 9; }, FP8RT_STATUS_SHAPE, {"y has rank 9"}},
      {"more rows than planned",
       [](Attempt &r) {
         r.x.shape[0] = r.y.shape[0] = 7;
         r.x.bytes += 4000;
         r.y.bytes += 4000;
       },
       FP8RT_STATUS_SHAPE,
       {"x has 7 rows", "max_m = 6"}},
  });
  if (GetParam()) {
    expect_all({
        {"rows of x_scales",
         [](Attempt &r) { r.x_scales.shape[0] = 5; },
         FP8RT_STATUS_SHAPE,
         {"x_scales has 5 rows", "6"}},
        {"columns of x_scales",
         [](Attempt &r) { r.x_scales.shape[1] = 2; },
         FP8RT_STATUS_SHAPE,
         {"x_scales has 2 columns", "3"}},
    });
  }
}

TEST_P(LinearErrors, Types) {
  expect_all({
      {"x",
       [](Attempt &r) {
         r.x.dtype = FP8RT_DTYPE_F16;
         r.x.bytes *= 2;
       },
       FP8RT_STATUS_DTYPE,
       {"x has dtype fp16"}},
      {"weight",
       [](Attempt &r) {
         r.weight.dtype = FP8RT_DTYPE_BF16;
         r.weight.bytes *= 2;
       },
       FP8RT_STATUS_DTYPE,
       {"weight has dtype bf16", "e4m3"}},
      {"scales",
       [](Attempt &r) { r.weight_scales.dtype = FP8RT_DTYPE_INT32; },
       FP8RT_STATUS_DTYPE,
       {"weight_scales has dtype int32", "fp32"}},
      {"bias",
       [](Attempt &r) { r.bias.dtype = FP8RT_DTYPE_BF16; },
       FP8RT_STATUS_DTYPE,
       {"bias has dtype bf16", "fp32"}},
      {"y", [](Attempt &r) { r.y.dtype = FP8RT_DTYPE_F16; }, FP8RT_STATUS_DTYPE, {"y has dtype fp16", "bf16"}},
      {"y huge", [](Attempt &r) { r.y.dtype = UINT32_MAX; }, FP8RT_STATUS_DTYPE, {"y has dtype 4294967295"}},
  });
}

TEST_P(LinearErrors, StridesAndAlignment) {
  const auto by = [](fp8rt_tensor &view, int bytes) {
    view.data = static_cast<std::uint8_t *>(view.data) + bytes;
    view.bytes += 64;
  };
  expect_all({
      {"weight",
       [](Attempt &r) { r.weight.stride[0] = 310; },
       FP8RT_STATUS_STRIDE,
       {"weight has row stride 310", "320"}},
      {"y", [](Attempt &r) { r.y.stride[0] = 210; }, FP8RT_STATUS_STRIDE, {"y has row stride 210", "220"}},
      {"x too close", [](Attempt &r) { r.x.stride[0] = 299; }, FP8RT_STATUS_STRIDE, {"x has", "299"}},
      {"columns of y",
       [](Attempt &r) {
         r.y.stride[1] = 2;
         r.y.bytes *= 2;
       },
       FP8RT_STATUS_STRIDE,
       {"y has stride[1] = 2"}},
      {"elements of the bias",
       [](Attempt &r) {
         r.bias.stride[0] = 2;
         r.bias.bytes *= 2;
       },
       FP8RT_STATUS_STRIDE,
       {"bias has stride[0] = 2"}},
      {"y misaligned", [&](Attempt &r) { by(r.y, 1); }, FP8RT_STATUS_ALIGNMENT, {"y is at", "2"}},
      {"scales misaligned",
       [&](Attempt &r) { by(r.weight_scales, 2); },
       FP8RT_STATUS_ALIGNMENT,
       {"weight_scales is at", "4"}},
      {"bias misaligned", [&](Attempt &r) { by(r.bias, 1); }, FP8RT_STATUS_ALIGNMENT, {"bias is at", "4"}},
  });
  if (GetParam()) {
    const auto row_major = [](Attempt &r) {
      r.x_scales.stride[0] = 3;
      r.x_scales.stride[1] = 1;
    };
    expect_all({
        {"x", [](Attempt &r) { r.x.stride[0] = 310; }, FP8RT_STATUS_STRIDE, {"x has row stride 310", "320"}},
        {"layout", row_major, FP8RT_STATUS_STRIDE, {"x_scales is row-major", "column-major"}},
        {"column stride", [](Attempt &r) { r.x_scales.stride[1] = 6; }, FP8RT_STATUS_STRIDE, {"x_scales", "6", "4"}},
    });
  }
}

TEST_P(LinearErrors, BoundsReservedAndDevices) {
  expect_all({
      {"x", [](Attempt &r) { r.x.bytes -= 1; }, FP8RT_STATUS_BOUNDS, {"x has"}},
      {"weight", [](Attempt &r) { r.weight.bytes -= 1; }, FP8RT_STATUS_BOUNDS, {"weight has 63979 bytes", "63980"}},
      {"scales",
       [](Attempt &r) { r.weight_scales.bytes -= 1; },
       FP8RT_STATUS_BOUNDS,
       {"weight_scales has 23 bytes", "24"}},
      {"bias", [](Attempt &r) { r.bias.bytes -= 1; }, FP8RT_STATUS_BOUNDS, {"bias has 799 bytes", "800"}},
      {"y", [](Attempt &r) { r.y.bytes -= 1; }, FP8RT_STATUS_BOUNDS, {"y has 2599 bytes", "2600"}},
      {"reserved", [](Attempt &r) { r.y.reserved = 1; }, FP8RT_STATUS_INVALID_ARGUMENT, {"y has reserved = 1"}},
      {"x on a device", [](Attempt &r) { r.x.device = 0; }, FP8RT_STATUS_DEVICE, {"x is on device 0", "-1"}},
      {"weight on a device",
       [](Attempt &r) { r.weight.device = 0; },
       FP8RT_STATUS_DEVICE,
       {"weight is on device 0", "-1"}},
      {"y on a device", [](Attempt &r) { r.y.device = 7; }, FP8RT_STATUS_DEVICE, {"y is on device 7", "-1"}},
      {"bias on a device", [](Attempt &r) { r.bias.device = 1; }, FP8RT_STATUS_DEVICE, {"bias is on device 1", "-1"}},
      {"stream", [](Attempt &r) { r.stream = &r; }, FP8RT_STATUS_INVALID_ARGUMENT, {"stream"}},
  });
}

TEST_P(LinearErrors, Overlaps) {
  const auto in = [](fp8rt_tensor &view, void *place, std::uint64_t bytes) {
    view.data = place;
    view.bytes = bytes;
  };
  expect_all({
      {"y in x",
       [&](Attempt &r) {
         in(r.y, r.x.data, r.problem.x.bytes());
         r.x.bytes = r.problem.x.bytes();
       },
       FP8RT_STATUS_OVERLAP,
       {"y overlaps x"}},
      {"y in the weight",
       [&](Attempt &r) { in(r.y, r.weight.data, r.weight.bytes); },
       FP8RT_STATUS_OVERLAP,
       {"y overlaps weight"}},
      {"bias in y",
       [&](Attempt &r) { in(r.bias, static_cast<std::uint8_t *>(r.y.data) + 4, 1000); },
       FP8RT_STATUS_OVERLAP,
       {"y overlaps bias"}},
      {"scales in y",
       [&](Attempt &r) { in(r.weight_scales, r.y.data, 1000); },
       FP8RT_STATUS_OVERLAP,
       {"y overlaps weight_scales"}},
  });
}

TEST_P(LinearErrors, Workspaces) {
  Attempt probe(GetParam());
  ASSERT_GT(probe.workspace_bytes, 0u) << "the cases below need a linear that has a workspace";
  const std::string needed = std::to_string(probe.workspace_bytes), given = std::to_string(probe.workspace_bytes - 1);
  expect_all({
      {"one byte short",
       [](Attempt &r) { r.workspace_bytes -= 1; },
       FP8RT_STATUS_WORKSPACE,
       {"workspace", given, needed}},
      {"none",
       [](Attempt &r) {
         r.workspace_data = nullptr;
         r.workspace_bytes = 0;
       },
       FP8RT_STATUS_WORKSPACE,
       {"workspace", "0", needed}},
      {"NULL", [](Attempt &r) { r.workspace_data = nullptr; }, FP8RT_STATUS_WORKSPACE, {"workspace is NULL", needed}},
      {"misaligned",
       [](Attempt &r) { r.workspace_data = static_cast<std::uint8_t *>(r.workspace_data) + 128; },
       FP8RT_STATUS_ALIGNMENT,
       {"workspace", "256"}},
      {"wrapping",
       [](Attempt &r) { r.workspace_bytes = UINT64_MAX; },
       FP8RT_STATUS_WORKSPACE,
       {"workspace", "18446744073709551615"}},
      {"over the weight",
       [](Attempt &r) { r.workspace_data = r.weight.data; },
       FP8RT_STATUS_OVERLAP,
       {"overlaps workspace"}},
      {"over y", [](Attempt &r) { r.workspace_data = r.y.data; }, FP8RT_STATUS_OVERLAP, {"overlaps workspace"}},
  });
}

TEST_P(LinearErrors, ABiasThatThePlanLacks) {
  Attempt run(GetParam());
  fp8rt_linear_desc desc = run.problem.desc();
  desc.bias_dtype = 0;
  run.plan = fp8rt::LinearPlan(run.context, desc);
  EXPECT_TRUE(run.refused(FP8RT_STATUS_INVALID_ARGUMENT, {"bias is given"}));
}

std::string form_name(const ::testing::TestParamInfo<bool> &info) {
  return info.param ? "prequantized" : "quantizing";
}

INSTANTIATE_TEST_SUITE_P(BothForms, LinearErrors, ::testing::Bool(), form_name);

TEST(PrepareErrors, AreThoseOfTheWeight) {
  constexpr const char *kPrepare = "fp8rt_linear_plan_prepare";
  Attempt r(false);
  const auto prepare = [&](const fp8rt_tensor *weight, const fp8rt_tensor *scales, const fp8rt_tensor *bias,
                           void *stream) {
    return fp8rt_linear_plan_prepare(r.plan.get(), weight, scales, bias, stream);
  };
  EXPECT_OK(prepare(&r.weight, &r.weight_scales, &r.bias, nullptr));
  EXPECT_TRUE(failed_with(fp8rt_linear_plan_prepare(nullptr, &r.weight, &r.weight_scales, &r.bias, nullptr),
                          FP8RT_STATUS_NULL_POINTER, kPrepare, {"plan"}));
  EXPECT_TRUE(failed_with(prepare(nullptr, &r.weight_scales, &r.bias, nullptr), FP8RT_STATUS_NULL_POINTER, kPrepare,
                          {"weight"}));
  EXPECT_TRUE(failed_with(prepare(&r.weight, nullptr, &r.bias, nullptr), FP8RT_STATUS_NULL_POINTER, kPrepare,
                          {"weight_scales"}));
  EXPECT_TRUE(failed_with(prepare(&r.weight, &r.weight_scales, nullptr, nullptr), FP8RT_STATUS_NULL_POINTER, kPrepare,
                          {"bias"}));
  EXPECT_TRUE(failed_with(prepare(&r.weight, &r.weight_scales, &r.bias, &r), FP8RT_STATUS_INVALID_ARGUMENT, kPrepare,
                          {"stream"}));
  r.weight.shape[0] = 199;
  EXPECT_TRUE(failed_with(prepare(&r.weight, &r.weight_scales, &r.bias, nullptr), FP8RT_STATUS_SHAPE, kPrepare,
                          {"199", "200"}));
  r.weight.shape[0] = 200;
  r.weight_scales.shape[1] = 2;
  EXPECT_TRUE(
      failed_with(prepare(&r.weight, &r.weight_scales, &r.bias, nullptr), FP8RT_STATUS_SHAPE, kPrepare, {"2", "3"}));
}

// A fused output: y in the left columns of a wider matrix whose right ones hold the bias of nobody but x itself.
TEST(LinearWindows, OfOneWiderMatrixAreAccepted) {
  const fp8rt::Context context;
  LinearShape shape{9, 64, 128};
  LinearProblem problem(shape);
  constexpr std::int64_t kPitch = 256;
  Matrix wide(FP8RT_DTYPE_BF16, {9, kPitch});
  for (std::int64_t row = 0; row < 9; ++row) {
    std::memcpy(wide.data() + wide.offset_of(0, row, 64), problem.x.data() + problem.x.offset_of(0, row, 0), 256);
  }
  fp8rt_linear_desc desc = problem.desc();
  desc.output_stride = kPitch;
  const fp8rt::LinearPlan plan(context, desc);
  Workspace workspace(plan.workspace(9));
  const fp8rt_tensor y = fp8rt::tensor(wide.data(), FP8RT_DTYPE_BF16, {9, 64}, kPitch);
  const fp8rt_tensor x = fp8rt::tensor(wide.data() + 128, FP8RT_DTYPE_BF16, {9, 128}, kPitch);
  const fp8rt_tensor weight = problem.weight.tensor(), scales = problem.weight_scales.tensor();
  const Matrix before = wide;
  ASSERT_OK(
      fp8rt_linear(plan.get(), &x, &weight, &scales, nullptr, &y, workspace.data(), workspace.bytes(), nullptr));
  Matrix got(FP8RT_DTYPE_BF16, {9, 64}), rest = wide;
  for (std::int64_t row = 0; row < 9; ++row) {
    std::memcpy(got.data() + got.offset_of(0, row, 0), wide.data() + wide.offset_of(0, row, 0), 128);
    std::memcpy(rest.data() + rest.offset_of(0, row, 0), before.data() + before.offset_of(0, row, 0), 128);
  }
  EXPECT_TRUE(within_bounds(got, problem.exact()));
  EXPECT_TRUE(same_bytes(rest, before));
}

}  // namespace
}  // namespace fp8rt_test
