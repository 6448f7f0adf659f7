// Fingerprints on the GPU equal the host's in every limb: shapes, strides, alignments, formats, parts, experts, plans.
// And measurements, whose counts are the host's and whose sums are near them.

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "fingerprints.hpp"
#include "refit.hpp"

namespace fp8rt_test {
namespace {

class DeviceSums {
 public:
  explicit DeviceSums(std::size_t count) : count_(count), buffer_(count * sizeof(fp8rt_fingerprint_sum)) {
    buffer_.fill(0);
  }

  fp8rt_fingerprint_sum *get() const { return reinterpret_cast<fp8rt_fingerprint_sum *>(buffer_.data()); }
  std::vector<fp8rt_fingerprint_sum> download() const {
    std::vector<fp8rt_fingerprint_sum> sums(count_);
    buffer_.download(sums.data(), buffer_.bytes());
    return sums;
  }

 private:
  std::size_t count_;
  DeviceBuffer buffer_;
};

::testing::AssertionResult same_sum(const fp8rt_fingerprint_sum &got, const fp8rt_fingerprint_sum &want) {
  for (int limb = 0; limb < 4; ++limb) {
    if (got.limbs[limb] != want.limbs[limb]) {
      return ::testing::AssertionFailure() << "limb " << limb << " is " << got.limbs[limb] << ", expected "
                                           << want.limbs[limb];
    }
  }
  return ::testing::AssertionSuccess();
}

// Codes of any bits and scales that a quantizer made, or some bytes that are kept.
struct Case {
  Identity identity;
  Matrix codes, scales;
  bool kept;
};

Case random_case(Bits &bits) {
  const bool kept = bits.next() % 4 == 0;
  Extents extents{bits.between(1, 700), bits.between(1, 1500)};
  if (bits.next() % 2 == 0) extents = {128 * bits.between(1, 5), 128 * bits.between(1, 9)};
  if (bits.next() % 4 == 0) extents.experts = bits.between(1, 4);
  Rule rule;
  rule.format = kFormats[bits.next() % 3];
  if (bits.next() % 4 == 0) {
    const std::int64_t first = bits.between(0, extents.rows);
    rule.parts = {first, extents.rows - first};
  }
  const std::int64_t gaps[] = {0, 16, bits.between(0, 40)};
  const Strides strides{extents.columns + gaps[bits.next() % 3]};
  const auto offset = static_cast<std::size_t>(bits.next() % 2 == 0 ? 0 : 4 * bits.between(0, 8));
  Matrix codes(kept ? FP8RT_DTYPE_BF16 : FP8RT_DTYPE_E4M3, extents, strides, 0, offset);
  fill(codes, Fill::kAnyBits, 128, bits.next());
  Matrix scales = make_scales(rule, extents), values(FP8RT_DTYPE_BF16, extents);
  fill(values, Fill::kSpread, 128, bits.next());
  oracle_scales(rule, values, scales);
  Identity identity{"name" + std::to_string(bits.next() % 1000)};
  identity.part = static_cast<std::uint32_t>(bits.between(0, 3));
  identity.expert = bits.between(0, 9), identity.block_row = bits.between(0, 99);
  identity.block_column = bits.between(0, 99);
  identity.format = rule.format, identity.parts = rule.parts;
  return {identity, codes, scales, kept};
}

fp8rt_status on_gpu(const Identity &identity, const fp8rt_tensor &codes, const fp8rt_tensor *scales,
                    fp8rt_fingerprint_sum *sum, const Stream &stream) {
  const fp8rt_fingerprint_desc desc = identity.desc();
  return fp8rt_fingerprint_weight(gpu().get(), &desc, &codes, scales, sum, stream.get());
}

TEST(Fingerprints, EqualTheHostsInEveryLimb) {
  Bits bits(next_seed());
  const Stream stream;
  for (int round = 0; round < 150; ++round) {
    const Case one = random_case(bits);
    const DeviceMatrix codes(one.codes), scales(one.scales);
    const fp8rt_tensor scales_view = scales.tensor(), host_scales = one.scales.tensor();
    const DeviceSums sums(1);
    ASSERT_OK(on_gpu(one.identity, codes.tensor(), one.kept ? nullptr : &scales_view, sums.get(), stream));
    stream.synchronize();
    const fp8rt_fingerprint_sum want =
        sum_of(host(), one.identity, one.codes.tensor(), one.kept ? nullptr : &host_scales);
    ASSERT_TRUE(same_sum(sums.download()[0], want))
        << "round " << round << ": " << one.codes.experts() << "x" << one.codes.rows() << "x" << one.codes.columns()
        << " rows " << one.codes.strides().row << " apart, format " << one.identity.format << (one.kept ? ", kept" : "")
        << ", FP8RT_TEST_SEED=" << seed_of_the_day();
  }
}

// Many tiles for each thread block, so that hashes are finished in several turns.
TEST(Fingerprints, OfALargeWeight) {
  Matrix codes(FP8RT_DTYPE_E4M3, {8192 + 57, 16384 + 16});
  fill(codes, Fill::kAnyBits, 128, next_seed());
  const Rule rule;
  Matrix scales = make_scales(rule, codes.extents());
  scales.each([&](auto expert, auto row, auto column) {
    scales.set(expert, row, column, 1.0f + static_cast<float>(row * 131 + column));
  });
  const DeviceMatrix device_codes(codes), device_scales(scales);
  const fp8rt_tensor scales_view = device_scales.tensor(), host_scales = scales.tensor();
  const DeviceSums sums(1);
  const Stream stream;
  ASSERT_OK(on_gpu({"large"}, device_codes.tensor(), &scales_view, sums.get(), stream));
  stream.synchronize();
  EXPECT_TRUE(same_sum(sums.download()[0], sum_of(host(), {"large"}, codes.tensor(), &host_scales)));
}

TEST(Fingerprints, PackedExponentsThatDisagreeAreSeen) {
  Rule rule;
  rule.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  Matrix codes(FP8RT_DTYPE_E4M3, {200, 700}), scales = make_scales(rule, codes.extents());
  fill(codes, Fill::kAnyBits, 128, next_seed());
  scales.each([&](auto expert, auto row, auto column) { scales.store(expert, row, column, 0x7F7F7F7Fu); });
  Identity identity{"w"};
  identity.format = rule.format;
  const Stream stream;
  const DeviceMatrix device_codes(codes);
  for (const std::int64_t row : {-1, 0, 1, 127, 128, 199}) {
    Matrix damaged = scales;
    if (row >= 0) damaged.store(0, row, 1, 0x7F7F7E7Fu);
    const DeviceMatrix device_scales(damaged);
    const fp8rt_tensor scales_view = device_scales.tensor(), host_scales = damaged.tensor();
    const DeviceSums sums(1);
    ASSERT_OK(on_gpu(identity, device_codes.tensor(), &scales_view, sums.get(), stream));
    stream.synchronize();
    EXPECT_TRUE(same_sum(sums.download()[0], sum_of(host(), identity, codes.tensor(), &host_scales))) << row;
  }
}

// A plan over the tensors of a refit, as the GPU or the host has them.
class Plan {
 public:
  Plan(const fp8rt::Context &context, Refit &refit, const std::vector<fp8rt_weight_entry> &entries) {
    const fp8rt_quantize_desc desc = refit.desc();
    for (std::size_t i = 0; i < entries.size(); ++i) names_.push_back("tensor" + std::to_string(i));
    std::vector<fp8rt_refit_destination> destinations;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      fp8rt_refit_destination made = fp8rt::refit_destination(names_[i].c_str(), entries[i].codes, entries[i].scales);
      made.recipe = desc.recipe, made.scale_format = desc.scale_format;
      made.part_rows = entries[i].part_rows, made.num_parts = entries[i].num_parts;
      destinations.push_back(made);
      items_.push_back(fp8rt::refit_item(names_[i].c_str(), entries[i].weight));
    }
    plan_ = std::make_unique<fp8rt::Refit>(context, destinations);
  }

