// Fingerprints: shards add up, every change is seen and where it is, wrong arguments are named.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "calls.hpp"
#include "fingerprints.hpp"
#include "matrix.hpp"
#include "oracle.hpp"
#include "parameter.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

// A quantized weight of random values, and what it is called.
struct Weight {
  Weight(std::string name, Extents extents, std::uint32_t format = FP8RT_SCALE_FORMAT_FP32,
         std::vector<std::int64_t> parts = {})
      : codes(FP8RT_DTYPE_E4M3, extents), scales(FP8RT_DTYPE_F32, {0, 0}) {
    identity.name = std::move(name);
    identity.format = rule.format = format;
    identity.parts = rule.parts = std::move(parts);
    Matrix values(FP8RT_DTYPE_BF16, extents);
    Random(static_cast<std::uint32_t>(std::hash<std::string>{}(identity.name))).fill_normal(values, 0.02f);
    scales = make_scales(rule, extents);
    oracle_quantize(rule, values, codes, scales);
  }

  fp8rt_fingerprint value(const fp8rt::Context &context) const {
    const fp8rt_tensor view = scales.tensor();
    return fingerprint_of(context, identity, codes.tensor(), &view);
  }

  // Of some blocks, as the rank that holds them sees it.
  fp8rt_fingerprint shard(const fp8rt::Context &context, std::int64_t row, std::int64_t rows, std::int64_t column,
                          std::int64_t columns) const {
    Identity here = identity;
    here.block_row += row / 128, here.block_column += column / 128;
    const fp8rt_tensor view = window(scales.tensor(), row / 128, ceil_div(rows, 128), column / 128,
                                     ceil_div(columns, 128));
    return fingerprint_of(context, here, window(codes.tensor(), row, rows, column, columns), &view);
  }

  Rule rule;
  Identity identity;
  Matrix codes, scales;
};

class Fingerprint : public ::testing::Test {
 protected:
  fp8rt::Context context = context_with_threads(2);
};

TEST_F(Fingerprint, RowsAndColumnsAddUpInAnyOrder) {
  const Weight weight("model.layers.1.mlp.up_proj.weight", {700, 900});
  const fp8rt_fingerprint whole = weight.value(context);
  std::vector<fp8rt_fingerprint> shards;
  for (const auto &[row, rows] : {std::pair{0, 128}, {128, 384}, {512, 188}}) {
    for (const auto &[column, columns] : {std::pair{0, 512}, {512, 388}}) {
      shards.push_back(weight.shard(context, row, rows, column, columns));
    }
  }
  Random random(7);
  for (int round = 0; round < 5; ++round) {
    for (std::size_t i = shards.size() - 1; i > 0; --i) {
      std::swap(shards[i], shards[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i)))]);
    }
    fp8rt_fingerprint sum{};
    for (const fp8rt_fingerprint &shard : shards) sum = sum + shard;
    EXPECT_EQ(sum, whole);
  }
}

// Two ranks of tensor parallelism: column-parallel cuts rows, row-parallel cuts columns, each adds to one sum.
TEST_F(Fingerprint, RanksAddToOneSum) {
  const Weight up("up", {512, 256}), down("down", {256, 512});
  fp8rt_fingerprint ranks{};
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    ranks = ranks + up.shard(context, rank * 256, 256, 0, 256) + down.shard(context, 0, 256, rank * 256, 256);
  }
  EXPECT_EQ(ranks, up.value(context) + down.value(context));
}

TEST_F(Fingerprint, PartsAreNumberedOn) {
  const Weight merged("qkv", {320, 300}, FP8RT_SCALE_FORMAT_FP32, {192, 64, 64});
  fp8rt_fingerprint sum{};
  std::int64_t row = 0, band = 0;
  for (std::uint32_t part = 0; part < 3; ++part) {
    const std::int64_t rows = merged.rule.parts[part];
    Identity alone = merged.identity;
    alone.part = part, alone.parts = {};
    const fp8rt_tensor scales = window(merged.scales.tensor(), band, ceil_div(rows, 128), 0, 3);
    sum = sum + fingerprint_of(context, alone, window(merged.codes.tensor(), row, rows, 0, 300), &scales);
    row += rows, band += ceil_div(rows, 128);
  }
  EXPECT_EQ(sum, merged.value(context));
}

