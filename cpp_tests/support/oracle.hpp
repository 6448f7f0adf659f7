// What the quantizing functions must write, by the table of recipes, in plain loops. Compile without contraction of a
// product and a sum into one rounding, and call in the default floating-point mode.

#ifndef FP8RT_TEST_ORACLE_HPP
#define FP8RT_TEST_ORACLE_HPP

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "floats.hpp"
#include "fp8rt.h"
#include "matrix.hpp"

namespace fp8rt_test {

// How to quantize, as a test says it.
struct Rule {
  std::uint32_t recipe = FP8RT_RECIPE_NEMO_RL;
  std::uint32_t format = FP8RT_SCALE_FORMAT_FP32;
  bool activation = false;
  bool has_floor = false;
  float floor = 0;
  std::vector<std::int64_t> parts = {};

  // The descriptor points into this rule.
  fp8rt_quantize_desc desc() const {
    fp8rt_quantize_desc desc{};
    desc.struct_size = sizeof desc;
    desc.recipe = recipe;
    desc.scale_format = format;
    desc.flags = has_floor ? FP8RT_QUANTIZE_FLOOR : 0;
    desc.floor = floor;
    desc.num_parts = static_cast<std::uint32_t>(parts.size());
    desc.part_rows = parts.empty() ? nullptr : parts.data();
    return desc;
  }

  bool packed() const { return format == FP8RT_SCALE_FORMAT_UE8M0_PACKED; }
};

// A scale, and what turns a value into the number that is rounded to a code.
struct Scale {
  float scale;
  float inverse;
  bool divides;

