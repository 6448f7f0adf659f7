// The refit of a model by name, on the host: every source that a tensor may be, in any order, against the oracle on
// each region alone.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "calls.hpp"
#include "parameter.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

Matrix values(std::uint32_t dtype, Extents extents, std::uint32_t seed, std::int64_t gap = 0) {
  Matrix made(dtype, extents, {extents.columns + gap});
  Random(seed).fill_hostile(made, true);
  return made;
}

Rule rule_of(std::uint32_t format, std::vector<std::int64_t> parts = {}, std::uint32_t recipe = FP8RT_RECIPE_NEMO_RL) {
  Rule rule;
  rule.recipe = recipe, rule.format = format, rule.parts = std::move(parts);
  return rule;
}

std::vector<fp8rt_refit_destination> destinations(const std::vector<Parameter *> &parameters) {
  std::vector<fp8rt_refit_destination> all;
  for (const Parameter *parameter : parameters) all.push_back(parameter->destination());
  return all;
}

class RefitPlan : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  std::uint32_t format() const { return GetParam(); }
  fp8rt::Context context = context_with_threads(2);
};

// R1: twice, the second time with other values into the same addresses.
TEST_P(RefitPlan, EverySourceInAnyOrder) {
  Parameter plain("plain", rule_of(format()), {130, 700}, 5);
  Parameter merged("qkv", rule_of(format(), {192, 66, 0, 130}), {388, 300});
  Parameter slab("experts", rule_of(format(), {128, 72}, FP8RT_RECIPE_VLLM), {200, 130, 3});
  Parameter cut("cut", rule_of(format()), {400, 1100});
  Parameter norm("norm", FP8RT_DTYPE_BF16, {1, 321});
  Parameter bias("bias", FP8RT_DTYPE_F32, {40, 33, 2}, 3);
  std::vector<Parameter *> all = {&plain, &merged, &slab, &cut, &norm, &bias};
  std::vector<fp8rt_refit_destination> described = destinations(all);
  described[4].codes.rank = 1, described[4].codes.shape[0] = 321, described[4].codes.stride[0] = 1;
  fp8rt::Refit refit(context, described);
  const fp8rt_refit_info info = refit.query();
  EXPECT_EQ(info.num_destinations, 6u);
  EXPECT_EQ(info.num_sources, 6u);
  EXPECT_EQ(info.num_regions, 10u);
  EXPECT_EQ(info.staging_bytes, 0u);
  EXPECT_EQ(info.cut_on_blocks, 1u);
  for (std::uint32_t seed = 1; seed < 3; ++seed) {
    const Matrix of_plain = values(FP8RT_DTYPE_F16, {130, 700}, seed, 9),
                 of_merged = values(FP8RT_DTYPE_BF16, {388, 300}, seed);
    const Matrix of_slab = values(FP8RT_DTYPE_F32, {200, 130, 3}, seed),
                 of_cut = values(FP8RT_DTYPE_BF16, {400, 1100}, seed);
    const Matrix of_norm = values(FP8RT_DTYPE_BF16, {1, 321}, seed),
                 of_bias = values(FP8RT_DTYPE_F32, {40, 33, 2}, seed, 1);
    plain.want_all(of_plain), merged.want_all(of_merged), slab.want_all(of_slab), cut.want_all(of_cut);
    norm.want_all(of_norm), bias.want_all(of_bias);
    const Matrix q = box_of(of_merged, {0, 0, 0}, {192, 300}), k = box_of(of_merged, {0, 192, 0}, {66, 300});
    const Matrix v_top = box_of(of_merged, {0, 258, 0}, {128, 300}), v_end = box_of(of_merged, {0, 386, 0}, {2, 300});
    const Matrix first = box_of(of_slab, {0, 0, 0}, {200, 130}), up = box_of(of_slab, {1, 128, 0}, {72, 130});
    const Matrix gate = box_of(of_slab, {1, 0, 0}, {128, 130}), last = box_of(of_slab, {2, 0, 0}, {200, 130, 1});
    const Matrix left = box_of(of_cut, {0, 128, 0}, {272, 512}), right = box_of(of_cut, {0, 128, 512}, {272, 588});
    const Matrix top = box_of(of_cut, {0, 0, 0}, {128, 1100});
    const Matrix a = box_of(of_norm, {0, 0, 64}, {1, 257}), b = box_of(of_norm, {0, 0, 0}, {1, 64});
    const Matrix rows = box_of(of_bias, {0, 7, 0}, {33, 33, 2}), above = box_of(of_bias, {0, 0, 0}, {7, 33, 2});
    fp8rt_refit_item v_at_end = part_item("qkv", 3, v_end), up_of_one = expert_item("experts", 1, up);
    v_at_end.first_row = 128;
    up_of_one.flags |= FP8RT_REFIT_ITEM_PART, up_of_one.part = 1;
    fp8rt_refit_item gate_of_one = expert_item("experts", 1, gate);
    gate_of_one.flags |= FP8RT_REFIT_ITEM_PART, gate_of_one.part = 0;
    refit.begin();
    fp8rt_health health{};
    EXPECT_EQ(refit.run({cut_item("cut", 128, 512, right), part_item("qkv", 1, k), v_at_end, item("plain", of_plain),
                         expert_item("experts", 2, last), cut_item("norm", 0, 64, a)},
                        &health),
              7u);
    EXPECT_EQ(refit.query().destinations_filled, 1u);
    EXPECT_EQ(refit.run({}), 0u);
    EXPECT_EQ(refit.run({up_of_one, cut_item("bias", 7, 0, rows), part_item("qkv", 0, q), cut_item("cut", 0, 0, top),
                         expert_item("experts", 0, first), part_item("qkv", 3, v_top)},
                        &health),
              7u);
    EXPECT_EQ(refit.run({cut_item("bias", 0, 0, above), cut_item("norm", 0, 0, b), gate_of_one,
                         cut_item("cut", 128, 0, left)}),
              4u);
    const fp8rt_refit_receipt receipt = refit.finish();
    EXPECT_EQ(receipt.destinations_filled, 6u);
    EXPECT_EQ(receipt.items, 16u);
    EXPECT_EQ(receipt.regions_written, 18u);
    EXPECT_EQ(receipt.blocks_filled, info.blocks_total);
    EXPECT_EQ(receipt.bytes_written, info.bytes_written);
    for (const Parameter *parameter : all) EXPECT_TRUE(parameter->is_right()) << seed;
    EXPECT_GT(health.non_finite, 0u);
    fp8rt_health read{};
    EXPECT_OK(fp8rt_health_read(context.get(), &health, &read, nullptr));
    EXPECT_TRUE(read == health);
  }
}

