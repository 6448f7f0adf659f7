// What a refit plan refuses, what it says, and what it leaves as it was.

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "calls.hpp"
#include "parameter.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

Matrix values(std::uint32_t dtype, Extents extents) {
  Matrix made(dtype, extents);
  Random(1).fill_normal(made, 1.0f);
  return made;
}

class Refused : public ::testing::Test {
 protected:
  Refused() { destinations = {merged.destination(), norm.destination(), slab.destination()}; }

  fp8rt_refit_desc desc() const {
    fp8rt_refit_desc made{};
    made.struct_size = sizeof made;
    made.num_destinations = static_cast<std::uint32_t>(destinations.size()), made.destinations = destinations.data();
    made.num_regions = static_cast<std::uint32_t>(regions.size()), made.regions = regions.data();
    return made;
  }

  ::testing::AssertionResult create_fails(fp8rt_status status, const std::vector<std::string> &texts) {
    const fp8rt_refit_desc made = desc();
    fp8rt_refit *refit = nullptr;
    const auto result =
        failed_with(fp8rt_refit_create(context.get(), &made, &refit), status, "fp8rt_refit_create", texts);
    if (refit != nullptr) return ::testing::AssertionFailure() << "a plan was made";
    return result;
  }

  fp8rt::Refit make() const { return fp8rt::Refit(context, destinations, regions); }

  static ::testing::AssertionResult run_fails(const fp8rt::Refit &refit, const std::vector<fp8rt_refit_item> &items,
                                              fp8rt_status status, const std::vector<std::string> &texts) {
    std::uint64_t written = 77;
    const auto result = failed_with(fp8rt_refit_run(refit.get(), items.data(), static_cast<std::uint32_t>(items.size()),
                                                    nullptr, 0, nullptr, &written, nullptr),
                                    status, "fp8rt_refit_run", texts);
    if (written != 77) return ::testing::AssertionFailure() << written << " was written";
    return result;
  }

  Rule of_merged = [] {
    Rule rule;
    rule.parts = {192, 128};
    return rule;
  }();
  Parameter merged{"merged", of_merged, {320, 300}};
  Parameter norm{"norm", FP8RT_DTYPE_BF16, {1, 300}};
  Parameter slab{"slab", Rule{}, {128, 128, 4}};
  fp8rt::Context context = context_with_threads(1);
  std::vector<fp8rt_refit_destination> destinations;
  std::vector<fp8rt_refit_region> regions;
};

