// Shards of tensor-parallel ranks: what each holds, and that its own quantization is that of its parts alone.

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "calls.hpp"
#include "matrix.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr const char *kLayout = "fp8rt_shard_layout";

// A weight, and how it is cut.
struct Case {
  const char *name;
  std::vector<std::int64_t> parts, heads;
  std::int64_t columns;
  std::uint32_t split, ranks;
  bool on_blocks;
};

void PrintTo(const Case &one, std::ostream *out) { *out << one.name; }

struct Shard {
  fp8rt_shard_info info{};
  std::vector<fp8rt_shard_part> parts;
  std::vector<std::int64_t> part_rows;
};

fp8rt_shard_desc desc_of(const Case &one, std::uint32_t rank) {
  fp8rt_shard_desc desc = fp8rt::shard_desc();
  desc.split = one.split, desc.ranks = one.ranks, desc.rank = rank;
  desc.num_parts = static_cast<std::uint32_t>(one.parts.size());
  desc.part_rows = one.parts.data();
  desc.part_heads = one.heads.empty() ? nullptr : one.heads.data();
  desc.k = one.columns;
  return desc;
}

Shard layout(const Case &one, std::uint32_t rank) {
  Shard shard;
  shard.parts.resize(one.parts.size()), shard.part_rows.resize(one.parts.size());
  shard.info.struct_size = sizeof shard.info;
  const fp8rt_shard_desc desc = desc_of(one, rank);
  fp8rt::check(fp8rt_shard_layout(&desc, &shard.info, shard.parts.data(), shard.part_rows.data()));
  return shard;
}

// Codes and scales of a weight with these parts.
struct Quantized {
  Matrix codes, scales;
};

Quantized quantized(const fp8rt::Context &context, const Matrix &weight, std::vector<std::int64_t> parts) {
  Rule rule;
  rule.parts = std::move(parts);
  Quantized made{Matrix(FP8RT_DTYPE_E4M3, weight.extents()), make_scales(rule, weight.extents())};
  EXPECT_OK(quantize(context, rule, weight, made.codes, made.scales));
  return made;
}

// A box of a matrix as a matrix of its own.
Matrix box(const Matrix &from, std::int64_t first_row, std::int64_t rows, std::int64_t first_column,
           std::int64_t columns) {
  Matrix copy(from.dtype(), {rows, columns});
  copy.each([&](std::int64_t, std::int64_t row, std::int64_t column) {
    copy.set(row, column, from.get(first_row + row, first_column + column));
  });
  return copy;
}

bool same_box(const Matrix &big, std::int64_t first_row, std::int64_t first_column, const Matrix &small) {
  return same_bytes(box(big, first_row, small.rows(), first_column, small.columns()),
                    box(small, 0, small.rows(), 0, small.columns()));
}

class Cut : public ::testing::TestWithParam<Case> {
 protected:
  Cut() : weight_(FP8RT_DTYPE_BF16, {total(), GetParam().columns}) { Random(7).fill_hostile(weight_, true); }

  static std::int64_t total() {
    std::int64_t rows = 0;
    for (const std::int64_t part : GetParam().parts) rows += part;
    return rows;
  }

  // What the rank receives: its rows of each part, its columns.
  Matrix local(const Shard &shard) const {
    const fp8rt_shard_info &info = shard.info;
    Matrix weight(FP8RT_DTYPE_BF16, {info.rows, info.columns});
    std::int64_t part_begin = 0;
    for (std::size_t index = 0; index < shard.parts.size(); ++index) {
      const fp8rt_shard_part &part = shard.parts[index];
      for (std::int64_t row = 0; row < part.rows; ++row) {
        for (std::int64_t column = 0; column < info.columns; ++column) {
          weight.set(part.local_first_row + row, column,
                     weight_.get(part_begin + part.first_row + row, info.first_column + column));
        }
      }
      part_begin += GetParam().parts[index];
    }
    return weight;
  }

  const fp8rt::Context context_;
  Matrix weight_;
};

TEST_P(Cut, TheMergedCallGivesTheBitsOfEachPartOfEachShardAlone) {
  for (std::uint32_t rank = 0; rank < GetParam().ranks; ++rank) {
    const Shard shard = layout(GetParam(), rank);
    const Matrix weight = local(shard);
    const Quantized merged = quantized(context_, weight, shard.part_rows);
    EXPECT_EQ(merged.scales.rows(), shard.info.scale_rows);
    EXPECT_EQ(merged.scales.columns(), shard.info.scale_columns);
    for (const fp8rt_shard_part &part : shard.parts) {
      const Matrix alone = box(weight, part.local_first_row, part.rows, 0, shard.info.columns);
      const Quantized own = quantized(context_, alone, {});
      EXPECT_TRUE(same_box(merged.codes, part.local_first_row, 0, own.codes)) << rank;
      EXPECT_TRUE(same_box(merged.scales, part.first_scale_row, 0, own.scales)) << rank;
    }
  }
}

