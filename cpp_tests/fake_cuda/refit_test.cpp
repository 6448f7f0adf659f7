// Many weights in one launch: per-call entries that travel with the launch, and tables in device memory.

#include <map>
#include <memory>

#include "weights.hpp"

namespace fp8rt_test {
namespace {

// All the matrices that were launched are the entries, each once and where it is.
void check_covers(const std::vector<kernels::Matrix> &launched, const Weights &weights) {
  std::map<const void *, kernels::Matrix> by_source;
  for (const kernels::Matrix &m : launched) by_source[m.source] = m;
  EXPECT_EQ(launched.size(), weights.entries.size());
  ASSERT_EQ(by_source.size(), weights.entries.size());
  for (const fp8rt_weight_entry &entry : weights.entries) {
    ASSERT_EQ(by_source.count(entry.weight.data), 1u);
    const kernels::Matrix &m = by_source[entry.weight.data];
    EXPECT_EQ(m.codes, entry.codes.data);
    EXPECT_EQ(m.scales, entry.scales.data);
    EXPECT_EQ(m.rows, entry.weight.shape[0]);
    EXPECT_EQ(m.columns, entry.weight.shape[1]);
  }
}

// Tiles are numbered through, so that a thread block finds its matrix.
void check_tiles(const kernels::Header &header, const std::vector<kernels::Matrix> &matrices) {
  std::uint32_t tile = 0;
  for (const kernels::Matrix &m : matrices) {
    EXPECT_EQ(m.first_tile, tile);
    tile += m.experts * ((m.rows + 127) / 128) * ((m.columns + 127) / 128);
  }
  EXPECT_EQ(header.tiles, tile);
  EXPECT_EQ(header.count, matrices.size());
}

TEST_F(Refit, EntriesTravelWithTheLaunch) {
  const Weights weights(0, 0, mixed());
  fake_cuda_reset();
  ASSERT_OK(fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), weights.count(), nullptr,
                                   stream.get()));
  EXPECT_TRUE(only_light_calls());
  ASSERT_EQ(launches().size(), 2u);
  std::vector<kernels::Matrix> all;
  for (const fake_cuda_launch &launch : launches()) {
    const auto header = parameters<kernels::Header>(launch);
    EXPECT_EQ(header.table, nullptr);
    EXPECT_EQ(launch.stream, stream.get());
    check_tiles(header, matrices(launch));
    for (const kernels::Matrix &m : matrices(launch)) all.push_back(m);
  }
  check_covers(all, weights);
}

TEST_F(Refit, MoreEntriesThanALaunchHolds) {
  const Weights weights(0, 0, std::vector<Shape>(300, {FP8RT_DTYPE_BF16, 128, 256}));
  fake_cuda_reset();
  ASSERT_OK(fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), weights.count(), nullptr,
                                   stream.get()));
  EXPECT_TRUE(only_light_calls());
  EXPECT_EQ(launches().size(), 2u);
  std::vector<kernels::Matrix> all;
  for (const fake_cuda_launch &launch : launches()) {
    check_tiles(parameters<kernels::Header>(launch), matrices(launch));
    for (const kernels::Matrix &m : matrices(launch)) all.push_back(m);
  }
  check_covers(all, weights);
}

// The last entry is wrong: the launch of those before it must not have gone out.
TEST_F(Refit, NothingIsEnqueuedIfOneEntryIsWrong) {
  Weights weights(0, 0, mixed());
  weights.entries.back().codes.device = 1;
  fake_cuda_reset();
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), weights.count(),
                                                 nullptr, stream.get()),
                          FP8RT_STATUS_DEVICE, "fp8rt_quantize_weights", {"12"}));
  EXPECT_EQ(launches().size(), 0u);
}

TEST_F(Refit, UnpreparedDuringCaptureIsRefused) {
  const fp8rt::Context unprepared = gpu_context(0);
  const Weights weights(0, 0, mixed());
  fake_cuda_reset();
  const Capture capture(stream);
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights(unprepared.get(), nullptr, weights.entries.data(), weights.count(),
                                                 nullptr, stream.get()),
                          FP8RT_STATUS_NOT_PREPARED, "fp8rt_quantize_weights", {"prepare"}));
  EXPECT_EQ(fake_cuda_count("cuModuleLoadData"), 0u);
  EXPECT_TRUE(no_violations());
}

// The matrices of a launch, which lie in the device memory that `header.table` names.
std::vector<kernels::Matrix> matrices_of_table(const fake_cuda_launch &launch) {
  const auto header = parameters<kernels::Header>(launch);
  const auto address = reinterpret_cast<std::uintptr_t>(header.table);
  std::vector<kernels::Matrix> found(header.count);
  const void *last = fake_cuda_host_view(address + found.size() * sizeof(kernels::Matrix) - 1);
  if (fake_cuda_host_view(address) == nullptr || last == nullptr) return {};
  std::memcpy(found.data(), fake_cuda_host_view(address), found.size() * sizeof(kernels::Matrix));
  return found;
}

