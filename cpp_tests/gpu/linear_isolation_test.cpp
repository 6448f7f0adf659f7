// What one element may reach: its own row or column of y, by its own scales, and nothing else in memory.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

// The bits of one element, told apart from those of the same place in another y.
bool same_element(const Matrix &a, const Matrix &b, std::int64_t row, std::int64_t column) {
  const std::size_t at = a.offset_of(0, row, column);
  return std::memcmp(a.data() + at, b.data() + at, element_bytes(a.dtype())) == 0;
}

std::vector<LinearShape> shapes_of_all_outputs(std::int64_t m, std::int64_t n, std::int64_t k) {
  std::vector<LinearShape> shapes;
  for (const std::uint32_t output : kFloats) {
    shapes.push_back({m, n, k});
    shapes.back().output_dtype = output;
  }
  return shapes;
}

// y of a problem before and after `change`, by each backend: `check(before, after)`.
template <typename Change, typename Check>
void compare_after(const LinearShape &shape, Form form, Change change, Check check) {
  LinearProblem problem = make_problem(shape), changed = problem;
  change(changed);
  DeviceLinear device(problem), device_changed(changed);
  for (const Backend &backend : kBackends) {
    if (const auto plan = plan_by(backend, problem)) {
      Matrix before = device.blank, after = device.blank;
      ASSERT_TRUE(run_once(form, *plan, device, shape.m, before)) << plan->describe();
      ASSERT_TRUE(run_once(form, *plan, device_changed, shape.m, after)) << plan->describe();
      check(before, after, plan->describe());
    }
  }
}

// I1.
TEST(Isolation, I1ARowThatIsNaNOrHuge) {
  constexpr std::int64_t kRow = 17;
  for (const LinearShape &shape : shapes_of_all_outputs(66, 320, 512)) {
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), 1e38f, -1e38f}) {
      const auto change = [&](LinearProblem &problem) {
        for (std::int64_t column = 0; column < shape.k; ++column) {
          problem.x.set(kRow, column, value);
        }
        problem.requantize_x();
      };
      const auto check = [&](const Matrix &before, const Matrix &after, const std::string &plan) {
        std::int64_t different = 0, not_nan = 0;
        before.each([&](auto, auto row, auto column) {
          different += row != kRow && !same_element(before, after, row, column);
          not_nan += row == kRow && !std::isnan(after.get(row, column));
        });
        EXPECT_EQ(different, 0) << plan << ", a row of " << value;
        EXPECT_EQ(not_nan, std::isnan(value) ? 0 : shape.n) << plan << ", a row of " << value;
      };
      for (const Form form : kForms) {
        compare_after(shape, form, change, check);
      }
    }
  }
}

TEST(Isolation, ANaNInTheWeightReachesItsColumnAlone) {
  constexpr std::int64_t kColumn = 130;
  for (const LinearShape &shape : shapes_of_all_outputs(37, 320, 512)) {
    for (const std::uint8_t code : {0x7F, 0xFF}) {
      const auto change = [&](LinearProblem &problem) { problem.weight.store(0, kColumn, 300, code); };
      const auto check = [&](const Matrix &before, const Matrix &after, const std::string &plan) {
        std::int64_t different = 0, not_nan = 0;
        before.each([&](auto, auto row, auto column) {
          different += column != kColumn && !same_element(before, after, row, column);
          not_nan += column == kColumn && !std::isnan(after.get(row, column));
        });
        EXPECT_EQ(different, 0) << plan;
        EXPECT_EQ(not_nan, 0) << plan;
      };
      compare_after(shape, Form::kQuantized, change, check);
    }
  }
}

// One code and one scale of the weight change one column, and what belongs to another block does not.
TEST(Isolation, AScaleReachesItsBlockAlone) {
  const LinearShape shape{37, 384, 512};
  const auto change = [](LinearProblem &problem) { problem.weight_scales.set(1, 2, 3e-2f); };
  const auto check = [&](const Matrix &before, const Matrix &after, const std::string &plan) {
    std::int64_t different = 0, same = 0;
    before.each([&](auto, auto row, auto column) {
      const bool within = column >= 128 && column < 256;
      different += !within && !same_element(before, after, row, column);
      same += within && same_element(before, after, row, column);
    });
    EXPECT_EQ(different, 0) << plan;
    EXPECT_LT(same, 37 * 128 / 20) << plan;
  };
  for (const Form form : kForms) {
    compare_after(shape, form, change, check);
  }
}

