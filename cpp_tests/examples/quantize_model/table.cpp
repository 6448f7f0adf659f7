#include "table.hpp"

#include <algorithm>
#include <cstdio>

#include "error.hpp"

namespace {

constexpr std::size_t WIDEST = 80;

struct Totals {
    std::size_t tensors = 0;
    std::uint64_t bytes = 0;
    std::uint64_t non_finite = 0;
    std::int64_t elements = 0;
    double seconds = 0;
    double weight_error_sum = 0;
    double linear_error_sum = 0;
    double worst_weight_error = 0;
    double worst_linear_error = 0;

    void add(const Row &row) {
        ++tensors;
        bytes += row.bytes;
        non_finite += row.non_finite;
        elements += row.rows * row.columns;
        seconds += row.seconds;
        weight_error_sum += row.weight_error;
        linear_error_sum += row.linear_error;
        worst_weight_error = std::max(worst_weight_error, row.weight_error);
        worst_linear_error = std::max(worst_linear_error, row.linear_error);
    }
};

double gigabytes_per_second(std::uint64_t bytes, double seconds) {
    return seconds > 0 ? static_cast<double>(bytes) / seconds / 1e9 : 0;
}

void print(const std::string &recipe, const Totals &totals) {
    const auto count = static_cast<double>(totals.tensors);
    std::printf("total: %zu tensors, %.1f M elements, recipe %s: weight error mean %.5f worst %.5f, "
                "linear error mean %.5f worst %.5f, %.2f GB/s\n",
                totals.tensors, static_cast<double>(totals.elements) / 1e6, recipe.c_str(),
                totals.weight_error_sum / count, totals.worst_weight_error, totals.linear_error_sum / count,
                totals.worst_linear_error, gigabytes_per_second(totals.bytes, totals.seconds));
    if (totals.non_finite == 0) return;
    std::printf("       %llu elements are not finite; the weight error leaves them out\n",
                static_cast<unsigned long long>(totals.non_finite));
}

}  // namespace

Table::Table(const std::vector<std::string> &names) : width_(6) {
    for (const std::string &name : names) width_ = std::max(width_, std::min(name.size(), WIDEST));
}

void Table::print_head() const {
    std::printf("%-*s  %-13s  %-8s  %12s  %12s  %8s\n", static_cast<int>(width_), "tensor", "shape", "recipe",
                "weight error", "linear error", "GB/s");
}

void Table::add(const Row &row) {
    const std::string shape = std::to_string(row.rows) + "x" + std::to_string(row.columns);
    std::printf("%-*s  %-13s  %-8s  %12.5f  %12.5f  %8.2f\n", static_cast<int>(width_), printable(row.tensor).c_str(),
                shape.c_str(), row.recipe.c_str(), row.weight_error, row.linear_error,
                gigabytes_per_second(row.bytes, row.seconds));
    std::fflush(stdout);
    rows_.push_back(row);
}

void Table::print_totals() const {
    std::vector<std::string> recipes;
    for (const Row &row : rows_) {
        if (std::find(recipes.begin(), recipes.end(), row.recipe) == recipes.end()) recipes.push_back(row.recipe);
    }
    for (const std::string &recipe : recipes) {
        Totals totals;
        for (const Row &row : rows_) {
            if (row.recipe == recipe) totals.add(row);
        }
        print(recipe, totals);
    }
}
