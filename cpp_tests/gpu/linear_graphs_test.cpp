// The linear in captured graphs and from run to run, with weights that change and move.

#include <gtest/gtest.h>

#include <limits>
#include <memory>

#include "linear_running.hpp"

namespace fp8rt_test {
namespace {

// A refused call leaves nothing in the graph, not even the first of its steps.
TEST(Capture, UnpreparedIsRefusedAndPreparedWorks) {
  const LinearProblem problem = make_problem(with_bias());
  const Reference want = reference_of(problem);
  for (const Form form : kForms) {
    for (const Backend &backend : kBackends) {
      const fp8rt::Context context = gpu_context(kDevice);
      auto plan = plan_by(backend, problem, context);
      if (!plan) {
        continue;
      }
      SCOPED_TRACE(plan->describe());
      Running running(std::move(*plan), problem);
      fp8rt_status status = FP8RT_STATUS_INTERNAL;
      const Graph refused(running.stream, [&] { status = running.enqueue(64, form); });
      EXPECT_TRUE(failed_with(status, FP8RT_STATUS_NOT_PREPARED, name_of(form), {"prepare"}));
      EXPECT_EQ(refused.nodes(), 0u);
      EXPECT_TRUE(same_bytes(running.device.y.download(), running.device.blank));
      ASSERT_OK(running.prepare());
      const Graph graph(running.stream, [&] { status = running.enqueue(64, form); });
      ASSERT_OK(status);
      EXPECT_GE(graph.nodes(), 1u);
      EXPECT_TRUE(same_bytes(running.device.y.download(), running.device.blank)) << "a capture runs nothing";
      graph.launch(running.stream);
      running.stream.synchronize();
      EXPECT_TRUE(is_close(running.device.y.download(), want, 64));
    }
  }
}

// The context is prepared, the plan is not: all of the call is taken, or none of it.
TEST(Capture, OfAPreparedContextIsAllOrNothing) {
  const LinearProblem problem = make_problem(with_bias());
  const Reference want = reference_of(problem);
  for (const Backend &backend : kBackends) {
    const fp8rt::Context context = gpu_context(kDevice);
    auto plan = plan_by(backend, problem, context);
    if (!plan) {
      continue;
    }
    SCOPED_TRACE(plan->describe());
    Running running(std::move(*plan), problem);
    ASSERT_OK(fp8rt_context_prepare(context.get(), running.stream.get()));
    fp8rt_status status = FP8RT_STATUS_INTERNAL;
    const Graph graph(running.stream, [&] { status = running.enqueue(64); });
    if (status == FP8RT_STATUS_NOT_PREPARED) {
      EXPECT_EQ(graph.nodes(), 0u) << "a refused call left nodes in the graph";
      continue;
    }
    ASSERT_OK(status);
    graph.launch(running.stream);
    running.stream.synchronize();
    EXPECT_TRUE(is_close(running.device.y.download(), want, 64));
  }
}

TEST(Capture, PrepareIsRefused) {
  const LinearProblem problem = make_problem(kShape);
  for (const Backend &backend : kBackends) {
    const fp8rt::Context context = gpu_context(kDevice);
    if (auto plan = plan_by(backend, problem, context)) {
      SCOPED_TRACE(plan->describe());
      Running running(std::move(*plan), problem);
      fp8rt_status status = FP8RT_STATUS_OK;
      const Graph graph(running.stream, [&] { status = running.prepare(); });
      EXPECT_TRUE(failed_with(status, FP8RT_STATUS_NOT_PREPARED, "fp8rt_linear_plan_prepare", {"captured"}));
      EXPECT_EQ(graph.nodes(), 0u);
      ASSERT_OK(running.prepare());
    }
  }
}

TEST(Replay, AHundredTimesTheSameBits) {
  const LinearProblem problem = make_problem(with_bias());
  const Reference want = reference_of(problem);
  by_all(problem, [&](Running &running) {
    ASSERT_OK(running.prepare());
    for (const std::int64_t rows : {1, 17, 64}) {
      const Matrix eager = running.y_after(rows);
      EXPECT_TRUE(is_close(eager, want, rows)) << rows;
      const Graph graph(running.stream, [&] { EXPECT_OK(running.enqueue(rows)); });
      for (int replay = 0; replay < 100; ++replay) {
        running.device.blank_y();
        running.workspace.poison();
        graph.launch(running.stream);
        running.stream.synchronize();
        ASSERT_TRUE(same_bytes(running.device.y.download(), eager)) << rows << " rows, replay " << replay;
      }
    }
  });
}

// Without a wait between them: each overwrites the workspace that the one before reads.
TEST(Replay, BackToBack) {
  const LinearProblem problem = make_problem(kShape);
  by_all(problem, [&](Running &running) {
    ASSERT_OK(running.prepare());
    const Matrix eager = running.y_after(64);
    const Graph graph(running.stream, [&] {
      for (int call = 0; call < 20; ++call) {
        EXPECT_OK(running.enqueue(64));
      }
    });
    for (int round = 0; round < 20; ++round) {
      running.device.blank_y();
      for (int replay = 0; replay < 5; ++replay) {
        graph.launch(running.stream);
      }
      running.stream.synchronize();
      ASSERT_TRUE(same_bytes(running.device.y.download(), eager)) << "round " << round;
    }
  });
}

// R2.
TEST(Replay, R2UsesTheWeightsOfARefit) {
  LinearProblem first = make_problem(kShape), second = first;
  const Master first_weights(first), second_weights(second);
  const Reference want_first = reference_of(first), want_second = reference_of(second);
  by_all(first, [&](Running &running) {
    ASSERT_OK(running.prepare());
    const Graph graph(running.stream, [&] { EXPECT_OK(running.enqueue(64)); });
    for (int round = 0; round < 3; ++round) {
      for (const bool of_second : {true, false}) {
        ASSERT_OK((of_second ? second_weights : first_weights).refit(running));
        running.device.blank_y();
        graph.launch(running.stream);
        running.stream.synchronize();
        const Matrix y = running.device.y.download();
        EXPECT_TRUE(is_close(y, of_second ? want_second : want_first, 64)) << "round " << round;
        EXPECT_FALSE(is_close(y, of_second ? want_first : want_second, 64)) << "the weights did not change";
      }
    }
  });
}

// A plan holds no pointers: what it was prepared with may be elsewhere at the next run, and here its old place is NaN.
TEST(Moved, TheWeightIsTakenFromWhereItIs) {
  const LinearProblem problem = make_problem(with_bias());
  const Reference want = reference_of(problem);
  by_all(problem, [&](Running &running) {
    ASSERT_OK(running.prepare());
    const Matrix before = running.y_after(64);
    EXPECT_TRUE(is_close(before, want, 64));
    const DeviceLinear elsewhere(problem);
    Matrix gone = problem.weight, gone_scales = problem.weight_scales, gone_bias = problem.bias;
    gone.fill(std::numeric_limits<float>::quiet_NaN());
    gone_scales.fill(std::numeric_limits<float>::quiet_NaN());
    gone_bias.fill(std::numeric_limits<float>::quiet_NaN());
    running.device.weight.upload(gone);
    running.device.weight_scales.upload(gone_scales);
    running.device.bias.upload(gone_bias);
    LinearViews views = running.device.views();
    const LinearViews there = elsewhere.views();
    views.weight = there.weight;
    views.weight_scales = there.weight_scales;
    views.bias = there.bias;
    running.device.blank_y();
    ASSERT_OK(views.run(Form::kValues, running.plan, running.workspace, running.stream));
    running.stream.synchronize();
    EXPECT_TRUE(same_bytes(running.device.y.download(), before));
  });
}

// R1: no memory is taken from run to run.
TEST(Memory, R1StaysAsItIs) {
  const LinearProblem problem = make_problem(with_bias());
  by_all(problem, [&](Running &running) {
    ASSERT_OK(running.prepare());
    std::size_t before = 0, after = 0, total = 0;
    for (int round = 0; round < 200; ++round) {
      for (const std::int64_t rows : {1, 17, 64}) {
        ASSERT_OK(running.enqueue(rows));
      }
      running.stream.synchronize();
      CUDA(cudaMemGetInfo(round == 0 ? &before : &after, &total));
    }
    EXPECT_EQ(before, after);
  });
}

// A plan may outlive its context, and others may come and go beside it.
TEST(Memory, APlanOutlivesItsContext) {
  const LinearProblem problem = make_problem(kShape);
  const Reference want = reference_of(problem);
  for (const Backend &backend : kBackends) {
    auto context = std::make_unique<fp8rt::Context>(gpu_context(kDevice));
    auto plan = plan_by(backend, problem, *context);
    if (!plan) {
      continue;
    }
    SCOPED_TRACE(plan->describe());
    context.reset();
    DeviceLinear device(problem);
    EXPECT_TRUE(is_right(*plan, device, want, 64));
  }
}

}  // namespace
}  // namespace fp8rt_test
