#include "reference.hpp"

#include <fp8rt.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <random>

#include "parallel.hpp"

namespace {

constexpr int LANES = 8;
constexpr std::int64_t CHUNK = 128;

float float_of_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float widen_half(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
    const std::uint32_t exponent = half >> 10 & 0x1Fu;
    const std::uint32_t fraction = half & 0x3FFu;
    if (exponent == 31) return float_of_bits(sign | 0x7F800000u | fraction << 13);
    if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign != 0 ? -magnitude : magnitude;
}

// Lanes are summed apart so that the compiler may use vectors without reordering a sum of its own.
double dot(const float *a, const float *b, std::int64_t count) {
    double total = 0;
    for (std::int64_t start = 0; start < count; start += CHUNK) {
        const std::int64_t end = std::min(count, start + CHUNK);
        float lanes[LANES] = {};
        std::int64_t index = start;
        for (; index + LANES <= end; index += LANES) {
            for (int lane = 0; lane < LANES; ++lane) lanes[lane] += a[index + lane] * b[index + lane];
        }
        for (; index < end; ++index) lanes[0] += a[index] * b[index];
        for (const float lane : lanes) total += double{lane};
    }
    return total;
}

}  // namespace

Weight Weight::stripe(std::int64_t first, std::int64_t count) const {
    const std::uint64_t row_bytes = bytes / static_cast<std::uint64_t>(rows);
    Weight result = *this;
    result.rows = std::min(count, rows - first);
    result.bytes = row_bytes * static_cast<std::uint64_t>(result.rows);
    result.data += row_bytes * static_cast<std::uint64_t>(first);
    return result;
}

void widen_row(const Weight &weight, std::int64_t row, float *out) {
    const auto first = static_cast<std::size_t>(row * weight.columns);
    const auto count = static_cast<std::size_t>(weight.columns);
    if (weight.dtype == FP8RT_DTYPE_F32) {
        std::memcpy(out, weight.data + first * 4, count * 4);
        return;
    }
    const auto *half = reinterpret_cast<const std::uint16_t *>(weight.data) + first;
    if (weight.dtype == FP8RT_DTYPE_BF16) {
        for (std::size_t index = 0; index < count; ++index) {
            out[index] = float_of_bits(std::uint32_t{half[index]} << 16);
        }
    } else {
        for (std::size_t index = 0; index < count; ++index) out[index] = widen_half(half[index]);
    }
}

std::vector<float> random_activations(std::int64_t rows, std::int64_t columns) {
    std::mt19937_64 generator(static_cast<std::uint64_t>(columns));
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(rows * columns));
    for (float &value : values) value = normal(generator);
    return values;
}

std::vector<float> reference_linear(const Weight &weight, const std::vector<float> &x, std::int64_t rows,
                                    unsigned threads) {
    std::vector<float> y(static_cast<std::size_t>(rows * weight.rows));
    for_each_range(weight.rows, threads, [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> row(static_cast<std::size_t>(weight.columns));
        for (std::int64_t n = begin; n < end; ++n) {
            widen_row(weight, n, row.data());
            for (std::int64_t m = 0; m < rows; ++m) {
                const double sum = dot(row.data(), x.data() + m * weight.columns, weight.columns);
                y[static_cast<std::size_t>(m * weight.rows + n)] = static_cast<float>(sum);
            }
        }
    });
    return y;
}

void ErrorSums::add(float approximate, float exact) {
    const double gap = double{approximate} - double{exact};
    difference += gap * gap;
    original += double{exact} * double{exact};
}

void ErrorSums::add(const ErrorSums &other) {
    difference += other.difference;
    original += other.original;
}

double ErrorSums::ratio() const { return difference == 0 ? 0 : std::sqrt(difference / original); }

double relative_error(const std::vector<float> &a, const std::vector<float> &b) {
    ErrorSums sums;
    for (std::size_t index = 0; index < a.size(); ++index) sums.add(a[index], b[index]);
    return sums.ratio();
}

ErrorSums weight_error(const std::vector<float> &dequantized, const Weight &weight, unsigned threads) {
    ErrorSums total;
    std::mutex mutex;
    for_each_range(weight.rows, threads, [&](std::int64_t begin, std::int64_t end) {
        ErrorSums sums;
        std::vector<float> row(static_cast<std::size_t>(weight.columns));
        for (std::int64_t n = begin; n < end; ++n) {
            widen_row(weight, n, row.data());
            const float *approximate = dequantized.data() + n * weight.columns;
            for (std::size_t k = 0; k < row.size(); ++k) {
                if (std::isfinite(row[k])) sums.add(approximate[k], row[k]);
            }
        }
        const std::lock_guard<std::mutex> lock(mutex);
        total.add(sums);
    });
    return total;
}
