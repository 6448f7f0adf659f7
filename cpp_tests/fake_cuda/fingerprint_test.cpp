// Fingerprints and measurements: what their launches say, without a GPU.

#include "fingerprints.hpp"
#include "weights.hpp"

namespace kernels {
#include "fingerprint_arguments.cuh"
#include "measure_arguments.cuh"
}  // namespace kernels

namespace fp8rt_test {
namespace {

std::vector<kernels::HashedMatrix> hashed(const fake_cuda_launch &launch) {
  const auto arguments = parameters<kernels::FingerprintArguments>(launch);
  return {arguments.matrices, arguments.matrices + arguments.count};
}

void check_tiles(const fake_cuda_launch &launch) {
  std::uint32_t tile = 0;
  for (const kernels::HashedMatrix &m : hashed(launch)) {
    EXPECT_EQ(m.first_tile, tile);
    tile += m.experts * ((m.rows + 127) / 128) * ((m.columns + 127) / 128);
  }
  EXPECT_EQ(parameters<kernels::FingerprintArguments>(launch).tiles, tile);
  EXPECT_LE(launch.grid[0], tile);
  EXPECT_EQ(launch.block[0], 256u);
}

class Fingerprint : public Refit {
 protected:
  fp8rt_fingerprint_sum *sum(std::size_t index = 0) const {
    return static_cast<fp8rt_fingerprint_sum *>(sums_.data()) + index;
  }

  Memory sums_{0, 64 * 1024};
};

TEST_F(Fingerprint, OneLaunchSaysWhereEverythingIs) {
  const std::int64_t rows = 300, columns = 400;
  const Memory codes(0, rows * 512), scales(0, 4 * 3 * 4);
  fp8rt_tensor view = fp8rt::tensor(codes.data(), FP8RT_DTYPE_E4M3, {rows, columns});
  view.device = 0, view.stride[0] = 512, view.bytes = codes.bytes();
  fp8rt_tensor scales_view = fp8rt::tensor(scales.data(), FP8RT_DTYPE_F32, {3, 4});
  scales_view.device = 0;
  Identity identity{"w", 3, 7, 5, 2};
  const fp8rt_fingerprint_desc desc = identity.desc();
  fake_cuda_reset();
  const Capture capture(stream);
  ASSERT_OK(fp8rt_fingerprint_weight(context.get(), &desc, &view, &scales_view, sum(1), stream.get()));
  EXPECT_TRUE(only_light_calls());
  EXPECT_TRUE(no_violations());
  ASSERT_EQ(launches().size(), 1u);
  const fake_cuda_launch launch = launches()[0];
  EXPECT_STREQ(launch.kernel, "fingerprint_blocks");
  EXPECT_EQ(launch.stream, stream.get());
  check_tiles(launch);
  const kernels::HashedMatrix m = hashed(launch).at(0);
  EXPECT_EQ(m.codes, codes.data());
  EXPECT_EQ(m.scales, scales.data());
  EXPECT_EQ(static_cast<void *>(m.sum), static_cast<void *>(sum(1)));
  EXPECT_EQ(m.codes_stride, 512);
  EXPECT_EQ(m.scale_row, 4);
  EXPECT_EQ(m.scale_column, 1);
  EXPECT_EQ(m.rows, rows);
  EXPECT_EQ(m.columns, columns);
  EXPECT_EQ(m.expert, 7u);
  EXPECT_EQ(m.block_row, 5u);
  EXPECT_EQ(m.block_column, 2u);
  EXPECT_EQ(m.scale_kind, kernels::kFloatScale);
  EXPECT_EQ(m.aligned, 1u);
}

TEST_F(Fingerprint, PartsAndUnalignedRowsAreSaid) {
  const Memory codes(0, 1 << 20), scales(0, 1 << 16);
  Identity identity{"w"};
  identity.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  identity.parts = {64, 0, 136};
  const fp8rt_fingerprint_desc desc = identity.desc();
  fp8rt_quantize_desc layout = fp8rt::quantize_desc();
  layout.scale_format = identity.format;
  fp8rt_tensor view = fp8rt::tensor(codes.data(), FP8RT_DTYPE_E4M3, {200, 300}), scales_view{};
  view.device = 0;
  fp8rt::check(fp8rt_weight_scales_layout(&layout, 0, 200, 300, &scales_view));
  scales_view.data = scales.data(), scales_view.device = 0;
  ASSERT_OK(fp8rt_fingerprint_weight(context.get(), &desc, &view, &scales_view, sum(), stream.get()));
  ASSERT_EQ(launches().size(), 1u);
  const std::vector<kernels::HashedMatrix> found = hashed(launches()[0]);
  ASSERT_EQ(found.size(), 2u);  // the empty part has no block
  EXPECT_EQ(found[1].codes, static_cast<std::uint8_t *>(codes.data()) + 64 * 300);
  EXPECT_EQ(found[1].scales, static_cast<std::uint32_t *>(scales.data()) + 64);
  EXPECT_EQ(found[1].scale_kind, kernels::kPackedScale);
  EXPECT_EQ(found[1].scale_row, 1);
  EXPECT_EQ(found[1].aligned, 0u);
  EXPECT_NE(found[0].name_low, found[1].name_low);
}

TEST_F(Fingerprint, KeptTensorsHaveNoScale) {
  const Memory memory(0, 4096);
  fp8rt_tensor view = fp8rt::tensor(memory.data(), FP8RT_DTYPE_BF16, {2048});
  view.device = 0;
  Identity identity{"norm"};
  const fp8rt_fingerprint_desc desc = identity.desc();
  ASSERT_OK(fp8rt_fingerprint_weight(context.get(), &desc, &view, nullptr, sum(), stream.get()));
  const kernels::HashedMatrix m = hashed(launches().at(0)).at(0);
  EXPECT_EQ(m.rows, 1u);
  EXPECT_EQ(m.columns, 4096u);
  EXPECT_EQ(m.scale_kind, kernels::kNoScale);
}

// 300 parameters, of which a launch holds 240.
class FingerprintOfPlan : public Fingerprint {
 protected:
  void SetUp() override {
    Fingerprint::SetUp();
    std::vector<fp8rt_refit_destination> destinations;
    for (std::uint32_t i = 0; i < weights.count(); ++i) names.push_back("w" + std::to_string(i));
    for (std::uint32_t i = 0; i < weights.count(); ++i) {
      const fp8rt_weight_entry &entry = weights.entries[i];
      destinations.push_back(fp8rt::refit_destination(names[i].c_str(), entry.codes, entry.scales));
      items.push_back(fp8rt::refit_item(names[i].c_str(), entry.weight));
    }
    plan = std::make_unique<fp8rt::Refit>(context, destinations);
    fake_cuda_reset();
  }

