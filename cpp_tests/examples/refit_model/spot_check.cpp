#include "spot_check.hpp"

#include <algorithm>

namespace {

constexpr std::int64_t BLOCK = 128;

std::size_t word_of(const fp8rt_tensor &scales, std::int64_t row, std::int64_t column) {
    return static_cast<std::size_t>(row * scales.stride[0] + column * scales.stride[1]);
}

}  // namespace

SpotCheck::Result SpotCheck::run(int step) const {
    Result result;
    for (std::size_t index = 0; index < model_.tensors().size(); ++index) {
        const TrainerTensor &tensor = model_.tensors()[index];
        const std::int64_t row = (tensor.rows - 1) / BLOCK * BLOCK;
        const Cut last{index, row, tensor.rows - row, 0};
        std::vector<unsigned char> values(static_cast<std::size_t>(2 * last.rows * tensor.columns));
        values_.fill(values.data(), tensor, last, step);
        if (!is_right(tensor, row, values, result.bytes)) result.different.push_back(tensor.name);
    }
    return result;
}

bool SpotCheck::is_right(const TrainerTensor &tensor, std::int64_t row, const std::vector<unsigned char> &values,
                         std::size_t &bytes) const {
    const Parameter &parameter = model_.parameter_of(tensor);
    const std::int64_t rows = tensor.rows - row, row_bytes = tensor.columns * (tensor.fp8 ? 1 : 2);
    std::vector<unsigned char> got(static_cast<std::size_t>(rows * row_bytes));
    device_.download(got.data(), parameter.codes.data() + (tensor.first_row + row) * row_bytes, got.size());
    bytes += got.size();
    if (!tensor.fp8) return got == values;

    std::vector<unsigned char> want(got.size());
    const fp8rt_tensor weight = fp8rt::tensor(values.data(), FP8RT_DTYPE_BF16, {rows, tensor.columns});
    const fp8rt_tensor codes = fp8rt::tensor(want.data(), FP8RT_DTYPE_E4M3, {rows, tensor.columns});
    fp8rt_tensor scales{};
    fp8rt::check(fp8rt_weight_scales_layout(&parameter.quantize, 0, rows, tensor.columns, &scales));
    std::vector<std::uint32_t> want_scales(static_cast<std::size_t>(scales.bytes) / sizeof(std::uint32_t));
    scales.data = want_scales.data();
    fp8rt::check(fp8rt_quantize_weight(host_.get(), &parameter.quantize, &weight, &codes, &scales, nullptr, nullptr));

    const std::vector<std::uint32_t> got_scales = scales_of(tensor, row, scales);
    bytes += static_cast<std::size_t>(scales.shape[0] * scales.shape[1]) * sizeof(std::uint32_t);
    return got == want && got_scales == want_scales;
}

std::vector<std::uint32_t> SpotCheck::scales_of(const TrainerTensor &tensor, std::int64_t row,
                                                const fp8rt_tensor &like) const {
    const Parameter &parameter = model_.parameter_of(tensor);
    std::vector<std::uint32_t> all(parameter.scales.bytes() / sizeof(std::uint32_t));
    device_.download(all.data(), parameter.scales.data(), all.size() * sizeof(std::uint32_t));
    const bool packed = parameter.quantize.scale_format == FP8RT_SCALE_FORMAT_UE8M0_PACKED;
    const std::int64_t first = tensor.first_scale_row + (packed ? row : row / BLOCK);
    // Padding between columns is 0 on the host too.
    std::vector<std::uint32_t> some(static_cast<std::size_t>(like.bytes) / sizeof(std::uint32_t));
    for (std::int64_t i = 0; i < like.shape[0]; ++i) {
        for (std::int64_t j = 0; j < like.shape[1]; ++j) {
            some[word_of(like, i, j)] = all[word_of(parameter.scales_view, first + i, j)];
        }
    }
    return some;
}