TEST_F(Fingerprint, ExpertsAddUp) {
  Weight slab("experts.w13", {130, 200, 4});
  fp8rt_fingerprint sum{};
  for (std::int64_t expert = 0; expert < 4; ++expert) {
    const auto of_expert = [&](const Matrix &matrix) {
      fp8rt_tensor view = matrix.tensor();
      const std::size_t offset = matrix.offset_of(expert, 0, 0);
      view.data = static_cast<std::uint8_t *>(view.data) + offset;
      view.bytes -= offset;
      view.shape[0] = 1;
      return view;
    };
    Identity here = slab.identity;
    here.expert = expert;
    const fp8rt_tensor scales = of_expert(slab.scales);
    sum = sum + fingerprint_of(context, here, of_expert(slab.codes), &scales);
  }
  EXPECT_EQ(sum, slab.value(context));
}

TEST_F(Fingerprint, PowersOfTwoArePackedExponents) {
  const Weight floats("w", {400, 700}, FP8RT_SCALE_FORMAT_POW2);
  const Weight packed("w", {400, 700}, FP8RT_SCALE_FORMAT_UE8M0_PACKED);
  EXPECT_EQ(floats.value(context), packed.value(context));
}

// A packed exponent stands in every row of its block. One that differs is seen, whichever row it is in.
TEST_F(Fingerprint, PackedExponentsThatDisagreeAreSeen) {
  Weight packed("w", {200, 700}, FP8RT_SCALE_FORMAT_UE8M0_PACKED);
  const fp8rt_fingerprint whole = packed.value(context);
  for (const std::int64_t row : {0, 1, 127, 128, 199}) {
    Weight damaged = packed;
    damaged.scales.store(0, row, 1, damaged.scales.load<std::uint32_t>(0, row, 1) ^ 0x100u);
    EXPECT_NE(damaged.value(context), whole) << row;
  }
}

void swap_blocks(Matrix &codes, std::pair<std::int64_t, std::int64_t> a, std::pair<std::int64_t, std::int64_t> b) {
  for (std::int64_t row = 0; row < 128; ++row) {
    std::uint8_t *first = codes.data() + codes.offset_of(0, a.first * 128 + row, a.second * 128);
    std::uint8_t *second = codes.data() + codes.offset_of(0, b.first * 128 + row, b.second * 128);
    std::swap_ranges(first, first + 128, second);
  }
}

TEST_F(Fingerprint, EveryChangeIsSeen) {
  const Weight weight("w", {300, 400});
  std::vector<std::pair<std::string, Weight>> changed;
  const auto change = [&](const char *what, auto &&action) {
    Weight other = weight;
    action(other);
    changed.emplace_back(what, std::move(other));
  };
  change("blocks", [](Weight &w) { swap_blocks(w.codes, {0, 0}, {1, 2}); });
  change("scales", [](Weight &w) {
    const float kept = w.scales.get(0, 1);
    w.scales.set(0, 1, w.scales.get(2, 3)), w.scales.set(2, 3, kept);
  });
  change("blocks with their scales", [](Weight &w) {
    swap_blocks(w.codes, {0, 0}, {1, 2});
    const float kept = w.scales.get(0, 0);
    w.scales.set(0, 0, w.scales.get(1, 2)), w.scales.set(1, 2, kept);
  });
  change("one bit in the corner", [](Weight &w) { *(w.codes.data() + w.codes.offset_of(0, 299, 399)) ^= 1; });
  change("a bit of a scale", [](Weight &w) { w.scales.store(0, 2, 0, w.scales.load<std::uint32_t>(0, 2, 0) ^ 1u); });
  change("neighbors", [](Weight &w) { std::swap(w.codes.data()[0], w.codes.data()[1]); });
  change("the name", [](Weight &w) { w.identity.name = "v"; });
  change("the part", [](Weight &w) { w.identity.part = 1; });
  change("the expert", [](Weight &w) { w.identity.expert = 1; });
  change("the row", [](Weight &w) { w.identity.block_row = 1; });
  change("the column", [](Weight &w) { w.identity.block_column = 1; });
  std::vector<fp8rt_fingerprint> seen = {weight.value(context)};
  for (const auto &[what, other] : changed) {
    const fp8rt_fingerprint value = other.value(context);
    EXPECT_EQ(std::count(seen.begin(), seen.end(), value), 0) << what;
    seen.push_back(value);
  }
}

