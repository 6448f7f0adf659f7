// A refit plan on a GPU: what a bucket enqueues, on which stream, and what becomes of the plan when that fails.

#include "plan.hpp"

namespace fp8rt_test {
namespace {

const std::vector<std::int64_t> kNorms = {4096, 64, 1};

std::size_t count_copies() {
  return fake_cuda_count("cuMemcpyDtoDAsync") + fake_cuda_count("cuMemcpyHtoDAsync") +
         fake_cuda_count("cuMemcpy2DAsync");
}

// Everything that takes a stream had this one.
::testing::AssertionResult all_on(const Stream &stream) {
  const std::map<std::string, int> places = {
      {"cuMemcpyDtoDAsync_v2", 3}, {"cuMemcpyHtoDAsync_v2", 3}, {"cuMemcpy2DAsync_v2", 4}};
  const auto wanted = reinterpret_cast<std::uintptr_t>(stream.get());
  for (const fake_cuda_call &call : recorded()) {
    const auto place = places.find(call.function);
    if (call.launch.kernel != nullptr && call.launch.stream != stream.get()) {
      return ::testing::AssertionFailure() << call.launch.kernel << " is on another stream";
    }
    if (place != places.end() && call.arguments[place->second] != wanted) {
      return ::testing::AssertionFailure() << call.function << " is on another stream";
    }
  }
  return ::testing::AssertionSuccess();
}

using RefitPlan = Refit;

TEST_F(RefitPlan, ABucketIsALaunchForEachDtypeAndACopyForEachKept) {
  Model model(context, 0, mixed(), kNorms);
  fake_cuda_reset();
  ASSERT_OK(model.run(stream));
  EXPECT_EQ(model.written, mixed().size() + kNorms.size());
  EXPECT_EQ(launches().size(), 2u);
  EXPECT_EQ(count_copies(), kNorms.size());
  EXPECT_TRUE(all_on(stream));
  EXPECT_TRUE(no_violations());
  EXPECT_EQ(fake_cuda_count("cuMemAlloc"), 0u);
  EXPECT_EQ(fake_cuda_count("cuStreamSynchronize"), 0u);
  std::map<const void *, kernels::Matrix> by_source;
  for (const fake_cuda_launch &launch : launches()) {
    for (const kernels::Matrix &m : matrices(launch)) by_source[m.source] = m;
  }
  for (const fp8rt_weight_entry &entry : model.weights.entries) {
    ASSERT_EQ(by_source.count(entry.weight.data), 1u);
    const kernels::Matrix &m = by_source[entry.weight.data];
    EXPECT_EQ(m.codes, entry.codes.data);
    EXPECT_EQ(m.scales, entry.scales.data);
    EXPECT_EQ(m.aligned, 1u);
  }
  model.refit[0].finish();
}

TEST_F(RefitPlan, KeptTensorsArrive) {
  Model model(context, 0, {}, kNorms);
  for (std::size_t i = 0; i < kNorms.size(); ++i) {
    auto *source =
        static_cast<std::uint8_t *>(fake_cuda_host_view(reinterpret_cast<std::uintptr_t>(model.items[i].weight.data)));
    std::memset(source, static_cast<int>(40 + i), static_cast<std::size_t>(2 * kNorms[i]));
  }
  ASSERT_OK(model.run(stream));
  for (std::size_t i = 0; i < kNorms.size(); ++i) {
    const auto *target = static_cast<std::uint8_t *>(
        fake_cuda_host_view(reinterpret_cast<std::uintptr_t>(model.destinations[i].codes.data)));
    for (std::int64_t byte = 0; byte < 2 * kNorms[i]; ++byte) ASSERT_EQ(target[byte], 40 + i);
  }
}

// A shard of a wider tensor, into rows of a merged weight: one matrix with the addresses of both.
TEST_F(RefitPlan, ARegionIsAViewOfBoth) {
  const Weights weights(0, 0, {{FP8RT_DTYPE_BF16, 512, 1024}, {FP8RT_DTYPE_BF16, 320, 512}});
  fp8rt_refit_destination merged =
      fp8rt::refit_destination("merged", weights.entries[1].codes, weights.entries[1].scales);
  const std::int64_t parts[] = {192, 128};
  merged.part_rows = parts, merged.num_parts = 2;
  Memory scales(0, 3 * 4 * 4);
  merged.scales = fp8rt::tensor(scales.data(), FP8RT_DTYPE_F32, {3, 4});
  merged.scales.device = 0;
  fp8rt_refit_region region{};
  region.source = "up", region.source_first[1] = 256, region.source_first[2] = 512;
  region.extent[0] = 1, region.extent[1] = 128, region.extent[2] = 512, region.destination_first[1] = 192;
  merged.flags = FP8RT_REFIT_DESTINATION_PARTLY;
  fp8rt::Refit refit(context, {merged}, {region});
  refit.begin();
  fake_cuda_reset();
  EXPECT_EQ(refit.run({fp8rt::refit_item("up", weights.entries[0].weight)}, nullptr, stream.get()), 1u);
  ASSERT_EQ(launches().size(), 1u);
  const kernels::Matrix m = matrices(launches()[0]).at(0);
  EXPECT_EQ(m.source, static_cast<std::uint8_t *>(weights.entries[0].weight.data) + 2 * (256 * 1024 + 512));
  EXPECT_EQ(m.codes, static_cast<std::uint8_t *>(merged.codes.data) + 192 * 512);
  EXPECT_EQ(m.scales, static_cast<float *>(scales.data()) + 2 * 4);
  EXPECT_EQ(m.rows, 128u);
  EXPECT_EQ(m.columns, 512u);
  EXPECT_EQ(m.source_stride, 1024);
  EXPECT_EQ(m.codes_stride, 512);
  refit.finish();
}

// Rows of packed scales below a part that ends off a multiple of four are those of the next part.
TEST_F(RefitPlan, OnlyTheLastPartHasPadding) {
  fp8rt_quantize_desc desc = fp8rt::quantize_desc();
  const std::int64_t parts[] = {130, 131};
  desc.scale_format = FP8RT_SCALE_FORMAT_UE8M0_PACKED, desc.part_rows = parts, desc.num_parts = 2;
  fp8rt_tensor scales{};
  ASSERT_OK(fp8rt_weight_scales_layout(&desc, 0, 261, 600, &scales));
  const Memory codes(0, 261 * 600), scale_memory(0, scales.bytes), source(0, 2 * 261 * 600);
  scales.data = scale_memory.data(), scales.device = 0;
  fp8rt_tensor code_view = fp8rt::tensor(codes.data(), FP8RT_DTYPE_E4M3, {261, 600});
  fp8rt_tensor view = fp8rt::tensor(source.data(), FP8RT_DTYPE_BF16, {261, 600});
  code_view.device = view.device = 0;
  fp8rt_refit_destination merged = fp8rt::refit_destination("merged", code_view, scales);
  merged.part_rows = parts, merged.num_parts = 2, merged.scale_format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  fp8rt::Refit refit(context, {merged});
  refit.begin();
  fake_cuda_reset();
  refit.run({fp8rt::refit_item("merged", view)}, nullptr, stream.get());
  ASSERT_EQ(launches().size(), 1u);
  const std::vector<kernels::Matrix> found = matrices(launches()[0]);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].padding, 0u);
  EXPECT_EQ(found[1].padding, 3u);
  EXPECT_EQ(found[1].scales, static_cast<std::uint32_t *>(scales.data) + 130);
}