// S2: what a rank holds of layers whose shards are no multiples of 128. Each shard has its own edge blocks.
TEST_P(RefitPlan, RecordedRegionsOfOddShards) {
  struct Layer {
    std::int64_t rows, columns, ranks;
  };
  for (const Layer &layer :
       {Layer{384, 512, 2}, Layer{1152, 640, 2}, Layer{2112, 512, 1}, Layer{96, 600, 2}, Layer{64, 1024, 4}}) {
    const Matrix gate = values(FP8RT_DTYPE_BF16, {layer.rows, layer.columns}, 1);
    const Matrix up = values(FP8RT_DTYPE_BF16, {layer.rows, layer.columns}, 2);
    const Matrix down = values(FP8RT_DTYPE_BF16, {layer.columns, layer.rows}, 3);
    const std::int64_t shard = layer.rows / layer.ranks;
    for (std::int64_t rank = 0; rank < layer.ranks; ++rank) {
      Parameter merged("gate_up", rule_of(format(), {shard, shard}), {2 * shard, layer.columns});
      Parameter split("down", rule_of(format()), {layer.columns, shard});
      Parameter embedding("embedding", FP8RT_DTYPE_BF16, {shard + 5, layer.columns});
      const std::int64_t first = rank * shard;
      const std::vector<fp8rt_refit_region> regions = {
          region("down_proj", 1, {0, 0, first}, {layer.columns, shard}, {}),
          region("up_proj", 0, {0, first, 0}, {shard, layer.columns}, {0, shard, 0}),
          region("gate_proj", 0, {0, first, 0}, {shard, layer.columns}, {}),
          region("gate_proj", 2, {0, first, 0}, {shard, layer.columns}, {})};
      auto described = destinations({&merged, &split, &embedding});
      described[2].flags = FP8RT_REFIT_DESTINATION_PARTLY;
      fp8rt::Refit refit(context, described, regions);
      EXPECT_EQ(refit.query().num_sources, 3u);
      EXPECT_EQ(refit.query().cut_on_blocks, shard % 128 == 0 || (rank == 0 && shard % 128 != 0));
      EXPECT_EQ(refit.source_name(0), "down_proj");
      refit.begin();
      refit.run({item("gate_proj", gate), item("down_proj", down), item("up_proj", up)});
      refit.finish();
      merged.want(box_of(gate, {0, first, 0}, {shard, layer.columns}), {});
      merged.want(box_of(up, {0, first, 0}, {shard, layer.columns}), {0, shard, 0});
      split.want(box_of(down, {0, 0, first}, {layer.columns, shard}), {});
      embedding.want(box_of(gate, {0, first, 0}, {shard, layer.columns}), {});
      for (const Parameter *parameter : {&merged, &split, &embedding}) {
        EXPECT_TRUE(parameter->is_right()) << shard << " rows, rank " << rank;
      }
    }
  }
}

