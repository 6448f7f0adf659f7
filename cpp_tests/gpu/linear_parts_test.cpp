// Weights of several parts, each with scales of its own, with and without a bias.

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

using Parts = std::vector<std::int64_t>;

LinearShape shape_of(std::int64_t m, const Parts &parts, std::int64_t k) {
  LinearShape shape{m, std::accumulate(parts.begin(), parts.end(), std::int64_t{0}), k};
  shape.parts = parts;
  return shape;
}

// q, k and v on whole blocks run as one.
TEST(Parts, AlignedOnesAsAModelHasThem) {
  LinearShape shape = shape_of(130, {4096, 1024, 1024}, 4096);
  shape.bias_dtype = FP8RT_DTYPE_BF16;
  const LinearProblem problem = make_problem(shape);
  EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 17, 64, 130}));
}

// A part that ends within a block has a scale of its own there, so that one grid for all would be wrong.
TEST(Parts, UnalignedOnes) {
  for (const Parts &parts : {Parts{192, 64, 64}, {100, 100}, {64, 192, 128}, {8, 8, 8}, {1, 510, 1}, {0, 256, 0},
                             {130, 126}, {264, 8, 120}, {100, 100, 100, 100, 112}, {128, 64, 256}}) {
    for (const std::int64_t m : {1, 21, 140}) {
      EXPECT_TRUE(right_by_all(shape_of(m, parts, 400)));
    }
  }
}

// Equal parts of 64 rows: DeepGEMM has to run each by itself, because their columns begin on 16 bytes.
TEST(Parts, TheFastBackendsTakeThoseOnWholeVectors) {
  const LinearShape shape = shape_of(16, {192, 64, 64}, 512);
  const LinearProblem problem = make_problem(shape);
  EXPECT_EQ(plan_by(kDeepGemm, problem).has_value(), is_hopper_sxm());
  EXPECT_TRUE(plan_by(kPlain, problem).has_value());
}

TEST(Parts, AnyTypesWithABias) {
  for (const std::uint32_t output : kFloats) {
    for (const std::uint32_t bias : kFloats) {
      for (const Parts &parts : {Parts{}, {192, 64, 64}, {100, 220}, {128, 192}}) {
        LinearShape shape = shape_of(37, parts, 512);
        shape.n = 320;
        shape.output_dtype = output;
        shape.bias_dtype = bias;
        shape.extra_stride = 16;
        EXPECT_TRUE(right_by_all(shape));
      }
    }
  }
}

// What a plan was given may go when it is made.
TEST(Parts, AreCopied) {
  const LinearProblem problem = make_problem(shape_of(5, {192, 64, 64}, 256));
  const Reference want = reference_of(problem);
  DeviceLinear device(problem);
  for (const Backend &backend : kBackends) {
    if (!plan_by(backend, problem)) {
      continue;
    }
    Parts parts = problem.shape.parts;
    fp8rt_linear_desc desc = problem.desc();
    desc.backends = backend.bit;
    desc.part_rows = parts.data();
    const fp8rt::LinearPlan plan(gpu(), desc);
    parts.assign(parts.size(), -7);
    EXPECT_TRUE(is_right(plan, device, want, 5)) << plan.describe();
  }
}

// One bias larger than all products: it is added once, in the right column, and only then is y rounded.
TEST(Bias, IsAddedOnceToItsColumn) {
  for (const std::uint32_t output : kFloats) {
    for (const std::int64_t n : {8, 136, 1000, 4096}) {
      LinearShape shape{3, n, 128};
      shape.output_dtype = output;
      shape.bias_dtype = FP8RT_DTYPE_F32;
      LinearProblem problem = make_problem(shape);
      problem.bias.each([&](auto, auto row, auto column) {
        problem.bias.set(row, column, static_cast<float>(column % 61 - 30) * 64);
      });
      problem.x_codes.fill(0.0f);
      DeviceLinear device(problem);
      Matrix want = device.blank;
      want.each([&](auto, auto row, auto column) { want.set(row, column, problem.bias.get(0, column)); });
      for (const Backend &backend : kBackends) {
        if (const auto plan = plan_by(backend, problem)) {
          Matrix y = device.blank;
          EXPECT_TRUE(run_once(Form::kQuantized, *plan, device, shape.m, y)) << plan->describe();
          EXPECT_TRUE(same_bytes(y, want)) << plan->describe();
        }
      }
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
