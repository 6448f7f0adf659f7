// The linear and graph capture: what is not prepared is refused as a whole; what is prepared only launches.

#include "linear.hpp"

namespace fp8rt_test {
namespace {

class LinearCapture : public LinearOf {};

TEST_P(LinearCapture, UnpreparedIsRefusedAsAWhole) {
  for (const bool context_prepared : {false, true}) {
    for (const Form form : kForms) {
      const fp8rt::Context fresh = gpu_context(0);
      if (context_prepared) {
        ASSERT_OK(fp8rt_context_prepare(fresh.get(), stream.get()));
      }
      const LinearOperands operands = operands_of();
      const fp8rt::LinearPlan plan = operands.plan(fresh);
      const Memory workspace(0, plan.query().workspace_bytes);
      fake_cuda_reset();
      {
        const Capture capture(stream);
        const fp8rt_status status = operands.run(form, plan, workspace, stream);
        // A prepared context may hold all that a plan needs.
        if (!(context_prepared && status == FP8RT_STATUS_OK)) {
          EXPECT_TRUE(failed_with(status, FP8RT_STATUS_NOT_PREPARED, name_of(form), {"prepare"}));
          EXPECT_EQ(launches().size(), 0u) << "steps before the refused one are in the graph";
        }
      }
      EXPECT_EQ(fake_cuda_count("cuModuleLoadData") + fake_cuda_count("cuModuleLoadDataEx"), 0u);
      EXPECT_TRUE(no_violations());
      EXPECT_EQ(current_context(), nullptr);
      EXPECT_OK(operands.run(form, plan, workspace, stream)) << "after the capture";
    }
  }
}

TEST_P(LinearCapture, PreparedOnlyLaunches) {
  for (const int current_device : {-1, 0, 1}) {
    const LinearOperands operands = operands_of();
    const fp8rt::LinearPlan plan = operands.plan(context);
    const Memory workspace(0, plan.query().workspace_bytes);
    ASSERT_OK(operands.prepare(plan, stream));
    const Current current(current_device);
    const CUcontext before = current_context();
    fake_cuda_reset();
    const Capture capture(stream);
    for (const Form form : kForms) {
      ASSERT_OK(operands.run(form, plan, workspace, stream));
    }
    EXPECT_GE(launches().size(), 2u);
    EXPECT_TRUE(only_light_calls());
    EXPECT_TRUE(no_violations());
    EXPECT_EQ(current_context(), before);
  }
}

TEST_P(LinearCapture, PrepareIsRefused) {
  const fp8rt::Context fresh = gpu_context(0);
  const LinearOperands operands = operands_of();
  const fp8rt::LinearPlan plan = operands.plan(fresh);
  fake_cuda_reset();
  {
    const Capture capture(stream);
    EXPECT_TRUE(failed_with(operands.prepare(plan, stream), FP8RT_STATUS_NOT_PREPARED, "fp8rt_linear_plan_prepare",
                            {"captur"}));
    EXPECT_TRUE(no_violations());
  }
  EXPECT_OK(operands.prepare(plan, stream));
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearCapture, ::testing::Values(FP8RT_BACKEND_DEEPGEMM, FP8RT_BACKEND_PLAIN),
                         LinearOf::name);

}  // namespace
}  // namespace fp8rt_test