// What the oracle says is what fp8rt_quantize_weight does with the shard.
TEST_P(RefitPlan, AShardIsQuantizedAsByItself) {
  const Matrix whole = values(FP8RT_DTYPE_BF16, {576, 700}, 7);
  Parameter shard("shard", rule_of(format()), {192, 700});
  fp8rt::Refit refit(context, destinations({&shard}), {region("whole", 0, {0, 384, 0}, {192, 700}, {})});
  refit.begin();
  refit.run({item("whole", whole)});
  refit.finish();
  const Matrix alone = box_of(whole, {0, 384, 0}, {192, 700});
  Matrix codes(FP8RT_DTYPE_E4M3, {192, 700}), scales = make_scales(shard.rule, {192, 700});
  ASSERT_OK(quantize(context, shard.rule, alone, codes, scales));
  EXPECT_TRUE(same_bytes(shard.codes, codes));
  EXPECT_TRUE(same_bytes(shard.scales, scales));
}

// A fused source over several parts is cut at them; a trainer's shard meets an engine's.
TEST_P(RefitPlan, ARegionOverPartsAndShardsOfATrainer) {
  const Matrix fused = values(FP8RT_DTYPE_BF16, {400, 1100}, 11);
  Parameter merged("gate_up", rule_of(format(), {144, 256}), {400, 1100});
  fp8rt::Refit refit(context, destinations({&merged}), {region("fused", 0, {0, 0, 0}, {400, 1100}, {})});
  EXPECT_EQ(refit.query().num_regions, 2u);
  EXPECT_EQ(refit.query().cut_on_blocks, 0u);
  const Matrix left = box_of(fused, {0, 0, 0}, {400, 512}), right = box_of(fused, {0, 0, 512}, {272, 588});
  const Matrix rest = box_of(fused, {0, 272, 512}, {128, 588});
  refit.begin();
  EXPECT_EQ(refit.run({cut_item("fused", 272, 512, rest)}), 1u);
  EXPECT_EQ(refit.run({cut_item("fused", 0, 0, left), cut_item("fused", 0, 512, right)}), 4u);
  refit.finish();
  merged.want_all(fused);
  EXPECT_TRUE(merged.is_right());
  // By the destination's own name too, which nobody else has.
  refit.begin();
  EXPECT_EQ(refit.run({part_item("gate_up", 1, box_of(fused, {0, 144, 0}, {256, 1100})),
                       part_item("gate_up", 0, box_of(fused, {0, 0, 0}, {144, 1100}))}),
            2u);
  refit.finish();
  EXPECT_TRUE(merged.is_right());
}

// Codes and scales from a trainer that quantized already: copied, in the layout of the destination.
TEST_P(RefitPlan, QuantizedSources) {
  for (const bool column_major : {false, true}) {
    const Rule rule = rule_of(format(), {192, 64, 129});
    const Extents extents{385, 1100};
    const Matrix source = values(FP8RT_DTYPE_BF16, extents, 5);
    Matrix codes(FP8RT_DTYPE_E4M3, extents, {1107}), scales = make_scales(rule, extents, column_major);
    oracle_quantize(rule, source, codes, scales);
    Parameter whole("whole", rule, extents, 3), parts("parts", rule, extents);
    fp8rt::Refit refit(context, destinations({&whole, &parts}));
    const auto quantized = [](fp8rt_refit_item made, const Matrix &its_scales) {
      made.scales = its_scales.tensor();
      return made;
    };
    const Rule alone = rule_of(format());
    const Matrix v = box_of(source, {0, 256, 0}, {129, 1100}), qk = box_of(source, {0, 0, 0}, {192, 1100});
    const Matrix k = box_of(source, {0, 192, 0}, {64, 1100});
    const auto prequantize = [&](const Matrix &of) {
      std::pair<Matrix, Matrix> made{Matrix(FP8RT_DTYPE_E4M3, of.extents()),
                                     make_scales(alone, of.extents(), column_major)};
      oracle_quantize(alone, of, made.first, made.second);
      return made;
    };
    const auto of_v = prequantize(v), of_q = prequantize(qk), of_k = prequantize(k);
    refit.begin();
    EXPECT_EQ(
        refit.run({quantized(item("whole", codes), scales), quantized(part_item("parts", 2, of_v.first), of_v.second),
                   quantized(part_item("parts", 1, of_k.first), of_k.second),
                   quantized(part_item("parts", 0, of_q.first), of_q.second)}),
        6u);
    refit.finish();
    whole.want_all(source), parts.want_all(source);
    EXPECT_TRUE(whole.is_right()) << column_major;
    EXPECT_TRUE(parts.is_right()) << column_major;
  }
}

