// Many weights in one call, and tables of them, on the host: the same bytes as a call each.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "calls.hpp"
#include "matrix.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

// Weights of every source type, with experts, edges and parts, and what one call each makes of them.
class Weights {
 public:
  Weights() {
    add(FP8RT_DTYPE_BF16, {130, 256}, {});
    add(FP8RT_DTYPE_F32, {5, 300}, {});
    add(FP8RT_DTYPE_F16, {129, 64, 3}, {});
    add(FP8RT_DTYPE_BF16, {256, 130}, {192, 64});
    add(FP8RT_DTYPE_BF16, {0, 128}, {});
  }

  std::vector<fp8rt_weight_entry> entries() const {
    std::vector<fp8rt_weight_entry> all;
    for (const One &one : all_) {
      fp8rt_weight_entry entry{};
      entry.weight = one.values.tensor(), entry.codes = one.codes.tensor(), entry.scales = one.scales.tensor();
      entry.part_rows = one.rule.parts.data();
      entry.num_parts = static_cast<std::uint32_t>(one.rule.parts.size());
      all.push_back(entry);
    }
    return all;
  }

  // New values at the same addresses.
  void change(std::uint32_t seed) {
    for (One &one : all_) Random(seed++).fill_hostile(one.values, true);
  }

  // The oracle's counts, if all outputs are the oracle's; otherwise a failure.
  fp8rt_health expect_oracle() const {
    fp8rt_health sum{};
    for (const One &one : all_) {
      Matrix codes = one.poison_codes, scales = one.poison_scales;
      const fp8rt_health health = oracle_quantize(one.rule, one.values, codes, scales);
      EXPECT_TRUE(same_bytes(one.codes, codes));
      EXPECT_TRUE(same_bytes(one.scales, scales));
      sum.non_finite += health.non_finite, sum.became_zero += health.became_zero;
      sum.became_subnormal += health.became_subnormal;
    }
    return sum;
  }

  void expect_untouched() const {
    for (const One &one : all_) {
      EXPECT_TRUE(same_bytes(one.codes, one.poison_codes));
      EXPECT_TRUE(same_bytes(one.scales, one.poison_scales));
    }
  }

 private:
  struct One {
    Rule rule;
    Matrix values, codes, scales, poison_codes, poison_scales;
  };

  void add(std::uint32_t dtype, Extents extents, std::vector<std::int64_t> parts) {
    Rule rule;
    rule.parts = std::move(parts);
    Matrix values(dtype, extents, {extents.columns + 3});
    Random(static_cast<std::uint32_t>(all_.size())).fill_hostile(values, true);
    const Matrix codes(FP8RT_DTYPE_E4M3, extents), scales = make_scales(rule, extents);
    all_.push_back({rule, values, codes, scales, codes, scales});
  }

  std::vector<One> all_;
};

using Way = fp8rt_status (*)(fp8rt_context *, const std::vector<fp8rt_weight_entry> &, fp8rt_health *);

fp8rt_status with_call(fp8rt_context *context, const std::vector<fp8rt_weight_entry> &entries, fp8rt_health *health) {
  const auto count = static_cast<std::uint32_t>(entries.size());
  return fp8rt_quantize_weights(context, nullptr, entries.data(), count, health, nullptr);
}

fp8rt_status from_host(fp8rt_context *context, const std::vector<fp8rt_weight_entry> &entries, fp8rt_health *health) {
  const auto count = static_cast<std::uint32_t>(entries.size());
  return fp8rt_quantize_weights_from_host(context, nullptr, entries.data(), count, nullptr, 0, health, nullptr);
}

class Many : public ::testing::TestWithParam<Way> {};

TEST_P(Many, EqualsACallEach) {
  const fp8rt::Context context = context_with_threads(2);
  const Weights weights;
  fp8rt_health health{};
  ASSERT_OK(GetParam()(context.get(), weights.entries(), &health));
  EXPECT_TRUE(health == weights.expect_oracle());
}