// A matrix that is one column shorter is not the one with a zero there.
TEST_F(Fingerprint, ExtentsCount) {
  Weight weight("w", {100, 100});
  for (std::int64_t at = 0; at < 100; ++at) {
    weight.codes.store<std::uint8_t>(0, at, 99, 0);
    weight.codes.store<std::uint8_t>(0, 99, at, 0);
  }
  const fp8rt_fingerprint whole = weight.value(context);
  EXPECT_NE(weight.shard(context, 0, 100, 0, 99), whole);
  EXPECT_NE(weight.shard(context, 0, 99, 0, 100), whole);
}

// Parts of two parameters are exchanged: the total differs, and the values of just these two.
TEST_F(Fingerprint, ExchangedPartsAreNamedByTheirValues) {
  std::vector<Weight> engine;
  for (const char *name : {"gate", "up", "down"}) engine.emplace_back(name, Extents{256, 256});
  const std::vector<Weight> trainer = engine;
  std::swap(engine[0].codes, engine[1].codes), std::swap(engine[0].scales, engine[1].scales);
  std::vector<fp8rt_fingerprint_sum> sums[2];
  for (const Weight &weight : engine) {
    const fp8rt_tensor scales = weight.scales.tensor();
    sums[0].push_back(sum_of(context, weight.identity, weight.codes.tensor(), &scales));
  }
  for (const Weight &weight : trainer) {
    const fp8rt_tensor scales = weight.scales.tensor();
    sums[1].push_back(sum_of(context, weight.identity, weight.codes.tensor(), &scales));
  }
  fp8rt_fingerprint values[2][3], totals[2];
  for (int side = 0; side < 2; ++side) {
    ASSERT_OK(fp8rt_fingerprint_read(context.get(), sums[side].data(), 3, values[side], &totals[side], nullptr));
    EXPECT_EQ(totals[side], values[side][0] + values[side][1] + values[side][2]);
  }
  EXPECT_NE(totals[0], totals[1]);
  EXPECT_NE(values[0][0], values[1][0]);
  EXPECT_NE(values[0][1], values[1][1]);
  EXPECT_EQ(values[0][2], values[1][2]);
}

// 100,000 steps of a walk, three bits flipped in each: every place that it comes to has a value of its own.
TEST_F(Fingerprint, FlippedBitsDoNotCollide) {
  Weight weight("w", {128, 128});
  Random random(seed_of_the_day());
  std::set<std::pair<std::uint64_t, std::uint64_t>> seen;
  const int steps = 100000;
  for (int step = 0; step < steps; ++step) {
    for (int bit = 0; bit < 3; ++bit) {
      weight.codes.data()[random.between(0, 128 * 128 - 1)] ^= static_cast<std::uint8_t>(1u << random.between(0, 7));
    }
    const fp8rt_fingerprint value = weight.value(context);
    seen.emplace(value.low, value.high);
  }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(steps));
}

TEST_F(Fingerprint, ThreadsAndInstructionSetsAgree) {
  const Weight weight("w", {300, 1500, 3});
  const fp8rt_fingerprint whole = weight.value(context);
  EXPECT_EQ(weight.value(context_with_threads(1)), whole);
  EXPECT_EQ(weight.value(context_with_threads(7)), whole);
  int other = 0;
  for (const char *name : {"sse2", "avx2", "avx512", "neon"}) {
    const Environment isa("FP8RT_CPU_ISA", name);
    fp8rt_context *created = nullptr;
    if (fp8rt_context_create(nullptr, &created) != FP8RT_STATUS_OK) continue;  // not of this processor
    fp8rt_context_destroy(created);
    EXPECT_EQ(weight.value(fp8rt::Context()), whole) << name;
    ++other;
  }
  EXPECT_GT(other, 0);
}

