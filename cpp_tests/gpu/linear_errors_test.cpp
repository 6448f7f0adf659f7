// What a linear on a GPU refuses: the status, the message with both numbers, nothing enqueued and nothing written.

#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

constexpr const char *kCreate = "fp8rt_linear_plan_create";

LinearShape example() {
  LinearShape shape{21, 256, 384};
  shape.bias_dtype = FP8RT_DTYPE_F32;
  shape.extra_stride = 16;
  return shape;
}

std::string hexadecimal(const void *address) {
  std::ostringstream text;
  text << "0x" << std::hex << reinterpret_cast<std::uintptr_t>(address);
  return text.str();
}

// A prepared plan of one backend, and a valid run that a case spoils.
struct Attempt {
  Attempt(fp8rt::LinearPlan plan_, const LinearProblem &problem)
      : plan(std::move(plan_)),
        device(problem),
        workspace(plan.query().workspace_bytes),
        views(device.views()),
        workspace_data(workspace.data()),
        workspace_bytes(workspace.bytes()) {
    EXPECT_OK(views.prepare(plan, stream));
  }

  fp8rt_status run(Form form) const { return views.run(form, plan, workspace_data, workspace_bytes, stream); }
  // In a capture, which shows whatever is enqueued.
  ::testing::AssertionResult refused(Form form, fp8rt_status want, const std::vector<std::string> &texts) const {
    fp8rt_status status = FP8RT_STATUS_OK;
    const Graph graph(stream, [&] { status = run(form); });
    const auto failed = failed_with(status, want, name_of(form), texts);
    if (failed && graph.nodes() != 0) {
      return ::testing::AssertionFailure() << graph.nodes() << " nodes were enqueued before " << fp8rt_last_error();
    }
    return failed ? same_bytes(device.y.download(), device.blank) : failed;
  }

  fp8rt::LinearPlan plan;
  DeviceLinear device;
  DeviceWorkspace workspace;
  Stream stream;
  LinearViews views;
  void *workspace_data;
  std::uint64_t workspace_bytes;
};

struct Case {
  const char *label;
  std::function<void(Attempt &)> spoil;
  fp8rt_status status;
  std::vector<std::string> texts;
};

// Each case on each backend, for both forms; then the same attempt unspoiled.
void expect_all(const std::vector<Case> &cases, const std::vector<Form> &forms = {Form::kValues, Form::kQuantized}) {
  const LinearProblem problem = make_problem(example());
  const Reference want = reference_of(problem);
  for (const Backend &backend : kBackends) {
    for (const Case &one : cases) {
      auto plan = plan_by(backend, problem);
      if (!plan) {
        continue;
      }
      Attempt attempt(std::move(*plan), problem);
      one.spoil(attempt);
      for (const Form form : forms) {
        EXPECT_TRUE(attempt.refused(form, one.status, one.texts)) << backend.name << ", " << one.label;
      }
      EXPECT_TRUE(is_right(attempt.plan, attempt.device, want, problem.shape.m)) << backend.name << ", " << one.label;
    }
  }
}

TEST(LinearRefused, Workspaces) {
  const LinearProblem problem = make_problem(example());
  for (const Backend &backend : kBackends) {
    for (const Form form : kForms) {
      auto plan = plan_by(backend, problem);
      if (!plan) {
        continue;
      }
      Attempt attempt(std::move(*plan), problem);
      const std::uint64_t needed = attempt.workspace_bytes;
      if (needed == 0) {
        EXPECT_OK(attempt.run(form));
        continue;
      }
      const std::string all = std::to_string(needed), less = std::to_string(needed - 1);
      attempt.workspace_bytes = needed - 1;
      EXPECT_TRUE(attempt.refused(form, FP8RT_STATUS_WORKSPACE, {"workspace", less, all})) << backend.name;
      attempt.workspace_bytes = needed;
      attempt.workspace_data = nullptr;
      EXPECT_TRUE(attempt.refused(form, FP8RT_STATUS_WORKSPACE, {"workspace is NULL", all})) << backend.name;
      attempt.workspace_data = static_cast<std::uint8_t *>(attempt.workspace.data()) + 128;
      EXPECT_TRUE(attempt.refused(form, FP8RT_STATUS_ALIGNMENT,
                                  {"workspace", hexadecimal(attempt.workspace_data), "256"}))
          << backend.name;
      attempt.workspace_data = attempt.views.y.data;
      EXPECT_TRUE(attempt.refused(form, FP8RT_STATUS_OVERLAP, {"overlaps workspace"})) << backend.name;
    }
  }
}

