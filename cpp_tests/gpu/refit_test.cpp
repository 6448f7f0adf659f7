// Refit: many tensors in one call equal the host tensor by tensor.

#include <gtest/gtest.h>

#include "refit.hpp"

namespace fp8rt_test {
namespace {

constexpr int kTensors = 60;

class Refits : public ::testing::TestWithParam<std::tuple<std::uint32_t, std::uint32_t>> {
 protected:
  Refit refit_{std::get<0>(GetParam()), std::get<1>(GetParam()), kTensors};
  Stream stream_;
};

TEST_P(Refits, InOneCall) {
  const DeviceHealth health;
  fp8rt_health want{};
  for (int round = 0; round < 2; ++round) {
    ASSERT_OK(quantize_weights(gpu(), refit_, refit_.entries(), health.get(), stream_.get()));
    stream_.synchronize();
    ASSERT_TRUE(refit_.is_right(&want));
    ASSERT_TRUE(same_health(health.download(), want));
    refit_.change();
  }
}

// R1: the second run writes the new weights to the same addresses. R4: health counts every tensor.
TEST_P(Refits, R1ByATable) {
  const fp8rt_quantize_desc desc = refit_.desc();
  const WeightTable table(gpu(), desc, refit_.entries());
  const DeviceHealth health;
  fp8rt_health want{};
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK(table.run(health.get(), stream_.get()));
    stream_.synchronize();
    ASSERT_TRUE(refit_.is_right(&want)) << "run " << round;
    ASSERT_TRUE(same_health(health.download(), want)) << "run " << round;
    refit_.change();
  }
}

// R2: a captured run reads what the sources hold at the replay.
TEST_P(Refits, R2TableInAGraph) {
  ASSERT_OK(fp8rt_context_prepare(gpu().get(), stream_.get()));
  const fp8rt_quantize_desc desc = refit_.desc();
  const WeightTable table(gpu(), desc, refit_.entries());
  const Graph graph(stream_, [&] { EXPECT_OK(table.run(nullptr, stream_.get())); });
  EXPECT_GT(graph.nodes(), 0u);
  for (int round = 0; round < 3; ++round) {
    refit_.change();
    graph.launch(stream_);
    stream_.synchronize();
    ASSERT_TRUE(refit_.is_right()) << "replay " << round;
  }
}

TEST_P(Refits, CallInAGraph) {
  ASSERT_OK(fp8rt_context_prepare(gpu().get(), stream_.get()));
  const Graph graph(stream_, [&] {
    EXPECT_OK(quantize_weights(gpu(), refit_, refit_.entries(), nullptr, stream_.get()));
  });
  refit_.change();
  graph.launch(stream_);
  stream_.synchronize();
  EXPECT_TRUE(refit_.is_right());
}

// Staging that holds the largest tensor many times, about once, a fraction of it, and as little as is allowed.
TEST_P(Refits, FromPinnedHostMemory) {
  const std::size_t largest = refit_.largest(), least = refit_.least_staging();
  for (const std::size_t bytes : {8 * largest, 2 * largest + 4096, least + 1000, least}) {
    refit_.change();
    const PinnedSources sources(refit_);
    const DeviceBuffer staging(bytes);
    const DeviceHealth health;
    fp8rt_health want{};
    ASSERT_OK(quantize_from_host(gpu(), refit_, sources, staging, health.get(), stream_.get())) << bytes;
    stream_.synchronize();
    ASSERT_TRUE(refit_.is_right(&want)) << bytes << " bytes of staging, the largest tensor has " << largest;
    ASSERT_TRUE(same_health(health.download(), want)) << bytes;
  }
}

TEST_P(Refits, OnTheHostToo) {
  Refit alone(std::get<0>(GetParam()), std::get<1>(GetParam()), 12);
  std::vector<Matrix> codes, scales;
  fp8rt_health health{}, want{};
  ASSERT_OK(quantize_weights(host(), alone, alone.host_entries(), &health, nullptr));
  for (std::size_t index = 0; index < alone.size(); ++index) {
    codes.push_back(alone.at(index).operands.codes);
    scales.push_back(alone.at(index).operands.scales);
  }
  alone.poison();
  for (std::size_t index = 0; index < alone.size(); ++index) {
    RefitTensor &tensor = alone.at(index);
    ASSERT_OK(call_on_host(function_of(Kind::kQuantize, false), tensor.rule, tensor.operands, &want));
    EXPECT_TRUE(same_bytes(codes[index], tensor.operands.codes)) << "tensor " << index;
    EXPECT_TRUE(same_bytes(scales[index], tensor.operands.scales)) << "tensor " << index;
  }
  EXPECT_TRUE(same_health(health, want));
}

INSTANTIATE_TEST_SUITE_P(All, Refits, ::testing::Combine(::testing::ValuesIn(kRecipes), ::testing::ValuesIn(kFormats)),
                         [](const auto &info) {
                           return parameter_name({std::get<0>(info.param), std::get<1>(info.param), FP8RT_DTYPE_BF16});
                         });

class RefitAlone : public ::testing::Test {
 protected:
  Refit refit_{FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, kTensors};
  Stream stream_;
};

// The entries may go as soon as the call returns, though the work has not begun.
TEST_F(RefitAlone, EntriesAreReadDuringTheCallOnly) {
  DeviceBuffer busy(std::size_t{1} << 30);
  for (int round = 0; round < 4; ++round) {
    CUDA(cudaMemsetAsync(busy.data(), round, busy.bytes(), stream_.get()));
  }
  std::vector<fp8rt_weight_entry> entries = refit_.entries();
  ASSERT_OK(quantize_weights(gpu(), refit_, entries, nullptr, stream_.get()));
  std::memset(static_cast<void *>(entries.data()), 0xFF, entries.size() * sizeof entries[0]);
  stream_.synchronize();
  EXPECT_TRUE(refit_.is_right());
}

TEST_F(RefitAlone, WhileAnotherStreamRuns) {
  Refit other(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_POW2, kTensors);
  const fp8rt_quantize_desc desc = refit_.desc();
  const WeightTable table(gpu(), desc, refit_.entries());
  const Stream second;
  for (int round = 0; round < 20; ++round) {
    ASSERT_OK(table.run(nullptr, stream_.get()));
    ASSERT_OK(quantize_weights(gpu(), other, other.entries(), nullptr, second.get()));
  }
  stream_.synchronize();
  second.synchronize();
  EXPECT_TRUE(refit_.is_right());
  EXPECT_TRUE(other.is_right());
}

TEST_F(RefitAlone, FromHostWhileAnotherStreamRuns) {
  Refit other(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_POW2, kTensors);
  const PinnedSources sources(refit_), other_sources(other);
  const DeviceBuffer staging(refit_.least_staging()), other_staging(other.least_staging());
  const Stream second;
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK(quantize_from_host(gpu(), refit_, sources, staging, nullptr, stream_.get()));
    ASSERT_OK(quantize_from_host(gpu(), other, other_sources, other_staging, nullptr, second.get()));
  }
  stream_.synchronize();
  second.synchronize();
  EXPECT_TRUE(refit_.is_right());
  EXPECT_TRUE(other.is_right());
}