// What a trainer quantized is copied: codes and scales line by line, other strides and padding by a kernel.
TEST_F(RefitPlan, QuantizedItemsAreCopied) {
  Model model(context, 0, {{FP8RT_DTYPE_BF16, 256, 512}}, {});
  const Memory codes(0, 256 * 512), scales(0, 2 * 4 * 4);
  std::memset(fake_cuda_host_view(codes.address()), 0x3B, codes.bytes());
  std::memset(fake_cuda_host_view(scales.address()), 0x3F, scales.bytes());
  fp8rt_refit_item item = model.items[0];
  item.weight.data = codes.data(), item.weight.bytes = codes.bytes(), item.weight.dtype = FP8RT_DTYPE_E4M3;
  item.scales = model.destinations[0].scales;
  item.scales.data = scales.data();
  fake_cuda_reset();
  ASSERT_OK(model.run({item}, stream, nullptr, 0));
  EXPECT_EQ(launches().size(), 0u);
  EXPECT_EQ(fake_cuda_count("cuMemcpyDtoDAsync"), 2u);
  EXPECT_TRUE(all_on(stream));
  const fp8rt_refit_destination &target = model.destinations[0];
  EXPECT_EQ(std::memcmp(fake_cuda_host_view(reinterpret_cast<std::uintptr_t>(target.codes.data)),
                        fake_cuda_host_view(codes.address()), codes.bytes()),
            0);
  EXPECT_EQ(std::memcmp(fake_cuda_host_view(reinterpret_cast<std::uintptr_t>(target.scales.data)),
                        fake_cuda_host_view(scales.address()), scales.bytes()),
            0);
  // Column-major scales meet row-major ones.
  model.refit[0].begin();
  item.scales.stride[0] = 1, item.scales.stride[1] = 2;
  fake_cuda_reset();
  ASSERT_OK(model.run({item}, stream, nullptr, 0));
  ASSERT_EQ(launches().size(), 1u);
  EXPECT_STREQ(launches()[0].kernel, "copy_scales");
  EXPECT_TRUE(no_violations());
}

