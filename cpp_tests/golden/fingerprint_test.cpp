// Fingerprints against those of fingerprint.py.

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <string>
#include <vector>

#include "calls.hpp"
#include "fingerprints.hpp"

namespace fp8rt_test {
namespace {

struct Vector {
  Identity identity;
  std::string scales;
  std::int64_t experts = 0, row_bytes = 0, rows = 0;
  std::uint64_t seed = 0;
  fp8rt_fingerprint value{};
};

Vector parse(const std::string &line) {
  std::istringstream in(line);
  Vector vector;
  Identity &id = vector.identity;
  std::string parts, value;
  in >> std::quoted(id.name) >> id.part >> id.block_row >> id.block_column >> id.expert >> vector.scales >>
      vector.experts >> parts >> vector.row_bytes >> vector.seed >> value;
  EXPECT_TRUE(in && value.size() == 32) << line;
  std::istringstream rows(parts);
  for (std::string count; std::getline(rows, count, ',');) id.parts.push_back(std::stoll(count));
  for (const std::int64_t count : id.parts) vector.rows += count;
  vector.value = {std::stoull(value.substr(16), nullptr, 16), std::stoull(value.substr(0, 16), nullptr, 16)};
  return vector;
}

std::vector<Vector> vectors() {
  std::ifstream file(FP8RT_FINGERPRINT_VECTORS);
  std::vector<Vector> all;
  for (std::string line; std::getline(file, line);) {
    if (line.front() != '#') all.push_back(parse(line));
  }
  return all;
}

constexpr std::uint64_t kGolden = 0x9E3779B97F4A7C15;

std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

void fill_bytes(Matrix &matrix, std::uint64_t seed) {
  const auto row_bytes = static_cast<std::size_t>(matrix.columns()) * element_bytes(matrix.dtype());
  std::uint64_t index = 0;
  for (std::int64_t expert = 0; expert < matrix.experts(); ++expert) {
    for (std::int64_t row = 0; row < matrix.rows(); ++row) {
      std::uint8_t *bytes = matrix.data() + matrix.offset_of(expert, row, 0);
      for (std::size_t at = 0; at < row_bytes; ++at) {
        bytes[at] = static_cast<std::uint8_t>(mix(seed + ++index * kGolden) >> 56);
      }
    }
  }
}

Matrix scales_of(const Rule &rule, const Matrix &codes, std::uint64_t seed) {
  Matrix scales = make_scales(rule, codes.extents());
  std::uint64_t index = 0;
  each_block(rule, codes, [&](const Block &block) {
    const std::uint64_t z = mix((seed ^ 0x5851F42D4C957F2D) + ++index * kGolden);
    const bool any = rule.format == FP8RT_SCALE_FORMAT_FP32;
    const std::uint64_t bits = any ? 0x3F800000u | z >> 41 : (100 + z % 50) << 23;
    store_scale(rule, scales, block, float_of(static_cast<std::uint32_t>(bits)));
  });
  return scales;
}

std::uint32_t format_of(const std::string &name) {
  if (name == "fp32") return FP8RT_SCALE_FORMAT_FP32;
  return name == "pow2" ? FP8RT_SCALE_FORMAT_POW2 : FP8RT_SCALE_FORMAT_UE8M0_PACKED;
}

TEST(FingerprintVectors, AreWhatPythonSays) {
  const fp8rt::Context context = context_with_threads(2);
  const std::vector<Vector> all = vectors();
  ASSERT_GT(all.size(), 10u);
  for (Vector vector : all) {
    SCOPED_TRACE(vector.identity.name + ", seed " + std::to_string(vector.seed));
    const std::int64_t experts = vector.experts == 1 ? 0 : vector.experts;
    if (vector.scales == "none") {
      Matrix kept(FP8RT_DTYPE_BF16, {vector.rows, vector.row_bytes / 2, experts});
      fill_bytes(kept, vector.seed);
      EXPECT_EQ(fingerprint_of(context, vector.identity, kept.tensor(), nullptr), vector.value);
      continue;
    }
    Rule rule;
    rule.parts = vector.identity.parts;
    rule.format = vector.identity.format = format_of(vector.scales);
    const Extents extents{vector.rows, vector.row_bytes, experts};
    // Tight rows, and rows that begin anywhere.
    for (const std::int64_t gap : {0, 5}) {
      Matrix codes(FP8RT_DTYPE_E4M3, extents, {extents.columns + gap}, 0, static_cast<std::size_t>(gap));
      fill_bytes(codes, vector.seed);
      const Matrix scales = scales_of(rule, codes, vector.seed);
      const fp8rt_tensor scales_view = scales.tensor();
      EXPECT_EQ(fingerprint_of(context, vector.identity, codes.tensor(), &scales_view), vector.value) << gap;
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
