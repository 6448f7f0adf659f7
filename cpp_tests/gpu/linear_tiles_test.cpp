// Every tile of DeepGEMM's kernel that the build has, whether a plan would choose it or not.

#include <gtest/gtest.h>

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "deepgemm_tiles.hpp"
#include "linear.hpp"

namespace fp8rt_test {
namespace {

// The elements of the first rows.
bool same_rows(const Matrix &a, const Matrix &b, std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (row_bits(a, row) != row_bits(b, row)) {
      return false;
    }
  }
  return true;
}

// Each tile that takes this shape gives a right y; the tiles whose bits are not those of the first. The batch-invariant
// mode rests on there being none: M decides the tile.
std::vector<std::string> with_other_bits(const LinearShape &shape) {
  const LinearProblem problem = make_problem(shape);
  const Reference want = reference_of(problem);
  DeviceLinear device(problem);
  const std::vector<std::string> names = tile_names(gpu(), problem.desc());
  EXPECT_GE(names.size(), 16u);
  std::vector<std::string> others;
  std::optional<Matrix> first;
  for (const std::string &name : names) {
    const Environment environment(kTileVariable, name.c_str());
    const auto plan = plan_by(kDeepGemm, problem);
    if (!plan) {
      ADD_FAILURE() << name;
      continue;
    }
    EXPECT_NE(plan->describe().find(name), std::string::npos) << plan->describe();
    for (const std::int64_t rows : {shape.m, std::int64_t{1}}) {
      EXPECT_TRUE(is_right(*plan, device, want, rows)) << plan->describe() << ", " << rows << " rows, " << describe(shape);
    }
    Matrix y = device.blank;
    EXPECT_TRUE(run_once(Form::kValues, *plan, device, shape.m, y)) << name;
    if (!first) {
      first = y;
    }
    if (!same_rows(y, *first, shape.m)) {
      others.push_back(name);
    }
  }
  std::printf("%s: %zu tiles\n", describe(shape).c_str(), names.size());
  return others;
}

TEST(Tiles, AreAllRight) {
  if (!is_hopper_sxm()) {
    const LinearProblem problem = make_problem({16, 256, 256});
    EXPECT_FALSE(plan_by(kDeepGemm, problem)) << "this device is none that the tiles are compiled for";
    return;
  }
  LinearShape strided{130, 1000, 1104};
  strided.extra_stride = 16;
  // Edges in every direction; several waves of the smallest tiles; K of one group and less; the weight of a tile.
  const LinearShape shapes[] = {{37, 200, 304}, strided, {1100, 4096, 512}, {300, 640, 80}, {300, 32768, 512}};
  for (const LinearShape &shape : shapes) {
    EXPECT_EQ(with_other_bits(shape), std::vector<std::string>()) << describe(shape);
  }
}

}  // namespace
}  // namespace fp8rt_test
