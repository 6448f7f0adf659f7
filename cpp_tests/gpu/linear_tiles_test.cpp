// Every tile of DeepGEMM's kernel that the build has, whether a plan would choose it or not.

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "deepgemm_tiles.hpp"
#include "linear.hpp"

namespace fp8rt_test {
namespace {

// A problem with what it should give.
struct Known {
  explicit Known(const LinearShape &shape)
      : problem(make_problem(shape)), want(reference_of(problem)), device(problem) {}

  LinearProblem problem;
  Reference want;
  DeviceLinear device;
};

// The elements of the first rows.
bool same_rows(const Matrix &a, const Matrix &b, std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (row_bits(a, row) != row_bits(b, row)) {
      return false;
    }
  }
  return true;
}

TEST(Tiles, AreAllRight) {
  if (!is_hopper_sxm()) {
    const LinearProblem problem = make_problem({16, 256, 256});
    EXPECT_FALSE(plan_by(kDeepGemm, problem)) << "this device is none that the tiles are compiled for";
    return;
  }
  LinearShape strided{130, 1000, 1104};
  strided.extra_stride = 16;
  // Edges in every direction; several waves of the smallest tiles; K of one group and less.
  std::vector<std::unique_ptr<Known>> all;
  for (const LinearShape &shape : {LinearShape{37, 200, 304}, strided, {1100, 4096, 512}, {300, 640, 80}}) {
    all.push_back(std::make_unique<Known>(shape));
  }
  const std::vector<std::string> names = tile_names(gpu(), all[0]->problem.desc());
  EXPECT_GE(names.size(), 16u);
  std::vector<Matrix> first;
  int other_bits = 0;
  for (const std::string &name : names) {
    const Environment environment(kTileVariable, name.c_str());
    for (std::size_t index = 0; index < all.size(); ++index) {
      Known &known = *all[index];
      const std::int64_t m = known.problem.shape.m;
      const auto plan = plan_by(kDeepGemm, known.problem);
      ASSERT_TRUE(plan) << name;
      EXPECT_NE(plan->describe().find(name), std::string::npos) << plan->describe();
      for (const std::int64_t rows : {m, std::int64_t{1}}) {
        EXPECT_TRUE(is_right(*plan, known.device, known.want, rows))
            << plan->describe() << ", " << rows << " rows, " << describe(known.problem.shape);
      }
      Matrix y = known.device.blank;
      ASSERT_TRUE(run_once(Form::kValues, *plan, known.device, m, y));
      if (first.size() == index) {
        first.push_back(y);
      }
      other_bits += !same_rows(y, first[index], m);
    }
  }
  std::printf("%zu tiles\n", names.size());
  // The batch-invariant mode rests on it: M decides the tile.
  EXPECT_EQ(other_bits, 0) << "of " << names.size() * all.size() << " outputs, beside those of " << names[0];
}

}  // namespace
}  // namespace fp8rt_test