  const Weights weights{0, 0, std::vector<Shape>(300, {FP8RT_DTYPE_BF16, 128, 256})};
  std::vector<std::string> names;
  std::vector<fp8rt_refit_item> items;
  std::unique_ptr<fp8rt::Refit> plan;
};

TEST_F(FingerprintOfPlan, TwoLaunchesForManyRegions) {
  ASSERT_OK(fp8rt_refit_fingerprint(plan->get(), sum(), stream.get()));
  EXPECT_TRUE(only_light_calls());
  ASSERT_EQ(launches().size(), 2u);
  std::size_t index = 0;
  for (const fake_cuda_launch &launch : launches()) {
    check_tiles(launch);
    for (const kernels::HashedMatrix &m : hashed(launch)) {
      EXPECT_EQ(m.codes, weights.entries[index].codes.data);
      EXPECT_EQ(static_cast<void *>(m.sum), static_cast<void *>(sum(index)));
      index += 1;
    }
  }
  EXPECT_EQ(index, 300u);
}

TEST_F(FingerprintOfPlan, MeasuringSaysWhatIsCompared) {
  ASSERT_OK(fp8rt_refit_measure(plan->get(), items.data(), 300, static_cast<fp8rt_error_sums *>(sums_.data()),
                                stream.get()));
  EXPECT_TRUE(only_light_calls());
  ASSERT_EQ(launches().size(), 2u);
  EXPECT_STREQ(launches()[0].kernel, "measure_bf16");
  const auto first = parameters<kernels::MeasureArguments>(launches()[0]);
  EXPECT_EQ(first.count, 240u);
  EXPECT_EQ(launches()[0].grid[0], first.tiles);
  EXPECT_EQ(first.matrices[7].matrix.source, weights.entries[7].weight.data);
  EXPECT_EQ(first.matrices[7].matrix.codes, weights.entries[7].codes.data);
  EXPECT_EQ(static_cast<void *>(first.matrices[7].sums),
            static_cast<void *>(static_cast<fp8rt_error_sums *>(sums_.data()) + 7));
}

TEST_F(FingerprintOfPlan, ReadingSynchronizesAndFolds) {
  const fp8rt_fingerprint_sum made{{0xFFFFFFFF, 1ull << 32, 7, 0}};
  std::memcpy(fake_cuda_host_view(sums_.address()), &made, sizeof made);
  fp8rt_fingerprint value{};
  ASSERT_OK(fp8rt_fingerprint_read(context.get(), sum(), 1, &value, nullptr, stream.get()));
  EXPECT_EQ(fake_cuda_count("cuMemcpyDtoHAsync"), 1u);
  EXPECT_EQ(fake_cuda_count("cuStreamSynchronize"), 1u);
  EXPECT_EQ(value, (fp8rt_fingerprint{0xFFFFFFFF, 8}));
  const Capture capture(stream);
  EXPECT_TRUE(failed_with(fp8rt_fingerprint_read(context.get(), sum(), 1, &value, nullptr, stream.get()),
                          FP8RT_STATUS_NOT_PREPARED, "fp8rt_fingerprint_read", {"capture"}));
}

TEST_F(Fingerprint, UnpreparedDuringCaptureIsRefused) {
  const fp8rt::Context unprepared = gpu_context(0);
  const Memory memory(0, 4096);
  fp8rt_tensor view = fp8rt::tensor(memory.data(), FP8RT_DTYPE_BF16, {2048});
  view.device = 0;
  Identity identity{"norm"};
  const fp8rt_fingerprint_desc desc = identity.desc();
  const Capture capture(stream);
  EXPECT_TRUE(failed_with(fp8rt_fingerprint_weight(unprepared.get(), &desc, &view, nullptr, sum(), stream.get()),
                          FP8RT_STATUS_NOT_PREPARED, "fp8rt_fingerprint_weight", {"prepare"}));
  EXPECT_EQ(launches().size(), 0u);
}

}  // namespace
}  // namespace fp8rt_test
