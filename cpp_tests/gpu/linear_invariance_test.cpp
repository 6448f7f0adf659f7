// I5: under the batch-invariant flag the bits of a row of y depend on nothing but the row and the weight.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kMost = 4096;

// Every M of a small weight; of a large one every M up to 64, and powers of two with their neighbors.
bool is_small(const LinearShape &shape) { return shape.n * shape.k <= 512 * 1024; }

std::vector<std::int64_t> numbers_of_rows(const LinearShape &shape) {
  std::vector<std::int64_t> all;
  for (std::int64_t m = 1; m <= (is_small(shape) ? kMost : 64); ++m) {
    all.push_back(m);
  }
  if (is_small(shape)) {
    return all;
  }
  for (std::int64_t power = 128; power <= kMost; power *= 2) {
    for (const std::int64_t m : {power - 1, power, power + 1}) {
      if (m <= kMost) {
        all.push_back(m);
      }
    }
  }
  return all;
}

// A problem of kMost rows; runs some of its rows.
class Rows {
 public:
  explicit Rows(const LinearProblem &problem) : problem_(problem), device_(problem) {}

  // y of rows [first, first + count), packed.
  std::vector<std::uint8_t> run(const fp8rt::LinearPlan &plan, std::int64_t first, std::int64_t count, bool in_graph) {
    LinearViews views = device_.views(count);
    const auto step = static_cast<std::size_t>(views.x.stride[0]) * element_bytes(views.x.dtype);
    views.x.data = static_cast<std::uint8_t *>(views.x.data) + static_cast<std::size_t>(first) * step;
    views.x.bytes -= static_cast<std::size_t>(first) * step;
    const DeviceWorkspace workspace(plan.workspace(count));
    const Stream stream;
    if (in_graph) {
      const Graph graph(stream, [&] { EXPECT_OK(views.run(Form::kValues, plan, workspace, stream)); });
      graph.launch(stream);
      stream.synchronize();
    } else {
      EXPECT_OK(views.run(Form::kValues, plan, workspace, stream));
      stream.synchronize();
    }
    std::vector<std::uint8_t> y(static_cast<std::size_t>(count) * bytes_of_row());
    CUDA(cudaMemcpy(y.data(), views.y.data, y.size(), cudaMemcpyDeviceToHost));
    return y;
  }
  // The first number of rows whose bits are not those of the same rows among kMost; none if there is no such.
  std::optional<std::int64_t> first_difference(const fp8rt::LinearPlan &plan) {
    EXPECT_OK(device_.views().prepare(plan, Stream()));
    const std::vector<std::uint8_t> all = run(plan, 0, kMost, false);
    for (const std::int64_t count : numbers_of_rows(problem_.shape)) {
      for (const std::int64_t first : {std::int64_t{0}, std::int64_t{3}, kMost - count}) {
        for (const bool in_graph : {false, true}) {
          const bool elsewhere = count <= 64 || !is_small(problem_.shape) || count % 61 == 0;
          const bool asked = first + count <= kMost && (elsewhere || first == 0) &&
                             (!in_graph || (elsewhere && count % 16 == 7) || count == 128);
          if (asked && !same(all, first, run(plan, first, count, in_graph))) {
            return count;
          }
        }
      }
    }
    return std::nullopt;
  }
  ::testing::AssertionResult is_close_everywhere(const fp8rt::LinearPlan &plan, const Reference &want) {
    Matrix y = device_.blank;
    const auto done = run_once(Form::kValues, plan, device_, kMost, y);
    return done ? is_close(y, want, kMost) : done;
  }

 private:
  std::size_t bytes_of_row() const {
    return static_cast<std::size_t>(problem_.shape.n) * element_bytes(problem_.shape.output_dtype);
  }
  bool same(const std::vector<std::uint8_t> &all, std::int64_t first, const std::vector<std::uint8_t> &some) const {
    return std::memcmp(all.data() + static_cast<std::size_t>(first) * bytes_of_row(), some.data(), some.size()) == 0;
  }

  const LinearProblem &problem_;
  DeviceLinear device_;
};

LinearShape shape_of(std::int64_t n, std::int64_t k) {
  LinearShape shape{kMost, n, k};
  shape.flags = FP8RT_LINEAR_BATCH_INVARIANT;
  return shape;
}

// Said, not asked: whether a backend has the same bits without the flag too.
void record_without_flag(Rows &rows, const LinearProblem &problem) {
  LinearProblem unflagged = problem;
  unflagged.shape.flags = 0;
  for (const Backend &backend : kBackends) {
    if (const auto plan = plan_by(backend, unflagged)) {
      const auto count = rows.first_difference(*plan);
      const std::string found = count ? "other bits at M = " + std::to_string(*count) : "the same bits";
      std::printf("without the flag: %s: %s\n", plan->describe().c_str(), found.c_str());
    }
  }
}

class Invariance : public ::testing::TestWithParam<std::pair<std::int64_t, std::int64_t>> {};

TEST_P(Invariance, I5RowsHaveTheSameBitsForEveryM) {
  const auto [n, k] = GetParam();
  const LinearProblem problem = make_problem(shape_of(n, k));
  const Reference want = reference_of(problem);
  Rows rows(problem);
  for (const Backend &backend : kBackends) {
    if (const auto plan = plan_by(backend, problem)) {
      EXPECT_EQ(rows.first_difference(*plan).value_or(0), 0) << "M with other bits, " << plan->describe();
      EXPECT_TRUE(rows.is_close_everywhere(*plan, want)) << plan->describe();
    }
  }
  record_without_flag(rows, problem);
}

// Somebody takes it: the plan of a caller who names no backend.
TEST_P(Invariance, IsToBeHadWithoutNamingABackend) {
  const auto [n, k] = GetParam();
  LinearShape shape = shape_of(n, k);
  shape.m = 64;
  const LinearProblem problem = make_problem(shape);
  const fp8rt::LinearPlan plan(gpu(), problem.desc());
  std::printf("batch-invariant: %s\n", plan.describe().c_str());
  DeviceLinear device(problem);
  EXPECT_TRUE(is_right(plan, device, reference_of(problem), 64));
}

INSTANTIATE_TEST_SUITE_P(Weights, Invariance,
                         ::testing::Values(std::pair<std::int64_t, std::int64_t>{256, 640},
                                           std::pair<std::int64_t, std::int64_t>{4096, 4096},
                                           std::pair<std::int64_t, std::int64_t>{1024, 7168}));

}  // namespace
}  // namespace fp8rt_test