TEST_F(RefitPlan, ARunMayBeCaptured) {
  Model model(context, 0, mixed(), kNorms);
  const Capture capture(stream);
  fake_cuda_reset();
  fake_cuda_set_capturing(stream.get(), 1);
  ASSERT_OK(model.run(stream));
  EXPECT_TRUE(no_violations());
  fake_cuda_reset();
}

TEST_F(RefitPlan, UnpreparedDuringCaptureChangesNothing) {
  const fp8rt::Context unprepared = gpu_context(0);
  Model model(unprepared, 0, mixed(), kNorms);
  {
    const Capture capture(stream);
    fake_cuda_reset();
    fake_cuda_set_capturing(stream.get(), 1);
    EXPECT_TRUE(failed_with(model.run(stream), FP8RT_STATUS_NOT_PREPARED, "fp8rt_refit_run", {"prepare"}));
    EXPECT_EQ(count_copies(), 0u);
    EXPECT_EQ(model.refit[0].query().state, FP8RT_REFIT_STATE_OPEN);
    EXPECT_EQ(model.refit[0].query().blocks_filled, 0u);
  }
  fake_cuda_reset();
  ASSERT_OK(model.run(stream));
  model.refit[0].finish();
}

// R2: made once, then captured and run.
TEST_F(RefitPlan, ABoundTableMayBeCaptured) {
  Model model(context, 0, mixed(), kNorms);
  const std::size_t before = fake_cuda_live_allocations();
  {
    const fp8rt::WeightTable table = model.refit[0].bind(model.items);
    EXPECT_GT(fake_cuda_live_allocations(), before);
    fake_cuda_reset();
    fake_cuda_set_capturing(stream.get(), 1);
    ASSERT_OK(fp8rt_weight_table_run(table.get(), nullptr, stream.get()));
    EXPECT_EQ(launches().size(), 2u);
    EXPECT_EQ(count_copies(), kNorms.size());
    EXPECT_TRUE(all_on(stream));
    EXPECT_TRUE(no_violations());
    fake_cuda_reset();
  }
  EXPECT_EQ(fake_cuda_live_allocations(), before);
}

