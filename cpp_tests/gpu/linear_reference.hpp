// What y should be, from float64 by all cores or from the host's own linear where that would take too long, and whether
// a y is close to it.

#ifndef FP8RT_TEST_LINEAR_REFERENCE_HPP
#define FP8RT_TEST_LINEAR_REFERENCE_HPP

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#include "contexts.hpp"
#include "linear_problem.hpp"

namespace fp8rt_test {

// Calls `action(index)` for each index below `count`, from as many threads as there are cores.
template <typename Action>
void in_threads(std::int64_t count, Action action) {
  std::atomic<std::int64_t> next{0};
  std::vector<std::thread> threads(std::max(1u, std::thread::hardware_concurrency()));
  for (std::thread &thread : threads) {
    thread = std::thread([&] {
      for (std::int64_t index = next++; index < count; index = next++) {
        action(index);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
}

struct Reference {
  Exact y;
  // The size of a typical element. Few elements may cancel to nearly nothing, and their error is then measured by this.
  double typical;
  // A backend that adds the bias by a pass rounds twice.
  bool has_bias = false;
};

inline double mean_square(const Exact &matrix) {
  double sum = 0;
  for (const double value : matrix.values) {
    sum += value * value;
  }
  return matrix.values.empty() ? 0 : sum / static_cast<double>(matrix.values.size());
}

// Eight sums side by side: one alone would wait for each of its additions.
inline double dot(const double *a, const double *b, std::int64_t count) {
  double sums[8] = {};
  std::int64_t at = 0;
  for (; at + 8 <= count; at += 8) {
    for (int lane = 0; lane < 8; ++lane) {
      sums[lane] += a[at + lane] * b[at + lane];
    }
  }
  double sum = 0;
  for (; at < count; ++at) {
    sum += a[at] * b[at];
  }
  for (const double lane : sums) {
    sum += lane;
  }
  return sum;
}

inline Reference exact_reference(const LinearProblem &problem) {
  const Exact x = dequantized(problem.x_rule, problem.x_codes, problem.x_scales),
              w = dequantized(problem.weight_rule, problem.weight, problem.weight_scales);
  const std::int64_t k = x.columns;
  Reference reference{Exact(x.rows, w.rows), std::sqrt(static_cast<double>(k) * mean_square(x) * mean_square(w))};
  const Matrix *bias = problem.bias_or_none();
  reference.has_bias = bias != nullptr;
  in_threads(w.rows, [&](std::int64_t n) {
    const double added = bias == nullptr ? 0.0 : static_cast<double>(bias->get(0, n));
    for (std::int64_t m = 0; m < x.rows; ++m) {
      reference.y.at(m, n) = dot(x.values.data() + m * k, w.values.data() + n * k, k) + added;
    }
  });
  return reference;
}

// y in float32 from the host context, which the host's tests hold to float64.
inline Reference host_reference(const LinearProblem &problem) {
  fp8rt_linear_desc desc = problem.desc();
  desc.output_dtype = FP8RT_DTYPE_F32;
  desc.output_stride = 0;
  desc.backends = FP8RT_BACKEND_CPU;
  const fp8rt::LinearPlan plan(host(), desc);
  const Matrix y(FP8RT_DTYPE_F32, {problem.shape.m, problem.shape.n});
  fp8rt::check(problem.run_prequantized(plan, problem.x_codes, problem.x_scales, y));
  Reference reference{Exact(y.rows(), y.columns()), 0};
  in_threads(y.rows(), [&](std::int64_t row) {
    for (std::int64_t column = 0; column < y.columns(); ++column) {
      reference.y.at(row, column) = y.load<float>(0, row, column);
    }
  });
  reference.typical = std::sqrt(mean_square(reference.y));
  reference.has_bias = problem.bias_or_none() != nullptr;
  return reference;
}

// Multiplications that float64 takes on.
constexpr std::int64_t kMostExact = std::int64_t{1} << 31;

inline Reference reference_of(const LinearProblem &problem) {
  const LinearShape &shape = problem.shape;
  return shape.m * shape.n * shape.k <= kMostExact ? exact_reference(problem) : host_reference(problem);
}

// A relative Frobenius error that knows how many elements it is of.
struct RelativeOf {
  Relative relative;
  std::int64_t count = 0;

  void add(double got, double want) {
    relative.add(got, want);
    ++count;
  }
  void add(const RelativeOf &other) {
    relative.error += other.relative.error;
    relative.size += other.relative.size;
    count += other.count;
  }
  bool within(double bound, double typical) const {
    Relative measured = relative;
    if (count < 64) {
      measured.size = std::max(measured.size, static_cast<double>(count) * typical * typical);
    }
    return measured.within(bound);
  }
};

// The first `rows` rows of an output against a reference whose rows begin with `first`: each row, each 128 columns, the
// 128 columns of each row, and the whole.
inline ::testing::AssertionResult is_close(const Matrix &y, const Reference &want, std::int64_t rows,
                                           std::int64_t first = 0) {
  const bool bf16 = y.dtype() == FP8RT_DTYPE_BF16;
  // Rounding one element to bf16 costs up to 2^-8, twice where a bias is added by a pass; the bound of the whole is
  // about the mean of many.
  const double roundings = want.has_bias ? 2 : 1;
  const double bound = bf16 ? roundings * 4e-3 : 1e-3, of_many = want.has_bias ? 3e-3 : 2e-3;
  const double whole_bound = bf16 && rows * y.columns() >= 1024 ? of_many : bound;
  std::vector<RelativeOf> bands(static_cast<std::size_t>(ceil_div(y.columns(), 128)));
  RelativeOf whole;
  for (std::int64_t m = 0; m < rows; ++m) {
    RelativeOf row;
    for (std::size_t band = 0; band < bands.size(); ++band) {
      const auto begin = static_cast<std::int64_t>(band) * 128, end = std::min(begin + 128, y.columns());
      RelativeOf segment;
      for (std::int64_t n = begin; n < end; ++n) {
        segment.add(y.get(m, n), want.y.at(first + m, n));
      }
      if (!segment.within(bound, want.typical)) {
        return ::testing::AssertionFailure() << "row " << m << ", columns from " << begin << ": a relative error of "
                                             << segment.relative.value() << ", " << bound << " is allowed; y begins "
                                             << y.get(m, begin) << ", expected " << want.y.at(first + m, begin);
      }
      row.add(segment);
      bands[band].add(segment);
    }
    if (!row.within(bound, want.typical)) {
      return ::testing::AssertionFailure() << "row " << m << ": a relative error of " << row.relative.value();
    }
    whole.add(row);
  }
  for (std::size_t band = 0; band < bands.size(); ++band) {
    if (!bands[band].within(bound, want.typical)) {
      return ::testing::AssertionFailure() << "columns from " << band * 128 << ": a relative error of "
                                           << bands[band].relative.value();
    }
  }
  if (!whole.within(whole_bound, want.typical)) {
    return ::testing::AssertionFailure() << "the whole: a relative error of " << whole.relative.value();
  }
  return ::testing::AssertionSuccess();
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_LINEAR_REFERENCE_HPP