TEST_F(Fingerprint, TensorsThatAreKeptCountAsBytes) {
  Matrix kept(FP8RT_DTYPE_BF16, {70, 100}), bytes(FP8RT_DTYPE_F32, {70, 50});
  Random(3).fill_normal(kept, 1);
  std::copy(kept.data(), kept.data() + kept.bytes(), bytes.data());
  const fp8rt_fingerprint value = fingerprint_of(context, {"norm"}, kept.tensor(), nullptr);
  EXPECT_EQ(fingerprint_of(context, {"norm"}, bytes.tensor(), nullptr), value);
  kept.data()[0] ^= 1;
  EXPECT_NE(fingerprint_of(context, {"norm"}, kept.tensor(), nullptr), value);
  const fp8rt_tensor flat = fp8rt::tensor(bytes.data(), FP8RT_DTYPE_F32, {50});
  const fp8rt_tensor row = fp8rt::tensor(bytes.data(), FP8RT_DTYPE_F32, {1, 50});
  EXPECT_EQ(fingerprint_of(context, {"norm"}, flat, nullptr), fingerprint_of(context, {"norm"}, row, nullptr));
}

TEST_F(Fingerprint, NothingAddsNothing) {
  const fp8rt_tensor codes = fp8rt::tensor(nullptr, FP8RT_DTYPE_E4M3, {0, 128});
  const fp8rt_tensor scales = fp8rt::tensor(nullptr, FP8RT_DTYPE_F32, {0, 1});
  EXPECT_EQ(fingerprint_of(context, {"w"}, codes, &scales), fp8rt_fingerprint{});
  fp8rt_fingerprint total{1, 1};
  ASSERT_OK(fp8rt_fingerprint_read(context.get(), nullptr, 0, nullptr, &total, nullptr));
  EXPECT_EQ(total, fp8rt_fingerprint{});
}

// What a plan says of its sources.
std::vector<fp8rt_fingerprint> of_plan(const fp8rt::Refit &refit, std::vector<fp8rt_fingerprint_sum> *sums = nullptr) {
  const std::uint32_t count = refit.query().num_sources;
  std::vector<fp8rt_fingerprint_sum> own(count);
  std::vector<fp8rt_fingerprint_sum> &to = sums == nullptr ? own : *sums;
  std::vector<fp8rt_fingerprint> values(count);
  fp8rt::check(fp8rt_refit_fingerprint(refit.get(), to.data(), nullptr));
  fp8rt::check(fp8rt_refit_fingerprint_read(refit.get(), to.data(), count, values.data(), nullptr, nullptr));
  return values;
}

// What a trainer expects of a tensor that it sends: quantized as a whole, by itself.
fp8rt_fingerprint expected(const fp8rt::Context &context, const std::string &name, const Matrix &values,
                           std::uint32_t format) {
  Rule rule;
  rule.format = format;
  Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents());
  fp8rt::check(quantize(context, rule, values, codes, scales));
  Identity identity{name};
  identity.format = format;
  const fp8rt_tensor view = scales.tensor();
  return fingerprint_of(context, identity, codes.tensor(), &view);
}

Matrix normal(std::uint32_t seed, Extents extents) {
  Matrix made(FP8RT_DTYPE_BF16, extents);
  Random(seed).fill_normal(made, 0.02f);
  return made;
}

class FingerprintOfPlans : public Fingerprint, public ::testing::WithParamInterface<std::uint32_t> {};