TEST_F(RefitAlone, ARunTakesNoMemory) {
  const fp8rt_quantize_desc desc = refit_.desc();
  const WeightTable table(gpu(), desc, refit_.entries());
  std::size_t before = 0, after = 0, total = 0;
  for (int round = 0; round < 30; ++round) {
    ASSERT_OK(table.run(nullptr, stream_.get()));
    ASSERT_OK(quantize_weights(gpu(), refit_, refit_.entries(), nullptr, stream_.get()));
    stream_.synchronize();
    CUDA(cudaMemGetInfo(round == 0 ? &before : &after, &total));
  }
  EXPECT_EQ(before, after);
}

// One bad entry: it is named, and no tensor is written.
TEST_F(RefitAlone, ABadEntryStopsAll) {
  std::vector<fp8rt_weight_entry> entries = refit_.entries();
  ASSERT_EQ(entries[5].scales.rank, 2u);
  entries[5].scales.shape[1] -= 1;
  EXPECT_TRUE(failed_with(quantize_weights(gpu(), refit_, entries, nullptr, stream_.get()), FP8RT_STATUS_SHAPE,
                          "fp8rt_quantize_weights", {"entries[5]", "scales"}));
  const fp8rt_quantize_desc desc = refit_.desc();
  fp8rt_weight_table *table = nullptr;
  EXPECT_TRUE(failed_with(fp8rt_weight_table_create(gpu().get(), &desc, entries.data(),
                                                    static_cast<std::uint32_t>(entries.size()), &table),
                          FP8RT_STATUS_SHAPE, "fp8rt_weight_table_create", {"entries[5]", "scales"}));
  EXPECT_EQ(table, nullptr);
  stream_.synchronize();
  EXPECT_TRUE(refit_.is_untouched());
}

