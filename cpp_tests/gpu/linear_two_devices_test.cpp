// R8: another device is current than the one that holds the tensors. Needs two GPUs.

#include <gtest/gtest.h>

#include <memory>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

// Operands, a workspace and a stream on a device.
struct Placed {
  Placed(int device_, const fp8rt::LinearPlan &plan, const LinearProblem &problem) : current(device_) {
    linear = std::make_unique<DeviceLinear>(problem, Offsets{}, device_);
    workspace = std::make_unique<DeviceWorkspace>(plan.workspace(problem.shape.m));
    stream = std::make_unique<Stream>();
  }

  CurrentDevice current;
  std::unique_ptr<DeviceLinear> linear;
  std::unique_ptr<DeviceWorkspace> workspace;
  std::unique_ptr<Stream> stream;
};

TEST(LinearOnTwoDevices, R8TheCurrentDeviceIsKept) {
  LinearShape shape{37, 512, 1024};
  shape.bias_dtype = FP8RT_DTYPE_BF16;
  const LinearProblem problem = make_problem(shape);
  const Reference want = reference_of(problem);
  for (const int device : {0, 1}) {
    const CurrentDevice other(1 - device);
    const fp8rt::Context context = gpu_context(device);
    for (const Backend &backend : kBackends) {
      const auto plan = plan_by(backend, problem, context);
      EXPECT_EQ(current_device(), 1 - device) << backend.name;
      if (!plan) {
        continue;
      }
      const Placed placed(device, *plan, problem);
      const CurrentDevice current(1 - device);
      ASSERT_OK(placed.linear->views().prepare(*plan, *placed.stream));
      EXPECT_EQ(current_device(), 1 - device) << backend.name;
      for (const Form form : kForms) {
        {
          const CurrentDevice back(device);
          placed.linear->blank_y();
          placed.workspace->poison();
        }
        ASSERT_OK(placed.linear->views().run(form, *plan, *placed.workspace, *placed.stream));
        EXPECT_EQ(current_device(), 1 - device) << backend.name;
        placed.stream->synchronize();
        const CurrentDevice back(device);
        EXPECT_TRUE(is_close(placed.linear->y.download(), want, shape.m))
            << plan->describe() << " on device " << device << ", " << name_of(form);
        EXPECT_TRUE(placed.workspace->guards());
      }
    }
  }
}

// One plan a device, both at work at once.
TEST(LinearOnTwoDevices, BothAtOnce) {
  const LinearProblem problem = make_problem({64, 2048, 2048});
  const Reference want = reference_of(problem);
  const fp8rt::Context contexts[] = {gpu_context(0), gpu_context(1)};
  for (const Backend &backend : kBackends) {
    const auto first = plan_by(backend, problem, contexts[0]), second = plan_by(backend, problem, contexts[1]);
    EXPECT_EQ(first.has_value(), second.has_value()) << backend.name;
    if (!first || !second) {
      continue;
    }
    const Placed on_first(0, *first, problem), on_second(1, *second, problem);
    for (int round = 0; round < 20; ++round) {
      ASSERT_OK(on_first.linear->views().run(Form::kValues, *first, *on_first.workspace, *on_first.stream));
      ASSERT_OK(on_second.linear->views().run(Form::kValues, *second, *on_second.workspace, *on_second.stream));
    }
    on_first.stream->synchronize();
    on_second.stream->synchronize();
    for (const Placed *placed : {&on_first, &on_second}) {
      const CurrentDevice back(placed == &on_first ? 0 : 1);
      EXPECT_TRUE(is_close(placed->linear->y.download(), want, 64)) << backend.name;
    }
  }
}

TEST(LinearOnTwoDevices, ATensorOfTheOtherDeviceIsRefused) {
  const LinearProblem problem = make_problem({5, 256, 256});
  const auto plan = plan_by(kPlain, problem);
  ASSERT_TRUE(plan);
  const Placed placed(1, *plan, problem);
  for (const Form form : kForms) {
    EXPECT_TRUE(failed_with(placed.linear->views().run(form, *plan, *placed.workspace, *placed.stream),
                            FP8RT_STATUS_DEVICE, name_of(form), {"device 1", "0"}));
  }
  EXPECT_TRUE(failed_with(placed.linear->views().prepare(*plan, *placed.stream), FP8RT_STATUS_DEVICE,
                          "fp8rt_linear_plan_prepare", {"device 1", "0"}));
  EXPECT_TRUE(same_bytes(placed.linear->y.download(), placed.linear->blank));
}

}  // namespace
}  // namespace fp8rt_test