// Without recorded regions a destination counts by its own name, part by part.
TEST_P(FingerprintOfPlans, OwnNamesCountByParts) {
  Rule rule, parted;
  rule.format = parted.format = GetParam(), parted.parts = {192, 66};
  Parameter slab("slab", rule, {200, 600, 3}, 4), merged("merged", parted, {258, 300});
  Parameter norm("norm", FP8RT_DTYPE_F32, {1, 300}), bias("bias", FP8RT_DTYPE_BF16, {140, 70, 2}, 6);
  fp8rt::Refit refit(context, {slab.destination(), merged.destination(), norm.destination(), bias.destination()});
  const Matrix a = normal(1, {200, 600, 3}), b = normal(2, {258, 300}), d = normal(4, {140, 70, 2});
  Matrix c(FP8RT_DTYPE_F32, {1, 300});
  Random(3).fill_normal(c, 1);
  refit.begin();
  refit.run({item("slab", a), item("merged", b), item("norm", c), item("bias", d)});
  refit.finish();
  const std::vector<fp8rt_fingerprint> values = of_plan(refit);
  Identity identity;
  identity.format = GetParam();
  const auto alone = [&](const Parameter &parameter) {
    identity.name = parameter.name, identity.parts = parameter.rule.parts;
    const fp8rt_tensor scales = parameter.scales.tensor();
    return fingerprint_of(context, identity, parameter.codes.tensor(), parameter.kept ? nullptr : &scales);
  };
  EXPECT_EQ(values[0], alone(slab));
  EXPECT_EQ(values[1], alone(merged));
  EXPECT_EQ(values[2], alone(norm));
  EXPECT_EQ(values[3], alone(bias));
  EXPECT_EQ(values[0], expected(context, "slab", a, GetParam()));
}

// Two ranks of an engine that packs gate and up, and cuts down by columns; a trainer with the names of the checkpoint.
TEST_P(FingerprintOfPlans, RanksOfAPackedEngineAddUpToTheTrainers) {
  const Extents wide{512, 1024}, tall{256, 1024};
  const Matrix gate = normal(1, wide), up = normal(2, wide), down = normal(3, tall), embed = normal(4, {256, 64});
  std::vector<fp8rt_fingerprint> ranks(4);
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    Rule rule, parted;
    rule.format = parted.format = GetParam(), parted.parts = {256, 256};
    Parameter merged("gate_up_proj", parted, {512, 1024}), split("down_proj", rule, {256, 512});
    Parameter kept("embed", FP8RT_DTYPE_BF16, {128, 64});
    const std::vector<fp8rt_refit_region> regions = {
        region("gate", 0, {0, 256 * rank, 0}, {256, 1024}, {}),
        region("up", 0, {0, 256 * rank, 0}, {256, 1024}, {0, 256, 0}),
        region("down", 1, {0, 0, 512 * rank}, {256, 512}, {}),
        region("embed", 2, {0, 128 * rank, 0}, {128, 64}, {}),
    };
    fp8rt::Refit refit(context, {merged.destination(), split.destination(), kept.destination()}, regions);
    EXPECT_EQ(refit.query().cut_on_blocks, 1u);
    refit.begin();
    refit.run({item("up", up), item("down", down), item("gate", gate), item("embed", embed)});
    refit.finish();
    const std::vector<fp8rt_fingerprint> values = of_plan(refit);
    for (std::size_t source = 0; source < 4; ++source) ranks[source] = ranks[source] + values[source];
  }
  EXPECT_EQ(ranks[0], expected(context, "gate", gate, GetParam()));
  EXPECT_EQ(ranks[1], expected(context, "up", up, GetParam()));
  EXPECT_EQ(ranks[2], expected(context, "down", down, GetParam()));
  EXPECT_EQ(ranks[3], fingerprint_of(context, {"embed"}, embed.tensor(), nullptr));
}

// R4: an old scale in one of many tensors. Only the value of that source changes.
TEST_P(FingerprintOfPlans, AStaleScaleIsNamed) {
  Rule rule;
  rule.format = GetParam();
  std::vector<Parameter> all;
  for (const char *name : {"a", "b", "c"}) all.emplace_back(name, rule, Extents{256, 512});
  fp8rt::Refit refit(context, {all[0].destination(), all[1].destination(), all[2].destination()});
  const Matrix values = normal(9, {256, 512});
  refit.begin();
  refit.run({item("a", values), item("b", values), item("c", values)});
  refit.finish();
  const std::vector<fp8rt_fingerprint> before = of_plan(refit);
  all[1].scales.data()[3] ^= 1;
  const std::vector<fp8rt_fingerprint> after = of_plan(refit);
  EXPECT_EQ(before[0], after[0]);
  EXPECT_NE(before[1], after[1]);
  EXPECT_EQ(before[2], after[2]);
  EXPECT_NE(before[0], before[1]);
}

