// The table on stdout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

struct Row {
    std::string tensor;
    std::int64_t rows;
    std::int64_t columns;
    std::string recipe;
    double weight_error;
    double linear_error;
    std::uint64_t bytes;  // read and written by one quantization
    double seconds;       // of the best
    std::uint64_t non_finite;
};

class Table {
public:
    // Wide enough for `names`.
    explicit Table(const std::vector<std::string> &names);

    void print_head() const;
    // At once, so that a long run shows what is done.
    void add(const Row &row);
    // One line for each recipe: how many, mean and worst errors, bytes over time.
    void print_totals() const;

private:
    std::size_t width_;
    std::vector<Row> rows_;
};