// Whatever fails while work is enqueued: the plan says so until it is begun again.
TEST_F(RefitPlan, AnErrorOfCudaFailsTheRefit) {
  Model model(context, 0, mixed(), kNorms);
  struct Failure {
    const char *function;
    std::uint32_t calls;
  };
  for (const Failure &failure :
       {Failure{"cuLaunchKernelEx", 0}, Failure{"cuLaunchKernelEx", 1}, Failure{"cuMemcpyDtoDAsync", 1}}) {
    model.refit[0].begin();
    fake_cuda_reset();
    fake_cuda_fail(failure.function, CUDA_ERROR_ILLEGAL_ADDRESS, failure.calls);
    EXPECT_TRUE(failed_with(model.run(stream), FP8RT_STATUS_CUDA_ERROR, "fp8rt_refit_run",
                            {failure.function, "begin it again"}));
    EXPECT_EQ(fp8rt_last_cuda_error(), CUDA_ERROR_ILLEGAL_ADDRESS);
    EXPECT_EQ(model.refit[0].query().state, FP8RT_REFIT_STATE_FAILED);
    fake_cuda_reset();
    EXPECT_TRUE(failed_with(model.run(stream), FP8RT_STATUS_STATE, "fp8rt_refit_run", {"fp8rt_refit_begin"}));
    EXPECT_TRUE(failed_with(fp8rt_refit_finish(model.refit[0].get(), 0, nullptr), FP8RT_STATUS_STATE,
                            "fp8rt_refit_finish", {"fp8rt_refit_begin"}));
    EXPECT_EQ(launches().size(), 0u);
    model.refit[0].begin();
    ASSERT_OK(model.run(stream));
    model.refit[0].finish();
  }
}

TEST_F(RefitPlan, CheckAsksBeforeAnythingIsEnqueued) {
  const Environment check("FP8RT_CHECK", "1");
  const fp8rt::Context checking = gpu_context(0);
  Model model(checking, 0, mixed(), kNorms);
  std::vector<std::uint64_t> host(1 << 17);
  for (const std::size_t at : {std::size_t{3}, mixed().size()}) {
    std::vector<fp8rt_refit_item> items = model.items;
    items[at].weight.data = host.data();
    fake_cuda_reset();
    EXPECT_TRUE(failed_with(model.run(items, stream, nullptr, 0), FP8RT_STATUS_DEVICE, "fp8rt_refit_run",
                            {"items[" + std::to_string(at) + "]"}));
    EXPECT_EQ(launches().size() + count_copies(), 0u);
    EXPECT_EQ(model.refit[0].query().blocks_filled, 0u);
  }
  ASSERT_OK(model.run(stream));
}

class FromHost : public Refit {};

TEST_F(FromHost, ValuesPassThroughStagingAndTheRestGoesStraight) {
  Model model(context, -1, mixed(), kNorms);
  const std::uint64_t bytes = model.refit[0].query().staging_bytes;
  EXPECT_EQ(bytes, 2u * 128 * 512 * 4);
  const Memory staging(0, bytes);
  fake_cuda_reset();
  ASSERT_OK(model.run(model.items, stream, &staging, bytes));
  EXPECT_TRUE(no_violations());
  for (const fake_cuda_launch &launch : launches()) {
    for (const kernels::Matrix &m : matrices(launch)) {
      const auto at = reinterpret_cast<std::uintptr_t>(m.source);
      EXPECT_TRUE(at >= staging.address() && at < staging.address() + bytes);
    }
  }
  std::size_t straight = 0;
  for (const fake_cuda_call &call : recorded()) {
    const bool own = std::string(call.function) == "cuMemcpyHtoDAsync_v2" &&
                     call.arguments[3] == reinterpret_cast<std::uintptr_t>(stream.get());
    straight += own;
  }
  EXPECT_EQ(straight, kNorms.size());
  model.refit[0].finish();
}