// A box that begins inside a block of its source has its own value: it is none of the source's blocks.
TEST_P(FingerprintOfPlans, ACutOffBlocksIsToldFromOneOnThem) {
  Rule rule;
  rule.format = GetParam();
  Parameter w("w", rule, {64, 512});
  const Matrix values = normal(6, {256, 512});
  std::vector<fp8rt_fingerprint> seen;
  for (const std::int64_t first : {0, 64, 128, 192}) {
    fp8rt::Refit refit(context, {w.destination()}, {region("source", 0, {0, first, 0}, {64, 512}, {})});
    refit.begin();
    refit.run({cut_item("source", first, 0, box_of(values, {}, {64, 512}))});
    refit.finish();
    const fp8rt_fingerprint value = of_plan(refit)[0];
    EXPECT_EQ(std::count(seen.begin(), seen.end(), value), 0) << first;
    seen.push_back(value);
  }
}

TEST_P(FingerprintOfPlans, ArgumentsAreChecked) {
  Rule rule;
  rule.format = GetParam();
  Parameter w("w", rule, {64, 512});
  const fp8rt::Refit refit(context, {w.destination()});
  fp8rt_fingerprint_sum sum{};
  EXPECT_TRUE(failed_with(fp8rt_refit_fingerprint(refit.get(), nullptr, nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_refit_fingerprint", {"sums"}));
  EXPECT_TRUE(failed_with(fp8rt_refit_fingerprint_read(refit.get(), &sum, 2, nullptr, nullptr, nullptr),
                          FP8RT_STATUS_INVALID_ARGUMENT, "fp8rt_refit_fingerprint_read", {"2", "1 sources"}));
  const auto inside = reinterpret_cast<fp8rt_fingerprint_sum *>(w.codes.data());
  EXPECT_TRUE(failed_with(fp8rt_refit_fingerprint(refit.get(), inside, nullptr), FP8RT_STATUS_OVERLAP,
                          "fp8rt_refit_fingerprint", {"w", "codes"}));
}

INSTANTIATE_TEST_SUITE_P(Formats, FingerprintOfPlans,
                         ::testing::Values(FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2,
                                           FP8RT_SCALE_FORMAT_UE8M0_PACKED));

class FingerprintArguments : public Fingerprint {
 protected:
  ::testing::AssertionResult refused(fp8rt_status status, const std::vector<std::string> &texts) {
    const fp8rt_fingerprint_sum before = sum;
    const auto result = failed_with(
        fp8rt_fingerprint_weight(context.get(), &desc, &codes, &scales, &sum, nullptr), status,
        "fp8rt_fingerprint_weight", texts);
    if (result && !std::equal(before.limbs, before.limbs + 4, sum.limbs)) {
      return ::testing::AssertionFailure() << "the sum was written";
    }
    return result;
  }

  Weight weight{"w", {300, 400}};
  fp8rt_fingerprint_desc desc = weight.identity.desc();
  fp8rt_tensor codes = weight.codes.tensor(), scales = weight.scales.tensor();
  fp8rt_fingerprint_sum sum{{1, 2, 3, 4}};
};

TEST_F(FingerprintArguments, OfTheDescriptor) {
  desc.name = nullptr;
  EXPECT_TRUE(refused(FP8RT_STATUS_NULL_POINTER, {"name"}));
  desc.name = "a\xFF";
  EXPECT_TRUE(refused(FP8RT_STATUS_INVALID_ARGUMENT, {"name", "byte 1"}));
  desc = weight.identity.desc(), desc.expert = -1;
  EXPECT_TRUE(refused(FP8RT_STATUS_INVALID_ARGUMENT, {"expert", "-1"}));
  desc = weight.identity.desc(), desc.first_block_row = std::int64_t{1} << 32;
  EXPECT_TRUE(refused(FP8RT_STATUS_INVALID_ARGUMENT, {"first_block_row", "4294967296"}));
  desc = weight.identity.desc(), desc.first_block_column = 0xFFFFFFFF;
  EXPECT_TRUE(refused(FP8RT_STATUS_UNSUPPORTED, {"codes", "4294967295"}));
  desc = weight.identity.desc(), desc.scale_format = 3;
  EXPECT_TRUE(refused(FP8RT_STATUS_INVALID_ARGUMENT, {"scale_format", "3"}));
  desc = weight.identity.desc(), desc.flags = 1;
  EXPECT_TRUE(refused(FP8RT_STATUS_INVALID_ARGUMENT, {"flags"}));
  desc = weight.identity.desc(), desc.reserved = 9;
  EXPECT_TRUE(refused(FP8RT_STATUS_INVALID_ARGUMENT, {"reserved", "9"}));
  desc = weight.identity.desc(), desc.struct_size = 3;
  EXPECT_TRUE(refused(FP8RT_STATUS_STRUCT_SIZE, {"desc", "3"}));
  const std::int64_t parts[] = {100, 100};
  desc = weight.identity.desc(), desc.part_rows = parts, desc.num_parts = 2;
  EXPECT_TRUE(refused(FP8RT_STATUS_SHAPE, {"part_rows", "200", "300"}));
  const std::int64_t whole[] = {128, 172};
  desc.part_rows = whole, desc.part = 0xFFFFFFFF;
  EXPECT_TRUE(refused(FP8RT_STATUS_INVALID_ARGUMENT, {"part", "4294967295"}));
}

TEST_F(FingerprintArguments, OfTheTensors) {
  scales.shape[1] -= 1;
  EXPECT_TRUE(refused(FP8RT_STATUS_SHAPE, {"scales", "3", "4"}));
  scales = weight.scales.tensor(), codes.stride[1] = 2;
  EXPECT_TRUE(refused(FP8RT_STATUS_BOUNDS, {"codes"}));
  codes = weight.codes.tensor(), codes.rank = 1;
  EXPECT_TRUE(refused(FP8RT_STATUS_SHAPE, {"codes", "rank 1"}));
  codes = fp8rt::tensor(weight.codes.data(), FP8RT_DTYPE_BF16, {300, 200});
  EXPECT_TRUE(refused(FP8RT_STATUS_DTYPE, {"codes", "bf16"}));
  codes = weight.codes.tensor(), codes.device = 0;
  EXPECT_TRUE(refused(FP8RT_STATUS_DEVICE, {"codes"}));
  codes = weight.codes.tensor();
  EXPECT_TRUE(failed_with(fp8rt_fingerprint_weight(context.get(), &desc, &codes, nullptr, &sum, nullptr),
                          FP8RT_STATUS_NULL_POINTER, "fp8rt_fingerprint_weight", {"scales"}));
}

TEST_F(FingerprintArguments, OfTheSum) {
  const std::string function = "fp8rt_fingerprint_weight";
  const auto with = [&](void *address) {
    return fp8rt_fingerprint_weight(context.get(), &desc, &codes, &scales,
                                    static_cast<fp8rt_fingerprint_sum *>(address), nullptr);
  };
  EXPECT_TRUE(failed_with(with(nullptr), FP8RT_STATUS_NULL_POINTER, function, {"sum"}));
  EXPECT_TRUE(failed_with(with(reinterpret_cast<char *>(&sum) + 4), FP8RT_STATUS_ALIGNMENT, function, {"sum"}));
  EXPECT_TRUE(failed_with(with(codes.data), FP8RT_STATUS_OVERLAP, function, {"codes", "sum"}));
  EXPECT_TRUE(failed_with(with(scales.data), FP8RT_STATUS_OVERLAP, function, {"scales", "sum"}));
  EXPECT_TRUE(failed_with(fp8rt_fingerprint_read(context.get(), nullptr, 2, nullptr, nullptr, nullptr),
                          FP8RT_STATUS_NULL_POINTER, "fp8rt_fingerprint_read", {"sums", "2"}));
}

}  // namespace
}  // namespace fp8rt_test
