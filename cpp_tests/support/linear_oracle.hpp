// A linear in float64 on dequantized operands, and the bounds that an output is held to.

#ifndef FP8RT_TEST_LINEAR_ORACLE_HPP
#define FP8RT_TEST_LINEAR_ORACLE_HPP

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "matrix.hpp"
#include "oracle.hpp"

namespace fp8rt_test {

// Row-major float64.
struct Exact {
  std::int64_t rows, columns;
  std::vector<double> values;

  Exact(std::int64_t rows_, std::int64_t columns_)
      : rows(rows_), columns(columns_), values(static_cast<std::size_t>(rows_ * columns_)) {}
  double &at(std::int64_t row, std::int64_t column) {
    return values[static_cast<std::size_t>(row * columns + column)];
  }
  double at(std::int64_t row, std::int64_t column) const {
    return values[static_cast<std::size_t>(row * columns + column)];
  }
};

// code * scale, exact in float64.
inline Exact dequantized(const Rule &rule, const Matrix &codes, const Matrix &scales) {
  Exact exact(codes.rows(), codes.columns());
  each_block(rule, codes, [&](const Block &block) {
    each_element(codes, block, [&](std::int64_t row, std::int64_t column) {
      exact.at(row, column) = static_cast<double>(codes.get(row, column)) * load_scale(rule, scales, block, row);
    });
  });
  return exact;
}

// x . w^T + bias; `bias` is NULL or a matrix of one row.
inline Exact exact_linear(const Exact &x, const Exact &w, const Matrix *bias) {
  Exact y(x.rows, w.rows);
  for (std::int64_t m = 0; m < x.rows; ++m) {
    for (std::int64_t n = 0; n < w.rows; ++n) {
      double sum = 0;
      for (std::int64_t k = 0; k < x.columns; ++k) {
        sum += x.at(m, k) * w.at(n, k);
      }
      y.at(m, n) = sum + (bias == nullptr ? 0.0 : static_cast<double>(bias->get(0, n)));
    }
  }
  return y;
}

// Squared error and squared size, of which a relative Frobenius error is made.
struct Relative {
  double error = 0, size = 0;

  void add(double got, double want) {
    error += (got - want) * (got - want);
    size += want * want;
  }
  // Written so that a NaN is not within any bound.
  bool within(double bound) const { return std::sqrt(error) < bound * std::sqrt(size) || (error == 0 && size == 0); }
  double value() const { return std::sqrt(error / size); }
};

// Rows [begin, end) of an output against float64: each row, each 128 columns, and the whole.
inline ::testing::AssertionResult within_bounds(const Matrix &y, const Exact &want, std::int64_t begin,
                                                std::int64_t end) {
  const bool bf16 = y.dtype() == FP8RT_DTYPE_BF16;
  // Rounding one element to bf16 costs up to 2^-8; the bound of the whole is about the mean of many.
  const bool many = (end - begin) * y.columns() >= 1024;
  const double part_bound = bf16 ? 4e-3 : 1e-3, whole_bound = bf16 ? (many ? 2e-3 : 4e-3) : 1e-3;
  std::vector<Relative> bands(static_cast<std::size_t>(ceil_div(y.columns(), 128)));
  Relative whole;
  for (std::int64_t m = begin; m < end; ++m) {
    Relative row;
    for (std::int64_t n = 0; n < y.columns(); ++n) {
      const double got = y.get(m, n);
      row.add(got, want.at(m, n));
      whole.add(got, want.at(m, n));
      bands[static_cast<std::size_t>(n / 128)].add(got, want.at(m, n));
    }
    if (!row.within(part_bound)) {
      return ::testing::AssertionFailure() << "row " << m << " has a relative error of " << row.value();
    }
  }
  for (std::size_t band = 0; band < bands.size(); ++band) {
    if (!bands[band].within(part_bound)) {
      return ::testing::AssertionFailure()
             << "columns from " << band * 128 << " have an error of " << bands[band].value();
    }
  }
  if (!whole.within(whole_bound)) {
    return ::testing::AssertionFailure() << "the whole has a relative error of " << whole.value();
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult within_bounds(const Matrix &y, const Exact &want) {
  return within_bounds(y, want, 0, y.rows());
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_LINEAR_ORACLE_HPP