TEST(LinearRefused, ShapesStridesAndMemory) {
  expect_all({
      {"K of the weight", [](Attempt &a) { a.views.weight.shape[1] = 383; }, FP8RT_STATUS_SHAPE, {"383", "384"}},
      {"N of y", [](Attempt &a) { a.views.y.shape[1] = 255; }, FP8RT_STATUS_SHAPE, {"y has 255", "256"}},
      {"M of y", [](Attempt &a) { a.views.y.shape[0] = 20; }, FP8RT_STATUS_SHAPE, {"y has 20", "21"}},
      {"columns of scales",
       [](Attempt &a) { a.views.weight_scales.shape[1] = 2; },
       FP8RT_STATUS_SHAPE,
       {"weight_scales has 2 columns", "3"}},
      {"stride of the weight",
       [](Attempt &a) { a.views.weight.stride[0] = 384; },
       FP8RT_STATUS_STRIDE,
       {"weight has row stride 384", "400"}},
      {"stride of y",
       [](Attempt &a) { a.views.y.stride[0] = 256; },
       FP8RT_STATUS_STRIDE,
       {"y has row stride 256", "272"}},
      {"bytes of the weight", [](Attempt &a) { a.views.weight.bytes -= 1; }, FP8RT_STATUS_BOUNDS, {"weight has"}},
      {"bytes of y", [](Attempt &a) { a.views.y.bytes -= 1; }, FP8RT_STATUS_BOUNDS, {"y has"}},
      {"the host's weight", [](Attempt &a) { a.views.weight.device = -1; }, FP8RT_STATUS_DEVICE, {"weight", "-1"}},
      {"y over the weight",
       [](Attempt &a) { a.views.y.data = a.views.weight.data; },
       FP8RT_STATUS_OVERLAP,
       {"y overlaps weight"}},
      {"no bias", [](Attempt &a) { a.views.has_bias = false; }, FP8RT_STATUS_NULL_POINTER, {"bias is NULL"}},
  });
}

TEST(LinearRefused, MoreRowsThanPlanned) {
  LinearShape shape = example();
  const LinearProblem problem = make_problem(shape);
  shape.m = 20;
  const LinearProblem smaller = make_problem(shape);
  for (const Backend &backend : kBackends) {
    if (auto plan = plan_by(backend, smaller)) {
      Attempt attempt(std::move(*plan), problem);
      for (const Form form : kForms) {
        EXPECT_TRUE(attempt.refused(form, FP8RT_STATUS_SHAPE, {"21 rows", "max_m = 20"})) << backend.name;
      }
    }
  }
}

// Kernels that copy by tensor maps need 16 bytes. The message has the address and the 16.
class Misaligned : public ::testing::TestWithParam<const char *> {};

