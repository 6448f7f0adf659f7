#include "trainer.hpp"

#include <algorithm>
#include <cstring>
#include <random>
#include <stdexcept>
#include <thread>

namespace {

constexpr std::int64_t BLOCK = 128;
constexpr std::size_t ALIGNMENT = 256;
constexpr std::size_t TABLE = 65536;

std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

std::uint64_t seed_of(const std::string &name, int step) {
    return mix(std::hash<std::string>()(name) + 0x9E3779B97F4A7C15u * static_cast<std::uint64_t>(step + 1));
}

}  // namespace

std::vector<std::vector<Cut>> make_buckets(const Model &model, std::size_t bytes) {
    std::vector<std::vector<Cut>> buckets(1);
    std::size_t used = 0;
    for (std::size_t index = 0; index < model.tensors().size(); ++index) {
        const TrainerTensor &tensor = model.tensors()[index];
        const std::size_t row_bytes = 2 * static_cast<std::size_t>(tensor.columns);
        for (std::int64_t row = 0; row < tensor.rows;) {
            std::int64_t rows = std::min(tensor.rows - row, static_cast<std::int64_t>((bytes - used) / row_bytes));
            if (row + rows < tensor.rows) rows -= rows % BLOCK;
            if (rows == 0 && used == 0) {
                throw std::runtime_error("a bucket of " + std::to_string(bytes) + " bytes does not hold 128 rows of " +
                                         tensor.name + ", " + std::to_string(BLOCK * row_bytes));
            }
            if (rows == 0) {
                buckets.emplace_back();
                used = 0;
                continue;
            }
            buckets.back().push_back({index, row, rows, used});
            used += (static_cast<std::size_t>(rows) * row_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
            used = std::min(used, bytes);
            row += rows;
        }
    }
    return buckets;
}

Values::Values(std::uint32_t threads)
    : table_(TABLE), threads_(threads == 0 ? std::max(1u, std::thread::hardware_concurrency()) : threads) {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (std::uint16_t &value : table_) {
        const float drawn = normal(engine);
        std::uint32_t bits;
        std::memcpy(&bits, &drawn, sizeof bits);
        value = static_cast<std::uint16_t>(bits >> 16);
    }
}

void Values::fill(unsigned char *to, const TrainerTensor &tensor, const Cut &cut, int step) const {
    const std::uint64_t seed = seed_of(tensor.name, step);
    const std::int64_t begin = cut.row * tensor.columns, count = cut.rows * tensor.columns;
    // Four values of a hash; a row is a multiple of four.
    const auto fill_some = [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t at = first; at < last; at += 4) {
            const std::uint64_t random = mix(seed + 0x9E3779B97F4A7C15u * static_cast<std::uint64_t>((begin + at) / 4));
            std::uint16_t values[4];
            for (int i = 0; i < 4; ++i) values[i] = table_[random >> (16 * i) & (TABLE - 1)];
            std::memcpy(to + 2 * at, values, sizeof values);
        }
    };
    const std::int64_t share = (count / threads_ + 3) / 4 * 4 + 4;
    std::vector<std::thread> threads;
    for (std::int64_t first = 0; first < count; first += share) {
        threads.emplace_back(fill_some, first, std::min(first + share, count));
    }
    for (std::thread &thread : threads) thread.join();
}

Expectation::Expectation(const fp8rt::Context &context, Device &device, int ordinal, const Model &model,
                         const std::vector<std::vector<Cut>> &buckets)
    : context_(context), device_(device), ordinal_(ordinal), model_(model) {
    std::size_t most_codes = 0, most_scales = 0;
    for (const std::vector<Cut> &bucket : buckets) {
        for (const Cut &cut : bucket) {
            const TrainerTensor &tensor = model.tensors()[cut.tensor];
            if (!tensor.fp8) continue;
            const fp8rt_quantize_desc &quantize = model.parameter_of(tensor).quantize;
            fp8rt_tensor scales{};
            fp8rt::check(fp8rt_weight_scales_layout(&quantize, 0, cut.rows, tensor.columns, &scales));
            most_codes = std::max(most_codes, static_cast<std::size_t>(cut.rows * tensor.columns));
            most_scales = std::max(most_scales, static_cast<std::size_t>(scales.bytes));
        }
    }
    codes_ = Buffer(device, most_codes);
    scales_ = Buffer(device, most_scales);
    sums_ = Buffer(device, model.tensors().size() * sizeof(fp8rt_fingerprint_sum));
}

void Expectation::clear() { device_.zero(sums_.data(), sums_.bytes()); }

void Expectation::add(const Cut &cut, const fp8rt_tensor &values) {
    const TrainerTensor &tensor = model_.tensors()[cut.tensor];
    const fp8rt_quantize_desc &quantize = model_.parameter_of(tensor).quantize;
    fp8rt_fingerprint_desc desc{};
    desc.struct_size = sizeof desc;
    desc.name = tensor.name.c_str();
    desc.first_block_row = cut.row / BLOCK;
    desc.scale_format = quantize.scale_format;
    auto *sum = reinterpret_cast<fp8rt_fingerprint_sum *>(sums_.data()) + cut.tensor;
    if (!tensor.fp8) {
        fp8rt::check(fp8rt_fingerprint_weight(context_.get(), &desc, &values, nullptr, sum, device_.stream()));
        return;
    }
    fp8rt_tensor codes = fp8rt::tensor(codes_.data(), FP8RT_DTYPE_E4M3, {cut.rows, tensor.columns}), scales{};
    fp8rt::check(fp8rt_weight_scales_layout(&quantize, 0, cut.rows, tensor.columns, &scales));
    scales.data = scales_.data();
    codes.device = scales.device = ordinal_;
    fp8rt::check(
        fp8rt_quantize_weight(context_.get(), &quantize, &values, &codes, &scales, nullptr, device_.stream()));
    fp8rt::check(fp8rt_fingerprint_weight(context_.get(), &desc, &codes, &scales, sum, device_.stream()));
}

std::vector<fp8rt_fingerprint> Expectation::read() const {
    std::vector<fp8rt_fingerprint> values(model_.tensors().size());
    fp8rt_fingerprint total{};
    fp8rt::check(fp8rt_fingerprint_read(context_.get(), reinterpret_cast<const fp8rt_fingerprint_sum *>(sums_.data()),
                                        static_cast<std::uint32_t>(values.size()), values.data(), &total,
                                        device_.stream()));
    return values;
}