// Where the cuts lie on blocks, and only there, a shard is a slice of the whole weight's codes and scales.
TEST_P(Cut, OnBlocksAShardIsASliceOfTheWhole) {
  bool all_on_blocks = true;
  for (std::uint32_t rank = 0; rank < GetParam().ranks; ++rank) {
    const Shard shard = layout(GetParam(), rank);
    all_on_blocks = all_on_blocks && shard.info.on_blocks == 1;
    const Quantized merged = quantized(context_, local(shard), shard.part_rows);
    const Quantized whole = quantized(context_, weight_, GetParam().parts);
    std::int64_t part_begin = 0, scales_begin = 0;
    for (std::size_t index = 0; index < shard.parts.size(); ++index) {
      const fp8rt_shard_part &part = shard.parts[index];
      const Matrix codes = box(merged.codes, part.local_first_row, part.rows, 0, shard.info.columns);
      const Matrix scales =
          box(merged.scales, part.first_scale_row, (part.rows + 127) / 128, 0, shard.info.scale_columns);
      if (part.on_blocks == 1) {
        EXPECT_TRUE(same_box(whole.codes, part_begin + part.first_row, shard.info.first_column, codes));
        EXPECT_TRUE(same_box(whole.scales, scales_begin + part.first_row / 128, shard.info.first_column / 128, scales));
      }
      part_begin += GetParam().parts[index];
      scales_begin += (GetParam().parts[index] + 127) / 128;
    }
  }
  EXPECT_EQ(all_on_blocks, GetParam().on_blocks);
}

INSTANTIATE_TEST_SUITE_P(
    All, Cut,
    ::testing::Values(Case{"whole", {192, 64, 64}, {}, 256, FP8RT_SPLIT_NONE, 2, true},
                      Case{"qkv on blocks", {1024, 256, 256}, {8, 2, 2}, 256, FP8RT_SPLIT_ROWS, 2, true},
                      Case{"qkv off blocks", {896, 128, 128}, {14, 2, 2}, 384, FP8RT_SPLIT_ROWS, 2, false},
                      Case{"fewer key heads than ranks", {512, 128, 128}, {8, 2, 2}, 128, FP8RT_SPLIT_ROWS, 4, false},
                      Case{"shared key heads on blocks", {512, 256, 256}, {4, 2, 2}, 128, FP8RT_SPLIT_ROWS, 4, true},
                      Case{"gate and up off blocks", {370, 370}, {}, 200, FP8RT_SPLIT_ROWS, 2, false},
                      Case{"down on blocks", {300}, {}, 512, FP8RT_SPLIT_COLUMNS, 2, true},
                      Case{"down off blocks", {130}, {}, 192, FP8RT_SPLIT_COLUMNS, 2, false}),
    [](const auto &info) {
      std::string name = info.param.name;
      for (char &letter : name) letter = letter == ' ' ? '_' : letter;
      return name;
    });

TEST(Shard, ReplicatedHeadsAreNextToEachOther) {
  const Case llama{"llama", {4096, 1024, 1024}, {32, 8, 8}, 4096, FP8RT_SPLIT_ROWS, 16, true};
  for (std::uint32_t rank = 0; rank < 16; ++rank) {
    const Shard shard = layout(llama, rank);
    EXPECT_EQ(shard.parts[0].first_row, rank * 256);
    EXPECT_EQ(shard.parts[1].first_row, rank / 2 * 128);
    EXPECT_EQ(shard.parts[1].replicas, 2u);
    EXPECT_EQ(shard.part_rows, (std::vector<std::int64_t>{256, 128, 128}));
  }
}

TEST(Shard, ArgumentsAreChecked) {
  const Case good{"good", {300}, {}, 256, FP8RT_SPLIT_ROWS, 3, false};
  fp8rt_shard_info info{};
  info.struct_size = sizeof info;
  const auto refused = [&](const fp8rt_shard_desc &desc, fp8rt_status status, const std::vector<std::string> &texts) {
    const ::testing::AssertionResult result =
        failed_with(fp8rt_shard_layout(&desc, &info, nullptr, nullptr), status, kLayout, texts);
    return result && info.rows == 0 ? result : ::testing::AssertionFailure() << result.message() << info.rows;
  };
  fp8rt_shard_desc desc = desc_of(good, 3);
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"rank is 3", "3 ranks"}));
  desc.rank = 0, desc.ranks = 0;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"ranks is 0"}));
  desc.ranks = 7;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_SHAPE, {"300", "7"}));
  desc.split = 3;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"split is 3", "2"}));
  desc.split = FP8RT_SPLIT_COLUMNS;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_SHAPE, {"256", "7"}));
  desc.k = -1;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_SHAPE, {"k is -1"}));
  desc = desc_of(good, 0);
  desc.part_rows = nullptr;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_NULL_POINTER, {"part_rows"}));
  desc = desc_of(good, 0);
  desc.num_parts = 0;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"num_parts is 0"}));
  desc = desc_of(good, 0);
  EXPECT_TRUE(failed_with(fp8rt_shard_layout(&desc, nullptr, nullptr, nullptr), FP8RT_STATUS_NULL_POINTER, kLayout,
                          {"info"}));
  EXPECT_TRUE(failed_with(fp8rt_shard_layout(nullptr, &info, nullptr, nullptr), FP8RT_STATUS_NULL_POINTER, kLayout,
                          {"desc"}));
  EXPECT_OK(fp8rt_shard_layout(&desc, &info, nullptr, nullptr));
  EXPECT_EQ(info.rows, 100);
}

}  // namespace
}  // namespace fp8rt_test