TEST_P(Misaligned, IsRefusedOrRight) {
  const std::string name = GetParam();
  const LinearProblem problem = make_problem(example());
  const Reference want = reference_of(problem);
  for (const Backend &backend : kBackends) {
    auto plan = plan_by(backend, problem);
    if (!plan) {
      continue;
    }
    Attempt attempt(std::move(*plan), problem);
    DeviceLinear moved_by_8(problem, {0, name == "x" ? 8u : 0u, name == "weight" ? 8u : 0u, name == "y" ? 8u : 0u});
    attempt.views = moved_by_8.views();
    const void *address = name == "x"        ? attempt.views.x_codes.data
                          : name == "weight" ? attempt.views.weight.data
                                             : attempt.views.y.data;
    fp8rt_status status = FP8RT_STATUS_OK;
    const Graph graph(attempt.stream, [&] { status = attempt.run(Form::kQuantized); });
    if (status == FP8RT_STATUS_OK) {
      EXPECT_FALSE(backend == kDeepGemm) << "its tensor maps cannot have taken " << address;
      graph.launch(attempt.stream);
      attempt.stream.synchronize();
      EXPECT_TRUE(is_close(moved_by_8.y.download(), want, problem.shape.m)) << backend.name;
      continue;
    }
    EXPECT_FALSE(backend == kPlain) << fp8rt_last_error();
    EXPECT_TRUE(failed_with(status, FP8RT_STATUS_ALIGNMENT, name_of(Form::kQuantized),
                            {name, hexadecimal(address), "16"}))
        << backend.name;
    EXPECT_EQ(graph.nodes(), 0u) << backend.name;
    EXPECT_TRUE(same_bytes(moved_by_8.y.download(), moved_by_8.blank)) << backend.name;
    if (name == "x") {
      continue;
    }
    const Graph again(attempt.stream, [&] { status = attempt.run(Form::kValues); });
    EXPECT_TRUE(failed_with(status, FP8RT_STATUS_ALIGNMENT, name_of(Form::kValues), {name, hexadecimal(address), "16"}))
        << backend.name;
    EXPECT_EQ(again.nodes(), 0u) << "x was quantized before the refusal, " << backend.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Operands, Misaligned, ::testing::Values("x", "weight", "y"),
                         [](const auto &info) { return std::string(info.param); });

// R9, in prepare: a host pointer given as device memory.
TEST(LinearRefused, R9HostMemoryInPrepare) {
  const LinearProblem problem = make_problem(example());
  for (const Backend &backend : kBackends) {
    auto plan = plan_by(backend, problem);
    if (!plan) {
      continue;
    }
    const Attempt attempt(std::move(*plan), problem);
    const auto expect_refused = [&](auto role, const Matrix &host_memory, const char *name) {
      LinearViews views = attempt.views;
      (views.*role).data = const_cast<std::uint8_t *>(host_memory.data());
      EXPECT_TRUE(failed_with(views.prepare(attempt.plan, attempt.stream), FP8RT_STATUS_DEVICE,
                              "fp8rt_linear_plan_prepare", {name}))
          << backend.name;
    };
    expect_refused(&LinearViews::weight, problem.weight, "weight");
    expect_refused(&LinearViews::weight_scales, problem.weight_scales, "weight_scales");
    expect_refused(&LinearViews::bias, problem.bias, "bias");
    EXPECT_OK(attempt.views.prepare(attempt.plan, attempt.stream));
  }
}

fp8rt_status create(const fp8rt_linear_desc &desc) {
  fp8rt_linear_plan *plan = nullptr;
  const fp8rt_status status = fp8rt_linear_plan_create(gpu().get(), &desc, &plan);
  EXPECT_EQ(plan == nullptr, status != FP8RT_STATUS_OK);
  fp8rt_linear_plan_destroy(plan);
  return status;
}

fp8rt_linear_desc desc_of(const LinearShape &shape) { return LinearProblem(shape).desc(); }

TEST(BackendChoice, OneThatCannotSaysWhy) {
  LinearShape shape{16, 256, 256};
  fp8rt_linear_desc desc = desc_of(shape);
  desc.backends = FP8RT_BACKEND_CPU;
  EXPECT_TRUE(failed_with(create(desc), FP8RT_STATUS_UNSUPPORTED, kCreate,
                          {"cpu: ", "device 0", "plain: not among", "N = 256", "K = 256"}));
  desc = desc_of(shape);
  desc.output_dtype = FP8RT_DTYPE_F32;
  desc.backends = FP8RT_BACKEND_DEEPGEMM;
  EXPECT_TRUE(failed_with(create(desc), FP8RT_STATUS_UNSUPPORTED, kCreate, {"deepgemm: ", "plain: not among"}));
  if (is_hopper_sxm()) {
    EXPECT_TRUE(failed_with(create(desc), FP8RT_STATUS_UNSUPPORTED, kCreate, {"fp32"}));
    desc = desc_of(shape);
    desc.weight_stride = 264;
    desc.backends = FP8RT_BACKEND_DEEPGEMM;
    EXPECT_TRUE(failed_with(create(desc), FP8RT_STATUS_UNSUPPORTED, kCreate, {"deepgemm: ", "264", "16"}));
  }
}

// With every backend allowed, the plan that is made says why those before it refused.
TEST(BackendChoice, APlanNamesThoseThatRefused) {
  LinearShape shape{16, 100, 100};
  shape.extra_stride = 1;
  const fp8rt::LinearPlan plan(gpu(), desc_of(shape));
  const std::string text = plan.describe();
  EXPECT_EQ(plan.query().backend, kPlain.bit) << text;
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  for (const char *part : {"M <= 16", "N = 100", "K = 100", "plain"}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
  for (const Backend &backend : {kDeepGemm, kCutlass, kCublasLt}) {
    EXPECT_NE(reason_of(backend, text), "") << backend.name << ": " << text;
  }
}

TEST(BackendChoice, TheEnvironmentRestrictsIt) {
  const LinearShape shape{16, 256, 256};
  const fp8rt_linear_desc desc = desc_of(shape);
  {
    const Environment environment("FP8RT_BACKEND", "plain");
    const fp8rt::LinearPlan plan(gpu(), desc);
    EXPECT_EQ(plan.query().backend, kPlain.bit);
    EXPECT_NE(plan.describe().find("deepgemm: not named in FP8RT_BACKEND"), std::string::npos) << plan.describe();
    const LinearProblem problem = make_problem(shape);
    DeviceLinear device(problem);
    EXPECT_TRUE(is_right(plan, device, reference_of(problem), 16));
  }
  {
    const Environment environment("FP8RT_BACKEND", "deepgemm, plain");
    fp8rt_linear_desc float32 = desc;
    float32.output_dtype = FP8RT_DTYPE_F32;
    const fp8rt::LinearPlan plan(gpu(), float32);
    EXPECT_EQ(plan.query().backend, kPlain.bit) << plan.describe();
    EXPECT_EQ(fp8rt::LinearPlan(gpu(), desc).query().backend, is_hopper_sxm() ? kDeepGemm.bit : kPlain.bit);
  }
  {
    const Environment environment("FP8RT_BACKEND", "cpu");
    EXPECT_TRUE(failed_with(create(desc), FP8RT_STATUS_UNSUPPORTED, kCreate,
                            {"plain: not named in FP8RT_BACKEND", "cpu: "}));
  }
  {
    const Environment environment("FP8RT_BACKEND", "cuda");
    EXPECT_TRUE(failed_with(create(desc), FP8RT_STATUS_INVALID_ARGUMENT, kCreate, {"FP8RT_BACKEND", "cuda", "plain"}));
  }
}

}  // namespace
}  // namespace fp8rt_test