  float apply(float x) const { return divides ? x / scale : x * inverse; }
};

inline float recipe_floor(const Rule &rule) {
  if (rule.has_floor) {
    return rule.floor;
  }
  return rule.recipe == FP8RT_RECIPE_VLLM ? 1e-10f : rule.recipe == FP8RT_RECIPE_DEEPGEMM ? 1e-4f : 0.0f;
}

// Smallest power of two s with amax <= 448 * s, within 2^-126 and 2^127: 448 is 0.875 * 2^9.
inline float least_power_of_two(float amax) {
  if (amax == 0) {
    return 0x1p-126f;
  }
  int exponent = 0;
  const double fraction = std::frexp(static_cast<double>(amax), &exponent);
  const int power = exponent - (fraction <= 0.875 ? 9 : 8);
  return static_cast<float>(std::ldexp(1.0, std::min(std::max(power, -126), 127)));
}

inline Scale power_of_two_scale(const Rule &rule, float amax) {
  const bool by_inverse = rule.recipe == FP8RT_RECIPE_NEMO_RL || rule.recipe == FP8RT_RECIPE_TE;
  float scale = by_inverse && amax == 0 ? 1.0f : least_power_of_two(amax);
  if (rule.recipe == FP8RT_RECIPE_VLLM) {
    scale = std::max(scale, 0x1p-33f);
  }
  return {scale, 0, true};
}

inline Scale scale_of_amax(const Rule &rule, float raw_amax) {
  const float amax = std::max(raw_amax, recipe_floor(rule));
  const float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::min();
  if (rule.format != FP8RT_SCALE_FORMAT_FP32) {
    return power_of_two_scale(rule, amax);
  }
  if (rule.recipe == FP8RT_RECIPE_VLLM) {
    const float scale = std::max(amax / 448.0f, least);
    return {scale, 1.0f / scale, false};
  }
  if (rule.recipe == FP8RT_RECIPE_DEEPGEMM) {
    const float scale = std::max(amax * static_cast<float>(1.0 / 448.0), least);
    return {scale, 1.0f / scale, false};
  }
  if (amax == 0) {
    return {1, 1, false};
  }
  const float one_by_amax = 1.0f / amax;
  const float ratio = rule.recipe == FP8RT_RECIPE_NEMO_RL ? one_by_amax * 448.0f : 448.0f / amax;
  const float inverse = std::min(ratio, most);
  return {1.0f / inverse, inverse, false};
}

// First row of each band of rows that shares its scales, and the end of the last.
inline std::vector<std::int64_t> band_edges(const Rule &rule, std::int64_t rows) {
  std::vector<std::int64_t> edges;
  const std::int64_t height = rule.activation ? 1 : 128;
  const std::vector<std::int64_t> whole = {rows};
  std::int64_t begin = 0;
  for (const std::int64_t part : rule.parts.empty() ? whole : rule.parts) {
    for (std::int64_t row = begin; row < begin + part; row += height) {
      edges.push_back(row);
    }
    begin += part;
  }
  edges.push_back(rows);
  return edges;
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The shape of the scales of a matrix.
inline Extents scales_extents(const Rule &rule, Extents matrix) {
  if (rule.packed()) {
    return {matrix.rows, ceil_div(matrix.columns, 512), matrix.experts};
  }
  const auto bands = static_cast<std::int64_t>(band_edges(rule, matrix.rows).size()) - 1;
  return {bands, ceil_div(matrix.columns, 128), matrix.experts};
}

// A compact, poisoned scale tensor: row-major, or column-major where the format has no other.
inline Matrix make_scales(const Rule &rule, Extents matrix, bool column_major = false) {
  const Extents extents = scales_extents(rule, matrix);
  if (!rule.packed() && !column_major) {
    return Matrix(FP8RT_DTYPE_F32, extents);
  }
  const std::uint32_t dtype = rule.packed() ? FP8RT_DTYPE_INT32 : FP8RT_DTYPE_F32;
  const std::int64_t stride = ceil_div(extents.rows, 4) * 4;
  Matrix scales(dtype, extents, {1, stride, stride * extents.columns},
                static_cast<std::size_t>(stride - extents.rows) * (extents.columns == 0 ? 0 : 4));
  return scales;
}

// Rows of a block, within one expert.
struct Block {
  std::int64_t expert, band, begin, end, group;
};

template <typename Action>
void each_block(const Rule &rule, const Matrix &matrix, Action action) {
  const auto edges = band_edges(rule, matrix.rows());
  for (std::int64_t expert = 0; expert < matrix.experts(); ++expert) {
    for (std::size_t band = 0; band + 1 < edges.size(); ++band) {
      for (std::int64_t group = 0; group < ceil_div(matrix.columns(), 128); ++group) {
        action(Block{expert, static_cast<std::int64_t>(band), edges[band], edges[band + 1], group});
      }
    }
  }
}

// Calls `action(row, column)` for each element of a block that exists.
template <typename Action>
void each_element(const Matrix &matrix, const Block &block, Action action) {
  const std::int64_t end = std::min(matrix.columns(), (block.group + 1) * 128);
  for (std::int64_t row = block.begin; row < block.end; ++row) {
    for (std::int64_t column = block.group * 128; column < end; ++column) {
      action(row, column);
    }
  }
}

inline float block_amax(const Matrix &source, const Block &block) {
  float amax = 0;
  each_element(source, block, [&](std::int64_t row, std::int64_t column) {
    const float magnitude = std::fabs(source.get(block.expert, row, column));
    amax = std::isfinite(magnitude) ? std::max(amax, magnitude) : amax;
  });
  return amax;
}

inline void store_scale(const Rule &rule, Matrix &scales, const Block &block, float scale) {
  if (!rule.packed()) {
    scales.store(block.expert, block.band, block.group, scale);
    return;
  }
  const std::uint32_t exponent = static_cast<std::uint32_t>(std::ilogb(scale) + 127);
  const std::uint32_t shift = 8 * static_cast<std::uint32_t>(block.group % 4);
  for (std::int64_t row = block.begin; row < block.end; ++row) {
    const auto before = block.group % 4 == 0 ? 0 : scales.load<std::uint32_t>(block.expert, row, block.group / 4);
    scales.store<std::uint32_t>(block.expert, row, block.group / 4, before | exponent << shift);
  }
}

inline float load_scale(const Rule &rule, const Matrix &scales, const Block &block, std::int64_t row) {
  if (!rule.packed()) {
    return scales.load<float>(block.expert, block.band, block.group);
  }
  const auto word = scales.load<std::uint32_t>(block.expert, row, block.group / 4);
  return std::ldexp(1.0f, static_cast<int>(word >> 8 * (block.group % 4) & 0xFF) - 127);
}

// Rows below the last of a column-major tensor, down to a multiple of 4, as far as the memory of the tensor reaches.
inline void zero_padding(const Rule &rule, Matrix &scales) {
  if (!rule.packed() && (!rule.activation || scales.strides().column == 1)) {
    return;
  }
  for (std::int64_t expert = 0; expert < scales.experts(); ++expert) {
    for (std::int64_t column = 0; column < scales.columns(); ++column) {
      for (std::int64_t row = scales.rows(); row < ceil_div(scales.rows(), 4) * 4; ++row) {
        if (scales.offset_of(expert, row, column) + 4 <= scales.bytes()) {
          scales.store<std::uint32_t>(expert, row, column, 0);
        }
      }
    }
  }
}

inline void count_element(float x, std::uint8_t code, float scaled, bool given, fp8rt_health &health) {
  if (!std::isfinite(x)) {
    health.non_finite += 1;
    return;
  }
  const int magnitude = code & 0x7F;
  health.saturated += given && std::fabs(scaled) > 464.0f;
  health.became_zero += x != 0 && magnitude == 0;
  health.became_subnormal += magnitude >= 1 && magnitude <= 7;
}

// Writes what fp8rt_compute_..._scales must write.
inline void oracle_scales(const Rule &rule, const Matrix &source, Matrix &scales) {
  zero_padding(rule, scales);
  each_block(rule, source, [&](const Block &block) {
    store_scale(rule, scales, block, scale_of_amax(rule, block_amax(source, block)).scale);
  });
}

// Writes what fp8rt_quantize_... must write, and counts.
inline fp8rt_health oracle_quantize(const Rule &rule, const Matrix &source, Matrix &codes, Matrix &scales) {
  fp8rt_health health{};
  oracle_scales(rule, source, scales);
  each_block(rule, source, [&](const Block &block) {
    const Scale scale = scale_of_amax(rule, block_amax(source, block));
    each_element(source, block, [&](std::int64_t row, std::int64_t column) {
      const float x = source.get(block.expert, row, column), scaled = scale.apply(x);
      const std::uint8_t code = e4m3_of(scaled);
      codes.store(block.expert, row, column, code);
      count_element(x, code, scaled, false, health);
    });
  });
  return health;
}

// Writes what fp8rt_quantize_..._with_scales must write, and counts.
inline fp8rt_health oracle_with_scales(const Rule &rule, const Matrix &source, const Matrix &scales, Matrix &codes) {
  fp8rt_health health{};
  each_block(rule, source, [&](const Block &block) {
    each_element(source, block, [&](std::int64_t row, std::int64_t column) {
      const float x = source.get(block.expert, row, column), scaled = x / load_scale(rule, scales, block, row);
      const std::uint8_t code = e4m3_of(scaled);
      codes.store(block.expert, row, column, code);
      count_element(x, code, scaled, true, health);
    });
  });
  return health;
}

// Writes what fp8rt_dequantize_... must write.
inline void oracle_dequantize(const Rule &rule, const Matrix &codes, const Matrix &scales, Matrix &values) {
  each_block(rule, codes, [&](const Block &block) {
    each_element(codes, block, [&](std::int64_t row, std::int64_t column) {
      const float value = codes.get(block.expert, row, column) * load_scale(rule, scales, block, row);
      values.set(block.expert, row, column, value);
    });
  });
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_ORACLE_HPP