// I4: every output by its own pair of scales, over several waves of tiles. All sums are exact in bf16.
TEST(Isolation, I4EachOutputUsesItsOwnScales) {
  for (const LinearShape &shape : shapes_of_all_outputs(1030, 8192, 512)) {
    LinearProblem problem = make_problem(shape);
    problem.x_codes.fill(1.0f);
    problem.weight.fill(1.0f);
    const auto of_row = [](std::int64_t row, std::int64_t group) { return (row * 7 + group) % 3 == 0 ? 4.0f : 2.0f; };
    const auto of_block = [](std::int64_t block, std::int64_t group) {
      return (block + group * 5) % 4 < 2 ? 1.0f : 2.0f;
    };
    problem.x_scales.each([&](auto, auto row, auto group) { problem.x_scales.set(row, group, of_row(row, group)); });
    problem.weight_scales.each(
        [&](auto, auto block, auto group) { problem.weight_scales.set(block, group, of_block(block, group)); });
    DeviceLinear device(problem);
    Matrix want = device.blank;
    want.each([&](auto, auto row, auto column) {
      float sum = 0;
      for (std::int64_t group = 0; group < 4; ++group) {
        sum += 128 * of_row(row, group) * of_block(column / 128, group);
      }
      want.set(row, column, sum);
    });
    for (const Backend &backend : kBackends) {
      if (const auto plan = plan_by(backend, problem)) {
        for (const std::int64_t rows : {1030, 130, 64, 7, 1}) {
          Matrix y = device.blank;
          ASSERT_TRUE(run_once(Form::kQuantized, *plan, device, rows, y)) << plan->describe();
          EXPECT_TRUE(same_bytes(rows_of(y, 0, rows), rows_of(want, 0, rows))) << plan->describe() << ", " << rows;
        }
      }
    }
  }
}

TEST(Isolation, InputsAreOnlyRead) {
  for (const std::int64_t extra : {0, 16}) {
    LinearShape shape{37, 320, 400};
    shape.bias_dtype = FP8RT_DTYPE_BF16;
    shape.extra_stride = extra;
    shape.parts = {192, 64, 64};
    const LinearProblem problem = make_problem(shape);
    DeviceLinear device(problem);
    for (const Backend &backend : kBackends) {
      if (const auto plan = plan_by(backend, problem)) {
        for (const Form form : kForms) {
          Matrix y = device.blank;
          ASSERT_TRUE(run_once(form, *plan, device, shape.m, y)) << plan->describe();
          EXPECT_TRUE(device.inputs_are(problem)) << plan->describe() << ", " << name_of(form);
        }
      }
    }
  }
}

// Where the product of two scales is below the normal float32, only finiteness is promised; where it overflows, only by
// our own kernel: the others multiply what they find.
TEST(Isolation, ExtremeScalesStayFinite) {
  const float largest = std::numeric_limits<float>::max();
  const std::pair<float, float> pairs[] = {
      {1e30f, 1e30f}, {largest, 2.0f}, {1e-30f, 1e-30f}, {1e-45f, 1e-45f}, {1e-45f, 1.0f}};
  for (const auto &[x_scale, weight_scale] : pairs) {
    for (const LinearShape &shape : shapes_of_all_outputs(9, 72, 208)) {
      LinearProblem problem = make_problem(shape);
      problem.x_scales.fill(x_scale);
      problem.weight_scales.fill(weight_scale);
      DeviceLinear device(problem);
      const bool overflows = !std::isfinite(x_scale * weight_scale);
      for (const Backend &backend : kBackends) {
        if (overflows && backend.bit != FP8RT_BACKEND_PLAIN) continue;
        if (const auto plan = plan_by(backend, problem)) {
          Matrix y = device.blank;
          ASSERT_TRUE(run_once(Form::kQuantized, *plan, device, shape.m, y)) << plan->describe();
          std::int64_t not_finite = 0;
          y.each([&](auto, auto row, auto column) { not_finite += !std::isfinite(y.get(row, column)); });
          EXPECT_EQ(not_finite, 0) << plan->describe() << ", scales " << x_scale << " and " << weight_scale;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
