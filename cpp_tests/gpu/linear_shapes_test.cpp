// The linear at the shapes of models, of public reports, and at random ones. Large ones are held to the host's linear.

#include <gtest/gtest.h>

#include <unistd.h>

#include <climits>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

// N and K of the table that tests and benches share, each once. It lies beside the program.
std::set<std::pair<std::int64_t, std::int64_t>> shared_table() {
  char program[PATH_MAX] = {};
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  const std::string path(program, static_cast<std::size_t>(std::max<ssize_t>(length, 0)));
  std::ifstream file(path.substr(0, path.rfind('/') + 1) + "linear_shapes.txt");
  EXPECT_TRUE(file) << "no linear_shapes.txt beside " << path;
  std::set<std::pair<std::int64_t, std::int64_t>> shapes;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line.substr(0, line.find('#')));
    std::string model;
    std::int64_t n = 0, k = 0;
    if (fields >> model >> n >> k) {
      shapes.insert({n, k});
    }
  }
  return shapes;
}

TEST(Shapes, OfTheSharedTable) {
  const auto shapes = shared_table();
  ASSERT_GE(shapes.size(), 10u);
  for (const auto &[n, k] : shapes) {
    const LinearProblem problem = make_problem({130, n, k});
    EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 17, 64, 130}));
  }
}

// S2: shards of tensor parallelism.
TEST(Shapes, S2OddShards) {
  const std::int64_t shapes[][2] = {{192, 4096}, {576, 7168}, {2112, 7168}, {48, 4096}, {16, 1024}};
  for (const auto &[n, k] : shapes) {
    const LinearProblem problem = make_problem({130, n, k});
    EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 17, 64, 130}));
  }
}

// S3: the last group is short.
TEST(Shapes, S3ShortGroups) {
  for (const std::int64_t k : {64, 192, 4304}) {
    const LinearProblem problem = make_problem({129, 1152, k});
    EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 33, 129}));
  }
}

TEST(Shapes, S5) {
  const LinearProblem problem = make_problem({129, 7168, 1152});
  EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 2, 3, 5, 7, 33, 127, 129}));
}

TEST(Shapes, S7TheLastTile) { EXPECT_TRUE(right_by_all({1088, 2048, 2048})); }

// As many rows as prefill has: tiles of all sizes, and several waves of them.
TEST(Shapes, ManyRows) {
  const LinearProblem problem = make_problem({2100, 1536, 2048});
  EXPECT_TRUE(right_by_all(problem, reference_of(problem), {256, 300, 511, 512, 1000, 1024, 2048, 2100}));
}

LinearShape random_shape(Bits &bits) {
  LinearShape shape{bits.between(1, 300), bits.between(1, 1000), bits.between(1, 3000)};
  shape.input_dtype = static_cast<std::uint32_t>(bits.between(1, 3));
  shape.bias_dtype = static_cast<std::uint32_t>(bits.between(0, 3));
  shape.activation_format = static_cast<std::uint32_t>(bits.between(0, 1));
  shape.weight_format = static_cast<std::uint32_t>(bits.between(0, 1));
  shape.layout = static_cast<std::uint32_t>(bits.between(0, 1));
  shape.recipe = static_cast<std::uint32_t>(bits.between(0, 4));
  shape.output_dtype = static_cast<std::uint32_t>(bits.between(1, 3));
  shape.extra_stride = bits.between(0, 2) == 0 ? bits.between(1, 40) : 0;
  // Most are such that all backends have something to do.
  if (bits.between(0, 3) != 0) {
    shape.n = ceil_div(shape.n, 8) * 8;
    shape.k = ceil_div(shape.k, 16) * 16;
    shape.extra_stride = ceil_div(shape.extra_stride, 16) * 16;
    shape.output_dtype = FP8RT_DTYPE_BF16;
  }
  return shape;
}

TEST(Shapes, RandomOnesOfTheSeedOfTheDay) {
  Bits bits(next_seed());
  for (int round = 0; round < 60; ++round) {
    const LinearShape shape = random_shape(bits);
    const LinearProblem problem = make_problem(shape);
    ASSERT_TRUE(right_by_all(problem, exact_reference(problem), {shape.m})) << "round " << round;
    ASSERT_TRUE(right_by_all(problem, host_reference(problem), {(shape.m + 1) / 2})) << "round " << round;
  }
}

}  // namespace
}  // namespace fp8rt_test