TEST_F(RefitAlone, TooLittleStagingIsRefused) {
  const PinnedSources sources(refit_);
  const std::size_t least = refit_.least_staging();
  const DeviceBuffer staging(least - 1);
  EXPECT_TRUE(failed_with(quantize_from_host(gpu(), refit_, sources, staging, nullptr, stream_.get()),
                          FP8RT_STATUS_WORKSPACE, "fp8rt_quantize_weights_from_host",
                          {"staging", std::to_string(least), std::to_string(least - 1)}));
  stream_.synchronize();
  EXPECT_TRUE(refit_.is_untouched());
}

TEST_F(RefitAlone, FromHostIsRefusedDuringCapture) {
  const PinnedSources sources(refit_);
  const DeviceBuffer staging(refit_.least_staging());
  fp8rt_status status = FP8RT_STATUS_OK;
  const Graph graph(stream_, [&] {
    status = quantize_from_host(gpu(), refit_, sources, staging, nullptr, stream_.get());
  });
  EXPECT_NE(status, FP8RT_STATUS_OK);
  EXPECT_EQ(graph.nodes(), 0u);
  EXPECT_TRUE(refit_.is_untouched());
}

// Rows of the source farther apart than they are long.
TEST(RefitSizes, FromHostRowsApart) {
  for (const std::uint32_t dtype : kFloats) {
    const Rule rule = rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false);
    const Extents extents{700, 301};
    RefitTensor tensor(rule, make_operands(rule, Matrix(dtype, extents, {333}), Fill::kSpreadNonFinite));
    const Matrix &values = tensor.operands.values;
    const PinnedBuffer pinned(values.storage().size());
    std::memcpy(pinned.data(), values.data(), values.bytes());
    fp8rt_weight_entry entry{};
    entry.weight = values.tensor();
    entry.weight.data = pinned.data();
    entry.codes = tensor.device.codes.tensor();
    entry.scales = tensor.device.scales.tensor();
    const DeviceBuffer staging(512 * 1024);
    const Stream stream;
    const fp8rt_quantize_desc desc = rule.desc();
    ASSERT_OK(fp8rt_quantize_weights_from_host(gpu().get(), &desc, &entry, 1, staging.data(), staging.bytes(), nullptr,
                                               stream.get()));
    stream.synchronize();
    ASSERT_OK(call_on_host(function_of(Kind::kQuantize, false), rule, tensor.operands, nullptr));
    EXPECT_TRUE(tensor.device.same(tensor.operands)) << dtype_name(dtype);
  }
}

TEST_F(RefitAlone, NoEntriesSucceed) {
  const Refit none(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, 0);
  EXPECT_OK(quantize_weights(gpu(), none, {}, nullptr, stream_.get()));
  const fp8rt_quantize_desc desc = none.desc();
  const WeightTable table(gpu(), desc, {});
  EXPECT_OK(table.run(nullptr, stream_.get()));
  stream_.synchronize();
}

// Fewer and more entries than the parameters of a launch hold.
TEST(RefitSizes, ManyTinyTensors) {
  for (const int count : {1, 7, 29, 30, 31, 64, 700}) {
    const Rule rule = rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false);
    std::vector<std::unique_ptr<RefitTensor>> tensors;
    std::vector<fp8rt_weight_entry> entries;
    for (int index = 0; index < count; ++index) {
      Operands operands =
          make_operands(rule, Matrix(kFloats[index % 3], {1 + index % 7, 1 + index % 11}), Fill::kSpread);
      tensors.push_back(std::make_unique<RefitTensor>(rule, std::move(operands)));
      const DeviceOperands &device = tensors.back()->device;
      fp8rt_weight_entry entry{};
      entry.weight = device.values.tensor();
      entry.codes = device.codes.tensor();
      entry.scales = device.scales.tensor();
      entries.push_back(entry);
    }
    const Stream stream;
    const fp8rt_quantize_desc desc = rule.desc();
    ASSERT_OK(fp8rt_quantize_weights(gpu().get(), &desc, entries.data(), static_cast<std::uint32_t>(count), nullptr,
                                     stream.get()));
    stream.synchronize();
    for (const auto &tensor : tensors) {
      ASSERT_OK(call_on_host(function_of(Kind::kQuantize, false), rule, tensor->operands, nullptr));
      ASSERT_TRUE(tensor->device.same(tensor->operands)) << count << " tensors";
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