TEST_F(Refused, Pointers) {
  fp8rt_refit_desc made = desc();
  fp8rt_refit *refit = nullptr;
  const std::string create = "fp8rt_refit_create";
  EXPECT_TRUE(failed_with(fp8rt_refit_create(nullptr, &made, &refit), FP8RT_STATUS_NULL_POINTER, create, {"context"}));
  EXPECT_TRUE(
      failed_with(fp8rt_refit_create(context.get(), nullptr, &refit), FP8RT_STATUS_NULL_POINTER, create, {"desc"}));
  EXPECT_TRUE(
      failed_with(fp8rt_refit_create(context.get(), &made, nullptr), FP8RT_STATUS_NULL_POINTER, create, {"refit"}));
  made.destinations = nullptr;
  EXPECT_TRUE(failed_with(fp8rt_refit_create(context.get(), &made, &refit), FP8RT_STATUS_NULL_POINTER, create,
                          {"destinations", "3"}));
  made = desc();
  made.num_regions = 2;
  EXPECT_TRUE(failed_with(fp8rt_refit_create(context.get(), &made, &refit), FP8RT_STATUS_NULL_POINTER, create,
                          {"regions", "2"}));
  made = desc();
  made.flags = 4;
  EXPECT_TRUE(
      failed_with(fp8rt_refit_create(context.get(), &made, &refit), FP8RT_STATUS_INVALID_ARGUMENT, create, {"0x4"}));
  made = desc();
  made.struct_size = 2;
  EXPECT_TRUE(failed_with(fp8rt_refit_create(context.get(), &made, &refit), FP8RT_STATUS_STRUCT_SIZE, create, {"2"}));
  EXPECT_EQ(refit, nullptr);
  EXPECT_OK(fp8rt_refit_destroy(nullptr));
  EXPECT_TRUE(failed_with(fp8rt_refit_begin(nullptr), FP8RT_STATUS_NULL_POINTER, "fp8rt_refit_begin", {"refit"}));
  EXPECT_TRUE(
      failed_with(fp8rt_refit_finish(nullptr, 0, nullptr), FP8RT_STATUS_NULL_POINTER, "fp8rt_refit_finish", {"refit"}));
  fp8rt_health health{};
  EXPECT_TRUE(failed_with(fp8rt_health_read(context.get(), nullptr, &health, nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_health_read", {"device"}));
  EXPECT_TRUE(failed_with(fp8rt_health_read(context.get(), &health, nullptr, nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_health_read", {"host"}));
}

TEST_F(Refused, Destinations) {
  destinations[2].name = "merged";
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"destinations[0]", "destinations[2]", "merged"}));
  destinations[2].name = "";
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"destinations[2]", "name"}));
  destinations[2].name = nullptr;
  EXPECT_TRUE(create_fails(FP8RT_STATUS_NULL_POINTER, {"destinations[2]", "name"}));
  destinations[2].name = "ab\xFF";
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"destinations[2]", "UTF-8", "2"}));
  destinations[2] = slab.destination();
  destinations[0].num_parts = 1;
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"destinations[0] (merged)", "192", "320"}));
  destinations[0] = merged.destination();
  destinations[0].scales.shape[0] -= 1;
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"destinations[0] (merged)", "2", "3"}));
  destinations[0] = merged.destination();
  destinations[0].recipe = 9;
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"destinations[0]", "9"}));
  destinations[0] = merged.destination();
  destinations[0].scales = fp8rt_tensor{};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_DTYPE, {"destinations[0]", "scales"}));
  destinations[0] = merged.destination();
  destinations[1].scales = merged.scales.tensor();
  EXPECT_TRUE(create_fails(FP8RT_STATUS_DTYPE, {"destinations[1]", "bf16"}));
  destinations[1] = norm.destination();
  destinations[1].codes.dtype = FP8RT_DTYPE_INT32, destinations[1].codes.shape[1] = 150;
  EXPECT_TRUE(create_fails(FP8RT_STATUS_DTYPE, {"destinations[1] (norm)", "int32"}));
  destinations[1] = norm.destination();
  destinations[1].codes.device = 0;
  EXPECT_TRUE(create_fails(FP8RT_STATUS_DEVICE, {"destinations[1]", "0"}));
}

TEST_F(Refused, Regions) {
  const Extents whole{320, 300};
  regions = {region("x", 3, {}, whole, {})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"regions[0] (x)", "3"}));
  regions = {region("x", 0, {}, {321, 300}, {})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0] (x)", "321", "320", "merged"}));
  regions = {region("x", 0, {}, {320, 0}, {})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0] (x)", "extent[2]"}));
  regions = {region("x", 0, {0, -1, 0}, whole, {})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0]", "source_first", "-1"}));
  regions = {region("x", 0, {0, INT64_MAX, INT64_MAX}, whole, {})};
  regions[0].destination_first[1] = INT64_MAX;
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0] (x)", "rows"}));
  regions = {region("x", 0, {}, whole, {}), region("", 0, {}, whole, {})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"regions[1]", "source"}));
  // Through a block of the second part: row 256 is the 64th of it.
  regions = {region("x", 0, {}, {256, 300}, {}), region("y", 0, {}, {64, 300}, {0, 256, 0})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0] (x)", "row 256", "row 64 of part 1", "128"}));
  regions = {region("y", 0, {}, {256, 300}, {0, 64, 0})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0] (y)", "begins at row 64 of merged"}));
  regions = {region("y", 0, {}, {320, 200}, {0, 0, 100})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0] (y)", "begins at column 100", "128"}));
  regions = {region("x", 0, {}, {320, 256}, {}), region("y", 0, {}, {192, 172}, {0, 0, 128})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_OVERLAP, {"destinations[0] (merged)", " x ", " y ", "row 0, column 128"}));
  regions = {region("x", 0, {}, {192, 300}, {})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"destinations[0] (merged)", "57600", "96000"}));
  regions = {region("norm", 0, {}, whole, {})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_INVALID_ARGUMENT, {"destinations[1] (norm)", "no region"}));
}