// A region of codes that does not lie on the blocks of its source has no scales of its own.
TEST_P(RefitPlan, QuantizedSourcesAreNotSlicedOffTheirBlocks) {
  const Rule rule = rule_of(format());
  const Matrix source = values(FP8RT_DTYPE_BF16, {512, 1024}, 5);
  Matrix codes(FP8RT_DTYPE_E4M3, {512, 1024}), scales = make_scales(rule, {512, 1024});
  oracle_quantize(rule, source, codes, scales);
  Parameter shard("shard", rule, {128, 512}), odd("odd", rule, {192, 1024}), middle("middle", rule, {128, 1024});
  const std::vector<fp8rt_refit_region> regions = {region("a", 0, {0, 256, 512}, {128, 512}, {}),
                                                   region("b", 1, {0, 128, 0}, {192, 1024}, {}),
                                                   region("c", 2, {0, 64, 0}, {128, 1024}, {})};
  fp8rt::Refit refit(context, destinations({&shard, &odd, &middle}), regions);
  const auto run = [&](const char *name) {
    fp8rt_refit_item made = item(name, codes);
    made.scales = scales.tensor();
    return fp8rt_refit_run(refit.get(), &made, 1, nullptr, 0, nullptr, nullptr, nullptr);
  };
  refit.begin();
  EXPECT_OK(run("a"));
  shard.want(box_of(source, {0, 256, 512}, {128, 512}), {});
  EXPECT_TRUE(failed_with(run("b"), FP8RT_STATUS_SHAPE, "fp8rt_refit_run", {"items[0] (b)", "128 to 320", "128"}));
  EXPECT_TRUE(failed_with(run("c"), FP8RT_STATUS_SHAPE, "fp8rt_refit_run", {"items[0] (c)", "64 to 192", "128"}));
  for (const Parameter *parameter : {&shard, &odd, &middle}) EXPECT_TRUE(parameter->is_right());
}

// R2: a table follows its sources; it counts for nothing in the plan.
TEST_P(RefitPlan, ABoundTableFollowsItsSources) {
  Parameter weight("weight", rule_of(format(), {130, 70}), {200, 300}), norm("norm", FP8RT_DTYPE_F32, {1, 50});
  Parameter other("other", rule_of(FP8RT_SCALE_FORMAT_FP32, {}, FP8RT_RECIPE_TE), {100, 100});
  fp8rt_weight_table *handle = nullptr;
  Matrix of_weight = values(FP8RT_DTYPE_BF16, {200, 300}, 1), of_norm = values(FP8RT_DTYPE_F32, {1, 50}, 1);
  Matrix of_other = values(FP8RT_DTYPE_F32, {100, 100}, 1);
  {
    fp8rt::Refit refit(context, destinations({&weight, &norm, &other}));
    const std::vector<fp8rt_refit_item> items = {item("weight", of_weight), item("norm", of_norm),
                                                 item("other", of_other)};
    ASSERT_OK(fp8rt_refit_bind(refit.get(), items.data(), 3, &handle));
    EXPECT_EQ(refit.query().blocks_filled, 0u);
  }
  const fp8rt::WeightTable table(handle);
  for (std::uint32_t seed = 20; seed < 23; ++seed) {
    Random(seed).fill_hostile(of_weight, true), Random(seed).fill_hostile(of_norm, true);
    Random(seed).fill_hostile(of_other, true);
    fp8rt_health health{};
    ASSERT_OK(fp8rt_weight_table_run(table.get(), &health, nullptr));
    weight.want_all(of_weight), norm.want_all(of_norm), other.want_all(of_other);
    for (const Parameter *parameter : {&weight, &norm, &other}) EXPECT_TRUE(parameter->is_right()) << seed;
    EXPECT_GT(health.non_finite, 0u);
  }
}