TEST_F(FromHost, TooLittleStagingAndCaptureChangeNothing) {
  Model model(context, -1, mixed(), kNorms);
  const std::uint64_t bytes = 2 * 128 * 512 * 2;
  const Memory staging(0, bytes);
  fake_cuda_reset();
  EXPECT_TRUE(failed_with(model.run(model.items, stream, &staging, bytes - 1), FP8RT_STATUS_WORKSPACE,
                          "fp8rt_refit_run", {"items[0]", std::to_string(bytes), std::to_string(bytes - 1)}));
  EXPECT_TRUE(
      failed_with(model.run(model.items, stream, nullptr, 0), FP8RT_STATUS_WORKSPACE, "fp8rt_refit_run", {"staging"}));
  {
    const Capture capture(stream);
    EXPECT_TRUE(failed_with(model.run(model.items, stream, &staging, bytes), FP8RT_STATUS_NOT_PREPARED,
                            "fp8rt_refit_run", {"captured"}));
    // Copies from the host are not captured either.
    const std::vector<fp8rt_refit_item> norms(model.items.end() - 1, model.items.end());
    EXPECT_TRUE(failed_with(model.run(norms, stream, &staging, bytes), FP8RT_STATUS_NOT_PREPARED, "fp8rt_refit_run",
                            {"captured"}));
  }
  EXPECT_EQ(launches().size() + count_copies(), 0u);
  EXPECT_EQ(model.refit[0].query().blocks_filled, 0u);
  EXPECT_EQ(model.refit[0].query().state, FP8RT_REFIT_STATE_OPEN);
}

// A column window of a source on the host comes row by row, in one call.
TEST_F(FromHost, AWindowIsOneCopy) {
  Model model(context, 0, {{FP8RT_DTYPE_BF16, 128, 256}}, {});
  const Memory source(-1, 2 * 128 * 1024), staging(0, 1 << 18);
  fp8rt_refit_region region{};
  region.source = "wide", region.source_first[2] = 512;
  region.extent[0] = 1, region.extent[1] = 128, region.extent[2] = 256;
  fp8rt::Refit refit(context, model.destinations, {region});
  refit.begin();
  fp8rt_refit_item item = fp8rt::refit_item("wide", fp8rt::tensor(source.data(), FP8RT_DTYPE_BF16, {128, 1024}));
  fake_cuda_reset();
  refit.run({item}, nullptr, stream.get(), staging.data(), staging.bytes());
  EXPECT_EQ(fake_cuda_count("cuMemcpy2DAsync"), 1u);
  EXPECT_EQ(fake_cuda_count("cuMemcpyHtoDAsync"), 0u);
  EXPECT_EQ(launches().size(), 1u);
  EXPECT_TRUE(no_violations());
}

TEST_F(RefitPlan, IntoViewsOfTheCaller) {
  Model model(context, 0, mixed(), {});
  const Weights targets(0, 0, mixed());
  std::vector<fp8rt_tensor> codes, scales;
  for (const fp8rt_weight_entry &entry : targets.entries) codes.push_back(entry.codes), scales.push_back(entry.scales);
  fake_cuda_reset();
  ASSERT_OK(fp8rt_refit_quantize_into(model.refit[0].get(), model.items.data(), codes.data(), scales.data(),
                                      static_cast<std::uint32_t>(codes.size()), nullptr, stream.get()));
  EXPECT_EQ(launches().size(), 2u);
  EXPECT_TRUE(only_light_calls());
  EXPECT_EQ(matrices(launches()[0]).at(0).codes, codes[0].data);
}

TEST_F(RefitPlan, HealthIsReadAfterTheStream) {
  const Memory health(0, sizeof(fp8rt_health));
  const fp8rt_health counts{1, 2, 3, 4};
  std::memcpy(fake_cuda_host_view(health.address()), &counts, sizeof counts);
  fp8rt_health read{};
  fake_cuda_reset();
  ASSERT_OK(fp8rt_health_read(context.get(), static_cast<fp8rt_health *>(health.data()), &read, stream.get()));
  EXPECT_TRUE(read == counts);
  EXPECT_EQ(fake_cuda_count("cuStreamSynchronize"), 1u);
  const Capture capture(stream);
  EXPECT_EQ(fp8rt_health_read(context.get(), static_cast<fp8rt_health *>(health.data()), &read, stream.get()),
            FP8RT_STATUS_NOT_PREPARED);
}

}  // namespace
}  // namespace fp8rt_test