TEST_F(Refused, PackedWordsAreNotShared) {
  Rule rule;
  rule.format = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  Parameter packed("packed", rule, {128, 1024});
  destinations = {packed.destination()};
  regions = {region("x", 0, {}, {128, 384}, {}), region("y", 0, {}, {128, 640}, {0, 0, 384})};
  EXPECT_TRUE(create_fails(FP8RT_STATUS_SHAPE, {"regions[0] (x)", "column 384", "512"}));
}

TEST_F(Refused, States) {
  fp8rt::Refit refit = make();
  const Matrix of_norm = values(FP8RT_DTYPE_BF16, {1, 300});
  EXPECT_TRUE(run_fails(refit, {item("norm", of_norm)}, FP8RT_STATUS_STATE, {"fp8rt_refit_begin"}));
  EXPECT_TRUE(failed_with(fp8rt_refit_finish(refit.get(), 0, nullptr), FP8RT_STATUS_STATE, "fp8rt_refit_finish",
                          {"fp8rt_refit_begin"}));
  EXPECT_EQ(refit.query().state, FP8RT_REFIT_STATE_IDLE);
  refit.begin();
  EXPECT_EQ(refit.query().state, FP8RT_REFIT_STATE_OPEN);
  refit.run({item("norm", of_norm)});
  refit.begin();
  EXPECT_EQ(refit.query().blocks_filled, 0u);
  refit.run({item("norm", of_norm)});
  EXPECT_TRUE(failed_with(fp8rt_refit_finish(refit.get(), 2, nullptr), FP8RT_STATUS_INVALID_ARGUMENT,
                          "fp8rt_refit_finish", {"0x2"}));
  fp8rt_refit_receipt receipt{};
  EXPECT_TRUE(failed_with(fp8rt_refit_finish(refit.get(), FP8RT_REFIT_PARTIAL, &receipt), FP8RT_STATUS_STRUCT_SIZE,
                          "fp8rt_refit_finish", {"receipt"}));
  EXPECT_EQ(refit.finish(FP8RT_REFIT_PARTIAL).destinations_filled, 1u);
  EXPECT_TRUE(run_fails(refit, {item("norm", of_norm)}, FP8RT_STATUS_STATE, {"fp8rt_refit_begin"}));
}

// R3, R4: what was forgotten is named, and how much it is.
TEST_F(Refused, WhatIsMissingIsNamed) {
  fp8rt::Refit refit = make();
  const Matrix of_part = values(FP8RT_DTYPE_BF16, {128, 300}), of_expert = values(FP8RT_DTYPE_BF16, {128, 128});
  refit.begin();
  refit.run({cut_item("merged", 0, 0, of_part), part_item("merged", 1, of_part), expert_item("slab", 0, of_expert),
             expert_item("slab", 2, of_expert)});
  EXPECT_TRUE(failed_with(fp8rt_refit_finish(refit.get(), 0, nullptr), FP8RT_STATUS_INCOMPLETE, "fp8rt_refit_finish",
                          {"3 of 4 regions", "merged", "3 of 6 blocks", "row 128, column 0"}));
  EXPECT_TRUE(failed_with(fp8rt_refit_finish(refit.get(), FP8RT_REFIT_PARTIAL, nullptr), FP8RT_STATUS_INCOMPLETE,
                          "fp8rt_refit_finish", {"2 of 4 regions"}));
  EXPECT_EQ(nlohmann::json::parse(refit.missing()), nlohmann::json::parse(R"([
      {"name": "merged", "source": "merged", "part": 0, "expert": 0, "row": 128, "column": 0, "filled": 3, "total": 6},
      {"name": "norm", "source": "norm", "part": 0, "expert": 0, "row": 0, "column": 0, "filled": 0, "total": 5},
      {"name": "slab", "source": "slab", "part": 0, "expert": 1, "row": 0, "column": 0, "filled": 2, "total": 4}])"));
  EXPECT_EQ(refit.query().state, FP8RT_REFIT_STATE_OPEN);
  refit.run({part_item("merged", 0, values(FP8RT_DTYPE_BF16, {0, 300})), expert_item("slab", 1, of_expert),
             expert_item("slab", 3, of_expert), item("norm", values(FP8RT_DTYPE_BF16, {1, 300}))});
  refit.run({cut_item("merged", 128, 0, values(FP8RT_DTYPE_BF16, {64, 300}))});
  EXPECT_EQ(refit.finish().destinations_filled, 3u);
  EXPECT_EQ(refit.missing(), "[]");
}

