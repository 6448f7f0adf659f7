// A linear that fails at any of its steps: the status, the number, nothing launched after it, and nothing left behind.

#include "linear.hpp"

namespace fp8rt_test {
namespace {

class LinearFailures : public LinearOf {};

// Each step in turn fails, as it may on a device that has faulted.
TEST_P(LinearFailures, AFailingStepIsTheErrorOfTheCall) {
  const LinearOperands operands = operands_of();
  const fp8rt::LinearPlan plan = operands.plan(context);
  const Memory workspace(0, plan.query().workspace_bytes);
  for (const Form form : kForms) {
    ASSERT_OK(operands.prepare(plan, stream));
    fake_cuda_reset();
    ASSERT_OK(operands.run(form, plan, workspace, stream));
    const auto steps = static_cast<std::uint32_t>(launches().size());
    for (std::uint32_t step = 0; step < steps; ++step) {
      fake_cuda_reset();
      fake_cuda_fail("cuLaunchKernelEx", CUDA_ERROR_ILLEGAL_ADDRESS, step);
      EXPECT_TRUE(failed_with(operands.run(form, plan, workspace, stream), FP8RT_STATUS_CUDA_ERROR, name_of(form),
                              {"cuLaunchKernelEx", std::to_string(CUDA_ERROR_ILLEGAL_ADDRESS)}));
      EXPECT_EQ(fp8rt_last_cuda_error(), CUDA_ERROR_ILLEGAL_ADDRESS);
      EXPECT_EQ(launches().size(), step) << "nothing is launched after the one that failed";
      EXPECT_EQ(current_context(), nullptr);
    }
    fake_cuda_reset();
    EXPECT_OK(operands.run(form, plan, workspace, stream)) << "after the failure";
  }
}

TEST_P(LinearFailures, AFailureWhileLoadingLeavesThePlanUsable) {
  const fp8rt::Context fresh = gpu_context(0);
  const LinearOperands operands = operands_of();
  const fp8rt::LinearPlan plan = operands.plan(fresh);
  const std::size_t modules = fake_cuda_live_modules();
  for (const char *function : {"cuModuleLoadData", "cuModuleGetFunction"}) {
    fake_cuda_reset();
    fake_cuda_fail(function, CUDA_ERROR_NOT_FOUND, 0);
    EXPECT_TRUE(failed_with(operands.prepare(plan, stream), FP8RT_STATUS_CUDA_ERROR, "fp8rt_linear_plan_prepare",
                            {function, std::to_string(CUDA_ERROR_NOT_FOUND)}));
    EXPECT_EQ(fake_cuda_live_modules(), modules) << function;
    EXPECT_EQ(current_context(), nullptr);
  }
  fake_cuda_reset();
  EXPECT_OK(operands.prepare(plan, stream));
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearFailures, ::testing::Values(FP8RT_BACKEND_DEEPGEMM, FP8RT_BACKEND_PLAIN),
                         LinearOf::name);

TEST_F(LinearLaunches, AFailingTensorMapIsTheErrorOfTheCall) {
  const LinearOperands operands(by_deepgemm({21, 512, 1024}));
  const fp8rt::LinearPlan plan = operands.plan(context);
  const Memory workspace(0, plan.query().workspace_bytes);
  ASSERT_OK(operands.prepare(plan, stream));
  for (std::uint32_t map = 0; map < 4; ++map) {
    fake_cuda_reset();
    fake_cuda_fail("cuTensorMapEncodeTiled", CUDA_ERROR_INVALID_VALUE, map);
    EXPECT_TRUE(failed_with(operands.run(Form::kQuantized, plan, workspace, stream), FP8RT_STATUS_CUDA_ERROR,
                            name_of(Form::kQuantized), {"cuTensorMapEncodeTiled"}));
    EXPECT_EQ(launches().size(), 0u);
    EXPECT_EQ(current_context(), nullptr);
  }
}

// More shared memory than any kernel may have must be asked for, and may be refused.
TEST_F(LinearLaunches, AFailingAttributeLeavesNoModule) {
  const fp8rt::Context fresh = gpu_context(0);
  const LinearOperands operands(by_deepgemm({21, 512, 1024}));
  const fp8rt::LinearPlan plan = operands.plan(fresh);
  ASSERT_OK(fp8rt_context_prepare(fresh.get(), stream.get()));
  const std::size_t modules = fake_cuda_live_modules();
  fake_cuda_reset();
  fake_cuda_fail("cuFuncSetAttribute", CUDA_ERROR_INVALID_VALUE, 0);
  EXPECT_TRUE(failed_with(operands.prepare(plan, stream), FP8RT_STATUS_CUDA_ERROR, "fp8rt_linear_plan_prepare",
                          {"cuFuncSetAttribute"}));
  EXPECT_EQ(fake_cuda_live_modules(), modules);
  fake_cuda_reset();
  EXPECT_OK(operands.prepare(plan, stream));
}

// Validated before anything is enqueued: x must not have been quantized when y turns out to be misaligned.
TEST_F(LinearLaunches, MisalignmentIsSeenBeforeTheFirstLaunch) {
  for (fp8rt_tensor LinearOperands::*const role : {&LinearOperands::weight, &LinearOperands::y}) {
    for (const Form form : kForms) {
      LinearOperands operands(by_deepgemm({21, 512, 1024}));
      const fp8rt::LinearPlan plan = operands.plan(context);
      const Memory workspace(0, plan.query().workspace_bytes), larger(0, (operands.*role).bytes + 8);
      ASSERT_OK(operands.prepare(plan, stream));
      (operands.*role).data = static_cast<std::uint8_t *>(larger.data()) + 8;
      fake_cuda_reset();
      EXPECT_TRUE(failed_with(operands.run(form, plan, workspace, stream), FP8RT_STATUS_ALIGNMENT, name_of(form),
                              {role == &LinearOperands::y ? "y" : "weight", "16"}));
      EXPECT_EQ(launches().size(), 0u);
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
