// Every backend of the linear once at small sizes in tight buffers: for compute-sanitizer, under which everything else
// is too slow.

#include <gtest/gtest.h>

#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

class LinearSmall : public ::testing::Test {
 protected:
  void SetUp() override { DeviceMatrix::tight_buffers() = true; }
  void TearDown() override { DeviceMatrix::tight_buffers() = false; }
};

// Tiles that are whole and that hang over, groups that are short.
TEST_F(LinearSmall, Shapes) {
  const std::int64_t shapes[][3] = {{1, 64, 128}, {3, 136, 208}, {17, 256, 384}, {70, 192, 64}, {130, 264, 512}};
  for (const auto &[m, n, k] : shapes) {
    for (const std::int64_t extra : {0, 16}) {
      LinearShape shape{m, n, k};
      shape.extra_stride = extra;
      EXPECT_TRUE(right_by_all(shape));
    }
  }
}

TEST_F(LinearSmall, OddShapesAndStrides) {
  for (const std::int64_t extra : {0, 3}) {
    LinearShape shape{5, 33, 130};
    shape.extra_stride = extra;
    EXPECT_TRUE(right_by_all(shape));
    shape.m = 19;
    EXPECT_TRUE(right_by_all(shape));
  }
}

TEST_F(LinearSmall, Types) {
  for (const std::uint32_t input : kFloats) {
    for (const std::uint32_t output : kFloats) {
      LinearShape shape{5, 136, 208};
      shape.input_dtype = input;
      shape.output_dtype = output;
      shape.bias_dtype = input;
      EXPECT_TRUE(right_by_all(shape));
    }
  }
}

// Scales that have to be brought into another layout first.
TEST_F(LinearSmall, RowMajorScales) {
  LinearShape shape{21, 136, 272};
  shape.layout = FP8RT_SCALE_LAYOUT_ROW_MAJOR;
  EXPECT_TRUE(right_by_all(shape));
}

TEST_F(LinearSmall, Parts) {
  for (const std::vector<std::int64_t> &parts : {std::vector<std::int64_t>{192, 64, 64}, {100, 220}}) {
    LinearShape shape{21, 320, 272};
    shape.parts = parts;
    shape.bias_dtype = FP8RT_DTYPE_BF16;
    EXPECT_TRUE(right_by_all(shape));
  }
}

TEST_F(LinearSmall, FewerRowsThanPlanned) {
  const LinearProblem problem = make_problem({66, 128, 256});
  EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 5, 66}));
}

TEST_F(LinearSmall, Misaligned) {
  LinearShape shape{5, 40, 144};
  shape.extra_stride = 3;
  const LinearProblem problem = make_problem(shape);
  const Reference want = reference_of(problem);
  DeviceLinear device(problem, {2, 1, 3, 2});
  const auto plan = plan_by(kPlain, problem);
  ASSERT_TRUE(plan);
  EXPECT_TRUE(is_right(*plan, device, want, 5));
}

}  // namespace
}  // namespace fp8rt_test