// One item is wrong, the others are not: nothing is written, and nothing counts.
TEST_F(Refused, AWrongItemChangesNothing) {
  fp8rt::Refit refit = make();
  const Matrix all = values(FP8RT_DTYPE_BF16, {320, 300}), of_norm = values(FP8RT_DTYPE_BF16, {1, 300});
  const Matrix of_slab = values(FP8RT_DTYPE_BF16, {128, 128, 4}), expert = values(FP8RT_DTYPE_BF16, {128, 128});
  const Matrix wide = values(FP8RT_DTYPE_BF16, {320, 301}), float_norm = values(FP8RT_DTYPE_F32, {1, 300});
  const Matrix rows = values(FP8RT_DTYPE_BF16, {100, 300}), half = values(FP8RT_DTYPE_BF16, {128, 128});
  fp8rt_refit_item no_name = item("norm", of_norm), negative = cut_item("merged", -1, 0, rows);
  no_name.name = nullptr;
  fp8rt_refit_item flags = item("norm", of_norm), strided = item("merged", all), scaled = item("merged", all);
  flags.flags = 8, strided.weight.stride[1] = 2, strided.weight.shape[1] = 150;
  scaled.scales = merged.scales.tensor();
  const Matrix one = values(FP8RT_DTYPE_BF16, {1, 1}), beyond = values(FP8RT_DTYPE_BF16, {128, 128, 2});
  struct Wrong {
    fp8rt_refit_item item;
    fp8rt_status status;
    std::vector<std::string> texts;
  };
  const Wrong wrongs[] = {
      {item("model.unknown", all), FP8RT_STATUS_INVALID_ARGUMENT, {"items[2] (model.unknown)", "no source"}},
      {no_name, FP8RT_STATUS_NULL_POINTER, {"items[2]", "name"}},
      {item("merged", wide), FP8RT_STATUS_SHAPE, {"items[2] (merged)", "301", "300"}},
      {cut_item("merged", 64, 0, rows), FP8RT_STATUS_SHAPE, {"items[2] (merged)", "row 64", "merged", "128"}},
      {cut_item("merged", 192, 0, rows),
       FP8RT_STATUS_SHAPE,
       {"items[2] (merged)", "ends at row 292", "row 100 of a region"}},
      {part_item("merged", 2, rows), FP8RT_STATUS_INVALID_ARGUMENT, {"items[2]", "part is 2", "2"}},
      {part_item("merged", 0, all), FP8RT_STATUS_SHAPE, {"items[2]", "320", "part 0", "192"}},
      {cut_item("merged", 192, 64, half), FP8RT_STATUS_SHAPE, {"items[2]", "column 64"}},
      {negative, FP8RT_STATUS_SHAPE, {"items[2]", "first_row", "-1"}},
      {flags, FP8RT_STATUS_INVALID_ARGUMENT, {"items[2]", "0x8"}},
      {strided, FP8RT_STATUS_STRIDE, {"items[2]", "stride[1]"}},
      {scaled, FP8RT_STATUS_DTYPE, {"items[2]", "bf16"}},
      {item("norm", float_norm), FP8RT_STATUS_DTYPE, {"items[2] (norm)", "fp32", "bf16"}},
      {item("slab", expert), FP8RT_STATUS_SHAPE, {"items[2] (slab)", "rank 2", "4 experts"}},
      {expert_item("slab", 4, expert), FP8RT_STATUS_SHAPE, {"items[2] (slab)", "experts 4 to 5", "4"}},
      {expert_item("slab", 3, beyond), FP8RT_STATUS_SHAPE, {"items[2] (slab)", "experts 3 to 5"}},
      {expert_item("slab", 3, expert),
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"items[2] (slab)", "expert 3, row 0", "filled already"}},
      {cut_item("norm", 0, 64, one), FP8RT_STATUS_SHAPE, {"items[2] (norm)", "column 65"}},
  };
  refit.begin();
  refit.run({part_item("merged", 1, box_of(all, {0, 0, 0}, {128, 300}))});
  const std::uint64_t before = refit.query().blocks_filled;
  const Matrix codes = merged.codes, scales = merged.scales;
  const Matrix q = box_of(all, {0, 0, 0}, {192, 300});
  for (const Wrong &wrong : wrongs) {
    EXPECT_TRUE(
        run_fails(refit, {item("slab", of_slab), part_item("merged", 0, q), wrong.item}, wrong.status, wrong.texts));
    EXPECT_EQ(refit.query().blocks_filled, before);
    EXPECT_EQ(refit.query().state, FP8RT_REFIT_STATE_OPEN);
  }
  EXPECT_TRUE(same_bytes(merged.codes, codes));
  EXPECT_TRUE(same_bytes(merged.scales, scales));
  EXPECT_TRUE(norm.is_right());
  EXPECT_TRUE(slab.is_right());
  refit.run({item("slab", of_slab), part_item("merged", 0, q), item("norm", of_norm)});
  refit.finish();
}

