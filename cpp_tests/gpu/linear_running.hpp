// A linear that is prepared and runs again and again: a plan with operands, a workspace and a stream, and weights that
// a refit brings.

#ifndef FP8RT_TEST_LINEAR_RUNNING_HPP
#define FP8RT_TEST_LINEAR_RUNNING_HPP

#include <memory>
#include <utility>

#include "linear.hpp"

namespace fp8rt_test {

// A plan, operands, a workspace and a stream.
struct Running {
  Running(fp8rt::LinearPlan plan_, const LinearProblem &problem)
      : plan(std::move(plan_)), device(problem), workspace(plan.workspace(problem.shape.m)) {}

  fp8rt_status prepare() { return device.views().prepare(plan, stream); }
  fp8rt_status enqueue(std::int64_t rows, Form form = Form::kValues) const {
    return device.views(rows).run(form, plan, workspace, stream);
  }
  Matrix y_after(std::int64_t rows) {
    device.blank_y();
    EXPECT_OK(enqueue(rows));
    stream.synchronize();
    return device.y.download();
  }

  fp8rt::LinearPlan plan;
  DeviceLinear device;
  DeviceWorkspace workspace;
  Stream stream;
};

// Calls `test(running)` for each backend that takes the problem.
template <typename Test>
void by_all(const LinearProblem &problem, Test test, const fp8rt::Context &context = gpu()) {
  for (const Backend &backend : kBackends) {
    if (auto plan = plan_by(backend, problem, context)) {
      SCOPED_TRACE(plan->describe());
      Running running(std::move(*plan), problem);
      test(running);
    }
  }
}

inline const LinearShape kShape{64, 512, 1024};

inline LinearShape with_bias() {
  LinearShape shape = kShape;
  shape.bias_dtype = FP8RT_DTYPE_BF16;
  return shape;
}

// The weight of a problem as bf16 in device memory, quantized from there.
struct Master {
  explicit Master(LinearProblem &problem) : values(FP8RT_DTYPE_BF16, problem.weight.extents()) {
    fill(values, Fill::kPlain, 128, next_seed());
    problem.weight_scales = make_scales(problem.weight_rule, values.extents());
    EXPECT_OK(quantize(host(), problem.weight_rule, values, problem.weight, problem.weight_scales));
    device = std::make_unique<DeviceMatrix>(values);
  }
  fp8rt_status refit(const Running &running) const {
    const LinearViews views = running.device.views();
    const fp8rt_tensor from = device->tensor();
    return fp8rt_quantize_weight(gpu().get(), nullptr, &from, &views.weight, &views.weight_scales, nullptr,
                                 running.stream.get());
  }

  Matrix values;
  std::unique_ptr<DeviceMatrix> device;
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_LINEAR_RUNNING_HPP
