// Captured graphs, several streams and several threads.

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "both.hpp"

namespace fp8rt_test {
namespace {

// Operands on the GPU whose source changes, and what the host makes of each.
struct Changing {
  explicit Changing(const Rule &rule_, Extents extents, std::uint32_t dtype = FP8RT_DTYPE_BF16)
      : rule(rule_),
        operands(make_operands(rule, Matrix(dtype, extents), Fill::kSpreadNonFinite, rule.activation)),
        device(operands),
        quantize(function_of(Kind::kQuantize, rule.activation)) {}

  // New source values, and poisoned outputs.
  void change() {
    fill(operands.values, Fill::kSpreadNonFinite, rule.activation ? 1 : 128, next_seed());
    operands.codes = make_codes(operands.values.extents());
    operands.scales = make_scales(rule, operands.values.extents(), rule.activation);
    device.values.upload(operands.values);
    device.codes.upload(operands.codes);
    device.scales.upload(operands.scales);
  }
  fp8rt_status enqueue(const Stream &stream, fp8rt_health *health = nullptr) const {
    return device.call(quantize, rule, health, stream.get());
  }
  ::testing::AssertionResult is_right(fp8rt_health *health = nullptr) {
    EXPECT_OK(call_on_host(quantize, rule, operands, health));
    return device.same(operands);
  }

  Rule rule;
  Operands operands;
  DeviceOperands device;
  const Function &quantize;
};

std::vector<std::unique_ptr<Changing>> one_of_each() {
  std::vector<std::unique_ptr<Changing>> all;
  for (const std::uint32_t format : kFormats) {
    for (const std::uint32_t dtype : kFloats) {
      const Rule weight = rule_of(FP8RT_RECIPE_NEMO_RL, format, false),
                 activation = rule_of(FP8RT_RECIPE_VLLM, format, true);
      all.push_back(std::make_unique<Changing>(weight, Extents{300, 700}, dtype));
      all.push_back(std::make_unique<Changing>(activation, Extents{7, 700}, dtype));
      all.push_back(std::make_unique<Changing>(activation, Extents{1000, 4096}, dtype));
    }
  }
  return all;
}

// First of this program on purpose: nothing is prepared yet. The call is taken or refused, and the capture stays valid.
TEST(Graphs, AnUnpreparedCallDoesNotSpoilTheCapture) {
  Changing problem(rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false), {300, 700});
  const Stream stream;
  fp8rt_status status = FP8RT_STATUS_INTERNAL;
  const Graph graph(stream, [&] { status = problem.enqueue(stream); });
  if (status == FP8RT_STATUS_NOT_PREPARED) {
    EXPECT_TRUE(failed_with(status, FP8RT_STATUS_NOT_PREPARED, "fp8rt_quantize_weight", {"prepare"}));
    EXPECT_EQ(graph.nodes(), 0u);
    return;
  }
  EXPECT_OK(status);
  graph.launch(stream);
  stream.synchronize();
  EXPECT_TRUE(problem.is_right());
}

// R2: a replay sees what the source then holds.
TEST(Graphs, R2ReplaysFollowTheSource) {
  const Stream stream;
  ASSERT_OK(fp8rt_context_prepare(gpu().get(), stream.get()));
  const auto all = one_of_each();
  const DeviceHealth counters;
  fp8rt_health want{};
  const Graph graph(stream, [&] {
    for (const auto &problem : all) {
      EXPECT_OK(problem->enqueue(stream, counters.get()));
    }
  });
  EXPECT_GE(graph.nodes(), all.size());
  for (int round = 0; round < 3; ++round) {
    for (const auto &problem : all) {
      problem->change();
    }
    graph.launch(stream);
    stream.synchronize();
    for (const auto &problem : all) {
      ASSERT_TRUE(problem->is_right(&want)) << "round " << round << ", "
                                            << describe(problem->rule, problem->operands.values);
    }
    ASSERT_TRUE(same_health(counters.download(), want)) << "round " << round;
  }
}

// R1: neither addresses nor the memory in use change.
TEST(Graphs, R1TwiceAtTheSameAddresses) {
  const auto all = one_of_each();
  const Stream stream;
  std::size_t before = 0, after = 0, total = 0;
  for (int round = 0; round < 20; ++round) {
    for (const auto &problem : all) {
      ASSERT_OK(problem->enqueue(stream));
    }
    stream.synchronize();
    CUDA(cudaMemGetInfo(round == 0 ? &before : &after, &total));
  }
  EXPECT_EQ(before, after);
  for (const auto &problem : all) {
    problem->change();
    ASSERT_OK(problem->enqueue(stream));
    stream.synchronize();
    ASSERT_TRUE(problem->is_right());
  }
}

TEST(Streams, TwoAtOnce) {
  const auto first = one_of_each(), second = one_of_each();
  const Stream streams[2];
  for (int round = 0; round < 30; ++round) {
    for (std::size_t index = 0; index < first.size(); ++index) {
      ASSERT_OK(first[index]->enqueue(streams[0]));
      ASSERT_OK(second[index]->enqueue(streams[1]));
    }
  }
  streams[0].synchronize();
  streams[1].synchronize();
  for (std::size_t index = 0; index < first.size(); ++index) {
    EXPECT_TRUE(first[index]->is_right());
    EXPECT_TRUE(second[index]->is_right());
  }
}

// A call waits for what is ahead of it on its stream, and what is behind it waits for the call.
TEST(Streams, OrderIsKept) {
  Changing problem(rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true), {4096, 4096});
  const Matrix first = problem.operands.values;
  Matrix second = first;
  fill(second, Fill::kSpread, 1, next_seed());
  const DeviceMatrix staged_first(first), staged_second(second);
  const Stream stream;
  const fp8rt_tensor to = problem.device.values.tensor(), from[] = {staged_first.tensor(), staged_second.tensor()};
  for (int round = 0; round < 10; ++round) {
    CUDA(cudaMemcpyAsync(to.data, from[round % 2].data, to.bytes, cudaMemcpyDeviceToDevice, stream.get()));
    ASSERT_OK(problem.enqueue(stream));
  }
  CUDA(cudaMemcpyAsync(to.data, from[0].data, to.bytes, cudaMemcpyDeviceToDevice, stream.get()));
  stream.synchronize();
  problem.operands.values = second;
  EXPECT_OK(call_on_host(problem.quantize, problem.rule, problem.operands, nullptr));
  EXPECT_TRUE(same_bytes(problem.device.codes.download(), problem.operands.codes));
  EXPECT_TRUE(same_bytes(problem.device.scales.download(), problem.operands.scales));
}