  void run(void *stream) {
    plan_->begin();
    plan_->run(items_, nullptr, stream);
    plan_->finish();
  }
  fp8rt_refit *get() const { return plan_->get(); }
  const std::vector<fp8rt_refit_item> &items() const { return items_; }
  std::uint32_t sources() const { return plan_->query().num_sources; }

 private:
  std::vector<std::string> names_;
  std::vector<fp8rt_refit_item> items_;
  std::unique_ptr<fp8rt::Refit> plan_;
};

class PlansOnBoth : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  // More regions than a launch holds.
  Refit refit_{FP8RT_RECIPE_NEMO_RL, GetParam(), 260};
  Stream stream_;
};

TEST_P(PlansOnBoth, HaveTheSameSums) {
  Plan device(gpu(), refit_, refit_.entries()), at_home(host(), refit_, refit_.host_entries());
  const std::uint32_t count = device.sources();
  device.run(stream_.get()), at_home.run(nullptr);
  const DeviceSums sums(count);
  std::vector<fp8rt_fingerprint_sum> want(count);
  ASSERT_OK(fp8rt_refit_fingerprint(device.get(), sums.get(), stream_.get()));
  ASSERT_OK(fp8rt_refit_fingerprint(at_home.get(), want.data(), nullptr));
  std::vector<fp8rt_fingerprint> values(count), want_values(count);
  fp8rt_fingerprint total{}, want_total{};
  ASSERT_OK(fp8rt_refit_fingerprint_read(device.get(), sums.get(), count, values.data(), &total, stream_.get()));
  ASSERT_OK(fp8rt_refit_fingerprint_read(at_home.get(), want.data(), count, want_values.data(), &want_total, nullptr));
  const std::vector<fp8rt_fingerprint_sum> got = sums.download();
  for (std::uint32_t i = 0; i < count; ++i) {
    ASSERT_TRUE(same_sum(got[i], want[i])) << "source " << i;
    EXPECT_EQ(values[i], want_values[i]);
  }
  EXPECT_EQ(total, want_total);
}