// Into views of a caller, as the plan would: the engine's parts, or a shard that a trainer sends on.
TEST_P(RefitPlan, QuantizeInto) {
  Parameter merged("qkv", rule_of(format(), {192, 64, 64}), {320, 600}), norm("norm", FP8RT_DTYPE_BF16, {1, 8});
  Parameter shard("shard", rule_of(FP8RT_SCALE_FORMAT_FP32, {}, FP8RT_RECIPE_VLLM), {256, 600});
  fp8rt::Refit refit(context, destinations({&merged, &norm, &shard}),
                     {region("whole", 2, {0, 128, 0}, {256, 600}, {})});
  const Matrix of_merged = values(FP8RT_DTYPE_BF16, {320, 600}, 1), of_whole = values(FP8RT_DTYPE_F16, {500, 600}, 2);
  Parameter mine("mine", merged.rule, {320, 600}, 8), yours("yours", shard.rule, {500, 600});
  const std::vector<fp8rt_refit_item> items = {item("qkv", of_merged), item("whole", of_whole)};
  const std::vector<fp8rt_tensor> codes = {mine.codes.tensor(), yours.codes.tensor()};
  const std::vector<fp8rt_tensor> scales = {mine.scales.tensor(), yours.scales.tensor()};
  fp8rt_health health{};
  ASSERT_OK(fp8rt_refit_quantize_into(refit.get(), items.data(), codes.data(), scales.data(), 2, &health, nullptr));
  mine.want_all(of_merged), yours.want_all(of_whole);
  for (const Parameter *parameter : {&mine, &yours, &merged, &norm, &shard}) EXPECT_TRUE(parameter->is_right());
  EXPECT_EQ(refit.query().blocks_filled, 0u);
  const Matrix of_norm = values(FP8RT_DTYPE_BF16, {1, 8}, 3);
  const fp8rt_refit_item kept = item("norm", of_norm);
  EXPECT_TRUE(
      failed_with(fp8rt_refit_quantize_into(refit.get(), &kept, codes.data(), scales.data(), 1, nullptr, nullptr),
                  FP8RT_STATUS_INVALID_ARGUMENT, "fp8rt_refit_quantize_into", {"items[0] (norm)", "kept"}));
}

std::string format_name(const ::testing::TestParamInfo<std::uint32_t> &info) {
  const char *const names[] = {"Fp32", "Pow2", "Packed"};
  return names[info.param];
}

INSTANTIATE_TEST_SUITE_P(Formats, RefitPlan,
                         ::testing::Values(FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2,
                                           FP8RT_SCALE_FORMAT_UE8M0_PACKED),
                         format_name);

// Cuts of every shape, in random order, fill every block once.
TEST(RefitPlanRandom, AnyTilingFillsAll) {
  const fp8rt::Context context;
  Random random(seed_of_the_day());
  for (int round = 0; round < 40; ++round) {
    const std::int64_t rows = random.between(1, 900), columns = random.between(1, 900);
    const bool kept = random.between(0, 3) == 0;
    const std::int64_t height = kept ? 1 : 128, width = kept ? 64 : 128;
    Parameter parameter = kept ? Parameter("w", FP8RT_DTYPE_BF16, {rows, columns})
                               : Parameter("w", rule_of(FP8RT_SCALE_FORMAT_FP32), {rows, columns});
    const Matrix source = values(FP8RT_DTYPE_BF16, {rows, columns}, random.bits());
    std::vector<Matrix> cuts;
    std::vector<Corner> corners;
    const std::int64_t tall = height * random.between(1, kept ? 300 : 3), wide = width * random.between(1, 4);
    for (std::int64_t row = 0; row < rows; row += tall) {
      for (std::int64_t column = 0; column < columns; column += wide) {
        const Extents extents{std::min(tall, rows - row), std::min(wide, columns - column)};
        cuts.push_back(box_of(source, {0, row, column}, extents));
        corners.push_back({0, row, column});
      }
    }
    fp8rt::Refit refit(context, destinations({&parameter}));
    refit.begin();
    std::vector<std::size_t> order(cuts.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
      const auto other = static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i)));
      order[i] = order[other], order[other] = i;
    }
    for (std::size_t i = 0; i < order.size(); ++i) {
      const Corner at = corners[order[i]];
      EXPECT_NE(fp8rt_refit_finish(refit.get(), 0, nullptr), FP8RT_STATUS_OK);
      const fp8rt_refit_item made = cut_item("w", at.row, at.column, cuts[order[i]]);
      refit.run({made});
      EXPECT_TRUE(failed_with(fp8rt_refit_run(refit.get(), &made, 1, nullptr, 0, nullptr, nullptr, nullptr),
                              FP8RT_STATUS_INVALID_ARGUMENT, "fp8rt_refit_run", {"filled already"}));
    }
    refit.finish();
    parameter.want_all(source);
    EXPECT_TRUE(parameter.is_right()) << rows << "x" << columns;
  }
}

}  // namespace
}  // namespace fp8rt_test
