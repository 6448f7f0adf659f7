// The linear in the order of a stream, on several streams at once and from several threads.

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "linear_running.hpp"

namespace fp8rt_test {
namespace {

// A refit on the stream right before a run, and no wait: the run sees all of it.
TEST(Streams, ARunWaitsForTheRefitBeforeIt) {
  LinearProblem first = make_problem(kShape), second = first;
  const Master first_weights(first), second_weights(second);
  by_all(first, [&](Running &running) {
    ASSERT_OK(running.prepare());
    ASSERT_OK(first_weights.refit(running));
    const Matrix want_first = running.y_after(64);
    ASSERT_OK(second_weights.refit(running));
    const Matrix want_second = running.y_after(64);
    for (int round = 0; round < 50; ++round) {
      ASSERT_OK(first_weights.refit(running));
      ASSERT_OK(second_weights.refit(running));
      ASSERT_OK(first_weights.refit(running));
      ASSERT_OK(running.enqueue(64));
      running.stream.synchronize();
      ASSERT_TRUE(same_bytes(running.device.y.download(), want_first)) << "round " << round;
      ASSERT_OK(second_weights.refit(running));
      ASSERT_OK(running.enqueue(64));
      running.stream.synchronize();
      ASSERT_TRUE(same_bytes(running.device.y.download(), want_second)) << "round " << round;
    }
  });
}

// A run waits for what writes its x, and what overwrites its x and reads its y waits for the run.
TEST(Streams, OrderIsKept) {
  const LinearProblem first = make_problem(kShape);
  LinearProblem second = first;
  fill(second.x, Fill::kPlain, 1, next_seed());
  by_all(first, [&](Running &running) {
    ASSERT_OK(running.prepare());
    const LinearViews views = running.device.views();
    const DeviceMatrix staged_first(first.x), staged_second(second.x);
    const fp8rt_tensor staged[] = {staged_first.tensor(), staged_second.tensor()};
    std::vector<Matrix> want;
    for (const LinearProblem *problem : {&first, static_cast<const LinearProblem *>(&second)}) {
      running.device.x.upload(problem->x);
      want.push_back(running.y_after(64));
    }
    EXPECT_FALSE(same_bytes(want[0], want[1]));
    constexpr int kRuns = 40;
    const auto bytes = static_cast<std::size_t>(views.y.bytes);
    const DeviceBuffer outputs(kRuns * bytes);
    for (int run = 0; run < kRuns; ++run) {
      const fp8rt_tensor &from = staged[run % 3 == 0 ? 1 : 0];
      CUDA(cudaMemcpyAsync(views.x.data, from.data, from.bytes, cudaMemcpyDeviceToDevice, running.stream.get()));
      ASSERT_OK(running.enqueue(64));
      CUDA(cudaMemcpyAsync(outputs.data() + static_cast<std::size_t>(run) * bytes, views.y.data, bytes,
                           cudaMemcpyDeviceToDevice, running.stream.get()));
    }
    running.stream.synchronize();
    std::vector<std::uint8_t> got(bytes);
    for (int run = 0; run < kRuns; ++run) {
      outputs.download(got.data(), bytes, static_cast<std::size_t>(run) * bytes);
      EXPECT_EQ(std::memcmp(got.data(), want[run % 3 == 0 ? 1 : 0].data(), bytes), 0) << "run " << run;
    }
  });
}

// y of one linear is x of the next, which may start before the first has ended, and must wait.
TEST(Streams, OneLinearFeedsTheNext) {
  const LinearProblem first = make_problem({64, 1024, 512}), second = make_problem({64, 512, 1024});
  for (const Backend &backend : kBackends) {
    auto first_plan = plan_by(backend, first), second_plan = plan_by(backend, second);
    if (!first_plan || !second_plan) {
      continue;
    }
    SCOPED_TRACE(backend.name);
    Running up(std::move(*first_plan), first), down(std::move(*second_plan), second);
    ASSERT_OK(up.prepare());
    ASSERT_OK(down.prepare());
    const auto run_both = [&](bool wait) {
      ASSERT_OK(up.enqueue(64));
      if (wait) {
        up.stream.synchronize();
      }
      LinearViews views = down.device.views();
      views.x = up.device.views().y;
      ASSERT_OK(views.run(Form::kValues, down.plan, down.workspace, up.stream));
    };
    run_both(true);
    up.stream.synchronize();
    const Matrix want = down.device.y.download();
    for (int round = 0; round < 100; ++round) {
      up.device.blank_y();
      down.device.blank_y();
      for (int pair = 0; pair < 5; ++pair) {
        run_both(false);
      }
      up.stream.synchronize();
      ASSERT_TRUE(same_bytes(down.device.y.download(), want)) << "round " << round;
    }
  }
}

TEST(Streams, TwoAtOnceByOnePlan) {
  const LinearProblem first = make_problem({64, 2048, 2048}), second = make_problem({64, 2048, 2048});
  for (const Backend &backend : kBackends) {
    auto plan = plan_by(backend, first);
    if (!plan) {
      continue;
    }
    SCOPED_TRACE(plan->describe());
    DeviceLinear devices[] = {DeviceLinear(first), DeviceLinear(second)};
    const DeviceWorkspace workspaces[] = {DeviceWorkspace(plan->workspace(64)), DeviceWorkspace(plan->workspace(64))};
    const Stream streams[2];
    ASSERT_OK(devices[0].views().prepare(*plan, streams[0]));
    std::vector<Matrix> serial;
    for (int which = 0; which < 2; ++which) {
      ASSERT_OK(devices[which].views().run(Form::kValues, *plan, workspaces[which], streams[which]));
      streams[which].synchronize();
      serial.push_back(devices[which].y.download());
      devices[which].blank_y();
    }
    for (int round = 0; round < 50; ++round) {
      for (int which = 0; which < 2; ++which) {
        ASSERT_OK(devices[which].views().run(Form::kValues, *plan, workspaces[which], streams[which]));
      }
    }
    for (int which = 0; which < 2; ++which) {
      streams[which].synchronize();
      EXPECT_TRUE(same_bytes(devices[which].y.download(), serial[static_cast<std::size_t>(which)])) << which;
      EXPECT_TRUE(workspaces[which].guards());
    }
  }
}

// Threads that share a plan nobody prepared, each with a stream and a workspace.
TEST(Threads, ShareAPlan) {
  const LinearProblem problem = make_problem(kShape);
  const Reference want = reference_of(problem);
  constexpr std::size_t kThreads = 8;
  for (const Backend &backend : kBackends) {
    const fp8rt::Context context = gpu_context(kDevice);
    auto plan = plan_by(backend, problem, context);
    if (!plan) {
      continue;
    }
    SCOPED_TRACE(plan->describe());
    std::vector<std::unique_ptr<DeviceLinear>> devices;
    std::vector<std::unique_ptr<DeviceWorkspace>> workspaces;
    for (std::size_t index = 0; index < kThreads; ++index) {
      devices.push_back(std::make_unique<DeviceLinear>(problem));
      workspaces.push_back(std::make_unique<DeviceWorkspace>(plan->workspace(64)));
    }
    std::atomic<int> failures{0};
    std::vector<std::thread> threads;
    for (std::size_t index = 0; index < kThreads; ++index) {
      threads.emplace_back([&, index] {
        const Stream stream;
        for (int round = 0; round < 20; ++round) {
          const fp8rt_status status =
              devices[index]->views().run(Form::kValues, *plan, *workspaces[index], stream);
          failures += status != FP8RT_STATUS_OK;
        }
        stream.synchronize();
      });
    }
    for (std::thread &thread : threads) {
      thread.join();
    }
    EXPECT_EQ(failures, 0);
    const Matrix first = devices[0]->y.download();
    EXPECT_TRUE(is_close(first, want, 64));
    for (const auto &device : devices) {
      EXPECT_TRUE(same_bytes(device->y.download(), first));
    }
  }
}

TEST(Streams, TheDefaultStreamWorks) {
  const LinearProblem problem = make_problem(kShape);
  const Reference want = reference_of(problem);
  by_all(problem, [&](Running &running) {
    const LinearViews v = running.device.views();
    for (const Form form : kForms) {
      running.device.blank_y();
      void *const workspace = running.workspace.data();
      const std::uint64_t bytes = running.workspace.bytes();
      const fp8rt_status status =
          form == Form::kValues
              ? fp8rt_linear(running.plan.get(), &v.x, &v.weight, &v.weight_scales, nullptr, &v.y, workspace, bytes,
                             nullptr)
              : fp8rt_linear_prequantized(running.plan.get(), &v.x_codes, &v.x_scales, &v.weight, &v.weight_scales,
                                          nullptr, &v.y, workspace, bytes, nullptr);
      ASSERT_OK(status);
      CUDA(cudaDeviceSynchronize());
      EXPECT_TRUE(is_close(running.device.y.download(), want, 64)) << name_of(form);
    }
  });
}

}  // namespace
}  // namespace fp8rt_test