TEST_P(Many, ABadEntryIsNamedAndNothingIsWritten) {
  const fp8rt::Context context;
  const Weights weights;
  const std::string function = GetParam() == with_call ? "fp8rt_quantize_weights" : "fp8rt_quantize_weights_from_host";
  const auto refused = [&](const std::vector<fp8rt_weight_entry> &entries, fp8rt_status status,
                           const std::vector<std::string> &texts) {
    return failed_with(GetParam()(context.get(), entries, nullptr), status, function, texts);
  };
  std::vector<fp8rt_weight_entry> entries = weights.entries();
  entries[2].scales.shape[2] += 1;
  EXPECT_TRUE(refused(entries, FP8RT_STATUS_BOUNDS, {"entries[2]"}));
  entries = weights.entries();
  entries[3].num_parts = 1;
  EXPECT_TRUE(refused(entries, FP8RT_STATUS_SHAPE, {"entries[3]", "192", "256"}));
  entries = weights.entries();
  entries[1].reserved = 7;
  EXPECT_TRUE(refused(entries, FP8RT_STATUS_INVALID_ARGUMENT, {"entries[1]", "7"}));
  entries[1].reserved = 0, entries[4].codes.device = 1;
  EXPECT_TRUE(refused(entries, FP8RT_STATUS_DEVICE, {"entries[4]", "1"}));
  weights.expect_untouched();
}

INSTANTIATE_TEST_SUITE_P(All, Many, ::testing::Values(with_call, from_host));

TEST(ManyArguments, AreChecked) {
  const fp8rt::Context context;
  const std::string function = "fp8rt_quantize_weights";
  EXPECT_OK(fp8rt_quantize_weights(context.get(), nullptr, nullptr, 0, nullptr, nullptr));
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights(context.get(), nullptr, nullptr, 3, nullptr, nullptr),
                          FP8RT_STATUS_NULL_POINTER, function, {"entries", "3"}));
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights(nullptr, nullptr, nullptr, 0, nullptr, nullptr),
                          FP8RT_STATUS_NULL_POINTER, function, {"context"}));
  const std::int64_t rows = 1;
  fp8rt_quantize_desc desc = fp8rt::quantize_desc();
  desc.part_rows = &rows, desc.num_parts = 1;
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights(context.get(), &desc, nullptr, 0, nullptr, nullptr),
                          FP8RT_STATUS_INVALID_ARGUMENT, function, {"num_parts", "1"}));
}

TEST(Table, FollowsItsSourcesAndOutlivesTheContext) {
  Weights weights;
  fp8rt_weight_table *table = nullptr;
  {
    const fp8rt::Context context = context_with_threads(2);
    const std::vector<fp8rt_weight_entry> entries = weights.entries();
    ASSERT_OK(fp8rt_weight_table_create(context.get(), nullptr, entries.data(),
                                        static_cast<std::uint32_t>(entries.size()), &table));
  }
  for (std::uint32_t refit = 0; refit < 3; ++refit) {
    weights.change(100 + 10 * refit);
    fp8rt_health health{};
    ASSERT_OK(fp8rt_weight_table_run(table, &health, nullptr));
    EXPECT_TRUE(health == weights.expect_oracle()) << refit;
  }
  EXPECT_OK(fp8rt_weight_table_destroy(table));
}

TEST(Table, ABadEntryMakesNone) {
  const fp8rt::Context context;
  const Weights weights;
  std::vector<fp8rt_weight_entry> entries = weights.entries();
  entries[1].weight.dtype = FP8RT_DTYPE_INT32;
  fp8rt_weight_table *table = nullptr;
  EXPECT_TRUE(failed_with(fp8rt_weight_table_create(context.get(), nullptr, entries.data(), 2, &table),
                          FP8RT_STATUS_DTYPE, "fp8rt_weight_table_create", {"entries[1]", "int32"}));
  EXPECT_EQ(table, nullptr);
  EXPECT_TRUE(failed_with(fp8rt_weight_table_run(nullptr, nullptr, nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_weight_table_run", {"table"}));
  EXPECT_OK(fp8rt_weight_table_destroy(nullptr));
}

}  // namespace
}  // namespace fp8rt_test