TEST(Streams, TheDefaultStreamWorks) {
  Changing problem(rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false), {300, 700});
  ASSERT_OK(problem.device.call(problem.quantize, problem.rule, nullptr, nullptr));
  CUDA(cudaDeviceSynchronize());
  EXPECT_TRUE(problem.is_right());
}

// Threads that share the context, each with a stream; none has touched CUDA before.
TEST(Threads, ShareAContext) {
  const auto all = one_of_each();
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (std::size_t index = 0; index < all.size(); ++index) {
    threads.emplace_back([&, index] {
      const Stream stream;
      for (int round = 0; round < 20; ++round) {
        failures += all[index]->enqueue(stream) != FP8RT_STATUS_OK;
      }
      stream.synchronize();
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(failures, 0);
  for (const auto &problem : all) {
    EXPECT_TRUE(problem->is_right());
  }
}

TEST(Contexts, AreMadeAndDestroyedBesideEachOther) {
  Changing problem(rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false), {300, 700});
  const Stream stream;
  for (int round = 0; round < 3; ++round) {
    const fp8rt::Context other = gpu_context(kDevice);
    problem.change();
    ASSERT_OK(problem.device.call(problem.quantize, problem.rule, nullptr, stream.get(), other));
    stream.synchronize();
    ASSERT_TRUE(problem.is_right());
  }
  problem.change();
  ASSERT_OK(problem.enqueue(stream));
  stream.synchronize();
  EXPECT_TRUE(problem.is_right());
}

TEST(Contexts, SayWhereTheyAre) {
  std::int32_t device = -2;
  ASSERT_OK(fp8rt_context_query(gpu().get(), &device, nullptr));
  EXPECT_EQ(device, kDevice);
}

}  // namespace
}  // namespace fp8rt_test
