// A parameter of a model that is refitted, with what it must hold afterwards: of each box what the oracle makes of the
// values that fill it, alone.

#ifndef FP8RT_TEST_PARAMETER_HPP
#define FP8RT_TEST_PARAMETER_HPP

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "fp8rt.hpp"
#include "matrix.hpp"
#include "oracle.hpp"

namespace fp8rt_test {

// Expert, row, column.
struct Corner {
  std::int64_t expert = 0, row = 0, column = 0;
};

// A compact copy of a box. experts = 0 in `extents`: rank 2.
inline Matrix box_of(const Matrix &from, Corner first, Extents extents) {
  Matrix box(from.dtype(), extents);
  box.each([&](auto expert, auto row, auto column) {
    const std::size_t source = from.offset_of(first.expert + expert, first.row + row, first.column + column);
    std::memcpy(box.data() + box.offset_of(expert, row, column), from.data() + source, element_bytes(from.dtype()));
  });
  return box;
}

// Writes a whole matrix into a box of another.
inline void paste(const Matrix &from, Matrix &to, Corner first) {
  from.each([&](auto expert, auto row, auto column) {
    const std::size_t target = to.offset_of(first.expert + expert, first.row + row, first.column + column);
    std::memcpy(to.data() + target, from.data() + from.offset_of(expert, row, column), element_bytes(from.dtype()));
  });
}

class Parameter {
 public:
  // Quantized, its rows and scales `gap` elements farther apart than they need be.
  Parameter(std::string its_name, Rule its_rule, Extents extents, std::int64_t gap = 0)
      : name(std::move(its_name)),
        rule(std::move(its_rule)),
        codes(FP8RT_DTYPE_E4M3, extents, {extents.columns + gap}),
        scales(make_scales(rule, extents)),
        want_codes(codes),
        want_scales(scales),
        kept(false) {}

  // Kept. rank 1: one row.
  Parameter(std::string its_name, std::uint32_t dtype, Extents extents, std::int64_t gap = 0)
      : name(std::move(its_name)),
        codes(dtype, extents, {extents.columns + gap}),
        scales(FP8RT_DTYPE_F32, {0, 0}),
        want_codes(codes),
        want_scales(scales),
        kept(true) {}

  fp8rt_refit_destination destination() const {
    fp8rt_refit_destination made = fp8rt::refit_destination(name.c_str(), codes.tensor());
    made.recipe = rule.recipe;
    made.scale_format = rule.format;
    made.part_rows = rule.parts.data();
    made.num_parts = static_cast<std::uint32_t>(rule.parts.size());
    made.flags = rule.has_floor ? FP8RT_REFIT_DESTINATION_FLOOR : 0;
    made.floor = rule.floor;
    if (!kept) made.scales = scales.tensor();
    return made;
  }

  // The box at `to` must hold what becomes of these values.
  void want(const Matrix &values, Corner to) {
    if (kept) return paste(values, want_codes, to);
    Rule alone = rule;
    alone.parts.clear();
    Matrix box_codes(FP8RT_DTYPE_E4M3, values.extents()), box_scales = make_scales(alone, values.extents());
    oracle_quantize(alone, values, box_codes, box_scales);
    paste(box_codes, want_codes, to);
    paste(box_scales, want_scales, {to.expert, scale_row(to.row), to.column / (rule.packed() ? 512 : 128)});
    if (to.row + values.rows() == codes.rows()) zero_padding(rule, want_scales);
  }

  // A whole tensor of values, part by part.
  void want_all(const Matrix &values) {
    std::int64_t first = 0;
    const std::vector<std::int64_t> whole = {values.rows()};
    for (const std::int64_t rows : rule.parts.empty() ? whole : rule.parts) {
      want(box_of(values, {0, first, 0}, {rows, values.columns(), values.extents().experts}), {0, first, 0});
      first += rows;
    }
  }

  ::testing::AssertionResult is_right() const {
    ::testing::AssertionResult right = same_bytes(codes, want_codes);
    if (right) right = same_bytes(scales, want_scales);
    return right << " in " << name;
  }

  std::string name;
  Rule rule;
  Matrix codes, scales, want_codes, want_scales;
  bool kept;

 private:
  std::int64_t scale_row(std::int64_t row) const {
    if (rule.packed()) return row;
    const auto edges = band_edges(rule, codes.rows());
    return std::find(edges.begin(), edges.end(), row) - edges.begin();
  }
};

inline fp8rt_refit_region region(const char *source, std::uint32_t destination, Corner source_first, Extents extents,
                                 Corner destination_first) {
  fp8rt_refit_region made{};
  made.source = source;
  made.destination = destination;
  const auto set = [](std::int64_t (&to)[3], std::int64_t a, std::int64_t b, std::int64_t c) {
    to[0] = a, to[1] = b, to[2] = c;
  };
  set(made.source_first, source_first.expert, source_first.row, source_first.column);
  set(made.extent, extents.experts == 0 ? 1 : extents.experts, extents.rows, extents.columns);
  set(made.destination_first, destination_first.expert, destination_first.row, destination_first.column);
  return made;
}

inline fp8rt_refit_item item(const char *name, const Matrix &values) {
  return fp8rt::refit_item(name, values.tensor());
}

inline fp8rt_refit_item part_item(const char *name, std::uint32_t part, const Matrix &values) {
  fp8rt_refit_item made = item(name, values);
  made.flags = FP8RT_REFIT_ITEM_PART, made.part = part;
  return made;
}

inline fp8rt_refit_item expert_item(const char *name, std::int64_t expert, const Matrix &values) {
  fp8rt_refit_item made = item(name, values);
  made.flags = FP8RT_REFIT_ITEM_EXPERT, made.expert = expert;
  return made;
}

inline fp8rt_refit_item cut_item(const char *name, std::int64_t row, std::int64_t column, const Matrix &values) {
  fp8rt_refit_item made = item(name, values);
  made.first_row = row, made.first_column = column;
  return made;
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_PARAMETER_HPP
