// The float32 side of the comparison, computed here from the original weight and not by the library.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// A weight in memory that is aligned to its elements.
struct Weight {
    std::int64_t rows;
    std::int64_t columns;
    std::uint32_t dtype;  // an fp8rt_dtype
    std::uint64_t bytes;
    const std::uint8_t *data;

    // The rows from `first` on, at most `count`.
    Weight stripe(std::int64_t first, std::int64_t count) const;
};

// Row `row` of the weight as float32, exact.
void widen_row(const Weight &weight, std::int64_t row, float *out);

// Standard normal values [rows, columns]; the same for the same shape.
std::vector<float> random_activations(std::int64_t rows, std::int64_t columns);

// x [rows, K] . weight [N, K]^T, products in float32, sums of 128 products added up in float64. Result [rows, N].
std::vector<float> reference_linear(const Weight &weight, const std::vector<float> &x, std::int64_t rows,
                                    unsigned threads);

// The sums of a relative error in the Frobenius norm.
struct ErrorSums {
    double difference = 0;
    double original = 0;

    void add(float approximate, float exact);
    void add(const ErrorSums &other);
    double ratio() const;
};

// |a - b| / |b|.
double relative_error(const std::vector<float> &a, const std::vector<float> &b);

// Of dequantized values [rows, K], over the elements of `weight` that are finite.
ErrorSums weight_error(const std::vector<float> &dequantized, const Weight &weight, unsigned threads);