TEST_F(Refit, ATableRunsWithOneLaunchForEachDtype) {
  std::vector<Shape> shapes = mixed();
  for (int i = 0; i < 300; ++i) shapes.push_back({FP8RT_DTYPE_BF16, 128, 128});
  const Weights weights(0, 0, shapes);
  const Table table(context, weights);
  for (const bool captured : {false, true}) {
    fake_cuda_reset();
    fake_cuda_set_capturing(stream.get(), captured);
    ASSERT_OK(fp8rt_weight_table_run(table.get(), nullptr, stream.get()));
    EXPECT_TRUE(only_light_calls());
    EXPECT_TRUE(no_violations());
    ASSERT_EQ(launches().size(), 2u);
    std::vector<kernels::Matrix> all;
    for (const fake_cuda_launch &launch : launches()) {
      const auto found = matrices_of_table(launch);
      check_tiles(parameters<kernels::Header>(launch), found);
      all.insert(all.end(), found.begin(), found.end());
    }
    check_covers(all, weights);
  }
  fake_cuda_reset();
}

TEST_F(Refit, ATableIsNotMadeDuringCapture) {
  const Weights weights(0, 0, mixed());
  fp8rt_weight_table *table = nullptr;
  fake_cuda_reset();
  const Capture capture(stream);
  EXPECT_NE(fp8rt_weight_table_create(context.get(), nullptr, weights.entries.data(), weights.count(), &table),
            FP8RT_STATUS_OK);
  EXPECT_EQ(table, nullptr);
}

TEST_F(Refit, ATableFreesWhatItAllocated) {
  const Weights weights(0, 0, mixed());
  const std::size_t before = fake_cuda_live_allocations();
  {
    const Current other(1);
    const CUcontext current = current_context();
    const Table table(context, weights);
    EXPECT_GT(fake_cuda_live_allocations(), before);
    EXPECT_EQ(current_context(), current);
  }
  EXPECT_EQ(fake_cuda_live_allocations(), before);
}

TEST_F(Refit, ATableMayOutliveItsContext) {
  const Weights weights(0, 0, mixed());
  const std::size_t before = fake_cuda_live_allocations();
  {
    auto own = std::make_unique<fp8rt::Context>(gpu_context(0));
    ASSERT_OK(fp8rt_context_prepare(own->get(), stream.get()));
    const Table table(*own, weights);
    own.reset();
    EXPECT_OK(fp8rt_weight_table_run(table.get(), nullptr, stream.get()));
  }
  EXPECT_EQ(fake_cuda_live_allocations(), before);
}

// Each driver function that making a table may call, failing at its first, second or third call.
TEST_F(Refit, AFailedTableLeavesNothing) {
  const Weights weights(0, 0, mixed());
  const std::size_t before = fake_cuda_live_allocations();
  for (const char *function : {"cuMemAlloc", "cuMemcpyHtoD", "cuMemcpyHtoDAsync", "cuStreamSynchronize"}) {
    for (std::uint32_t calls = 0; calls < 3; ++calls) {
      fp8rt_weight_table *table = nullptr;
      fake_cuda_reset();
      fake_cuda_fail(function, CUDA_ERROR_OUT_OF_MEMORY, calls);
      const fp8rt_status status =
          fp8rt_weight_table_create(context.get(), nullptr, weights.entries.data(), weights.count(), &table);
      if (status == FP8RT_STATUS_OK) {
        EXPECT_LE(fake_cuda_count(function), calls);
        EXPECT_OK(fp8rt_weight_table_destroy(table));
      } else {
        EXPECT_TRUE(status == FP8RT_STATUS_OUT_OF_MEMORY || status == FP8RT_STATUS_CUDA_ERROR) << status;
        EXPECT_NE(std::string(fp8rt_last_error()).find(function), std::string::npos) << fp8rt_last_error();
        EXPECT_EQ(fp8rt_last_cuda_error(), CUDA_ERROR_OUT_OF_MEMORY);
        EXPECT_EQ(table, nullptr);
      }
      EXPECT_EQ(fake_cuda_live_allocations(), before) << function << " after " << calls;
      EXPECT_EQ(current_context(), nullptr);
    }
  }
  fake_cuda_reset();
}

TEST_F(Refit, CheckAsksForEveryEntry) {
  const Environment check("FP8RT_CHECK", "1");
  const fp8rt::Context checking = gpu_context(0);
  Weights weights(0, 0, mixed());
  std::vector<std::uint64_t> host(1 << 17);
  fp8rt_tensor *const tensors[] = {&weights.entries[3].weight, &weights.entries[3].codes, &weights.entries[3].scales};
  for (fp8rt_tensor *tensor : tensors) {
    void *const before = std::exchange(tensor->data, host.data());
    fake_cuda_reset();
    EXPECT_TRUE(failed_with(fp8rt_quantize_weights(checking.get(), nullptr, weights.entries.data(), weights.count(),
                                                   nullptr, stream.get()),
                            FP8RT_STATUS_DEVICE, "fp8rt_quantize_weights", {"3"}));
    EXPECT_EQ(launches().size(), 0u);
    tensor->data = before;
  }
  EXPECT_OK(fp8rt_quantize_weights(checking.get(), nullptr, weights.entries.data(), weights.count(), nullptr,
                                   stream.get()));
}

}  // namespace
}  // namespace fp8rt_test