TEST_F(Refused, SourcesOfRegionsHaveNoParts) {
  regions = {region("x", 0, {}, {320, 300}, {})};
  fp8rt::Refit refit = make();
  refit.begin();
  const Matrix all = values(FP8RT_DTYPE_BF16, {320, 300});
  EXPECT_TRUE(run_fails(refit, {part_item("x", 0, all)}, FP8RT_STATUS_INVALID_ARGUMENT, {"items[0] (x)", "no parts"}));
  // Rows that no region wants are fine: they are another rank's.
  fp8rt_refit_item others = cut_item("x", 5000, 0, all);
  EXPECT_EQ(refit.run({others}), 0u);
  EXPECT_EQ(refit.query().blocks_filled, 0u);
}

TEST_F(Refused, BindAndInto) {
  const fp8rt::Refit refit = make();
  const Matrix all = values(FP8RT_DTYPE_BF16, {320, 300});
  fp8rt_weight_table *table = nullptr;
  const fp8rt_refit_item twice[] = {item("merged", all), item("merged", all)};
  EXPECT_TRUE(failed_with(fp8rt_refit_bind(refit.get(), twice, 2, &table), FP8RT_STATUS_INVALID_ARGUMENT,
                          "fp8rt_refit_bind", {"items[1] (merged)", "filled already"}));
  EXPECT_EQ(table, nullptr);
  fp8rt_tensor codes = merged.codes.tensor(), scales = merged.scales.tensor();
  codes.shape[0] -= 1;
  EXPECT_TRUE(failed_with(fp8rt_refit_quantize_into(refit.get(), twice, &codes, &scales, 1, nullptr, nullptr),
                          FP8RT_STATUS_SHAPE, "fp8rt_refit_quantize_into", {"items[0]", "319", "320"}));
  EXPECT_TRUE(merged.is_right());
  char text[8] = "xxxxxxx";
  std::uint64_t length = 0;
  EXPECT_OK(fp8rt_refit_source_name(refit.get(), 0, text, 4, &length));
  EXPECT_STREQ(text, "mer");
  EXPECT_EQ(length, 6u);
  EXPECT_TRUE(failed_with(fp8rt_refit_source_name(refit.get(), 3, text, 4, &length), FP8RT_STATUS_INVALID_ARGUMENT,
                          "fp8rt_refit_source_name", {"3"}));
}

// A name with everything that a string of JSON must escape.
TEST_F(Refused, MissingNamesAreEscaped) {
  const char *const name = "a\"b\\c\n\xC3\xA4";
  destinations = {destinations[1]};
  destinations[0].name = name;
  EXPECT_EQ(nlohmann::json::parse(make().missing()).at(0).at("name"), name);
}

}  // namespace
}  // namespace fp8rt_test