// Sums in another order. A scale of 2^127 has an error without bounds on both sides.
bool is_near(double got, double want) { return got == want || std::abs(got - want) <= 1e-9 * want; }

TEST_P(PlansOnBoth, MeasureAlike) {
  Plan device(gpu(), refit_, refit_.entries()), at_home(host(), refit_, refit_.host_entries());
  const std::uint32_t count = device.sources();
  device.run(stream_.get()), at_home.run(nullptr);
  DeviceBuffer sums(count * sizeof(fp8rt_error_sums));
  sums.fill(0);
  std::vector<fp8rt_error_sums> got(count), want(count);
  const auto on_device = reinterpret_cast<fp8rt_error_sums *>(sums.data());
  ASSERT_OK(fp8rt_refit_measure(device.get(), device.items().data(), count, on_device, stream_.get()));
  ASSERT_OK(fp8rt_refit_measure(at_home.get(), at_home.items().data(), count, want.data(), nullptr));
  ASSERT_OK(fp8rt_error_sums_read(gpu().get(), on_device, count, got.data(), stream_.get()));
  for (std::uint32_t i = 0; i < count; ++i) {
    EXPECT_TRUE(is_near(got[i].squares, want[i].squares)) << i << ": " << got[i].squares << ", " << want[i].squares;
    EXPECT_TRUE(is_near(got[i].errors, want[i].errors)) << i << ": " << got[i].errors << ", " << want[i].errors;
    EXPECT_EQ(got[i].elements, want[i].elements) << i;
    EXPECT_EQ(got[i].became_zero, want[i].became_zero) << i;
    EXPECT_EQ(got[i].became_subnormal, want[i].became_subnormal) << i;
    EXPECT_EQ(got[i].non_finite, want[i].non_finite) << i;
    EXPECT_EQ(got[i].blocks, want[i].blocks) << i;
    EXPECT_EQ(got[i].outlier_blocks, want[i].outlier_blocks) << i;
  }
}

TEST_P(PlansOnBoth, InAGraph) {
  ASSERT_OK(fp8rt_context_prepare(gpu().get(), stream_.get()));
  Plan device(gpu(), refit_, refit_.entries());
  device.run(stream_.get());
  const std::uint32_t count = device.sources();
  const DeviceSums once(count), twice(count);
  ASSERT_OK(fp8rt_refit_fingerprint(device.get(), once.get(), stream_.get()));
  const Graph graph(stream_, [&] { EXPECT_OK(fp8rt_refit_fingerprint(device.get(), twice.get(), stream_.get())); });
  graph.launch(stream_), graph.launch(stream_);
  stream_.synchronize();
  const std::vector<fp8rt_fingerprint_sum> one = once.download(), two = twice.download();
  for (std::uint32_t i = 0; i < count; ++i) {
    for (int limb = 0; limb < 4; ++limb) ASSERT_EQ(two[i].limbs[limb], 2 * one[i].limbs[limb]) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PlansOnBoth, ::testing::ValuesIn(kFormats));

}  // namespace
}  // namespace fp8rt_test
