#include "quantizer.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <memory>

#include "error.hpp"

namespace {

constexpr std::int64_t BLOCK = 128;
constexpr std::int64_t STRIPE = 8 * BLOCK;  // rows that are dequantized at once

// The C ABI takes inputs and outputs through one struct: `data` is written only where the function says so.
template <class Element>
fp8rt_tensor matrix(const Element *data, std::uint64_t bytes, std::uint32_t dtype, std::int64_t rows,
                    std::int64_t columns) {
    fp8rt_tensor tensor{};
    tensor.data = const_cast<Element *>(data);
    tensor.bytes = bytes;
    tensor.dtype = dtype;
    tensor.device = -1;
    tensor.rank = 2;
    tensor.shape[0] = rows;
    tensor.shape[1] = columns;
    tensor.stride[0] = columns;
    tensor.stride[1] = 1;
    return tensor;
}

template <class Element>
fp8rt_tensor matrix(const std::vector<Element> &data, std::uint32_t dtype, std::int64_t rows, std::int64_t columns) {
    return matrix(data.data(), data.size() * sizeof(Element), dtype, rows, columns);
}

fp8rt_tensor weight_view(const Weight &weight) {
    return matrix(weight.data, weight.bytes, weight.dtype, weight.rows, weight.columns);
}

fp8rt_tensor codes_view(const Weight &weight, const Quantized &quantized) {
    return matrix(quantized.codes, FP8RT_DTYPE_E4M3, weight.rows, weight.columns);
}

std::uint32_t float_dtype(const std::string &name) {
    if (name == "F32") return FP8RT_DTYPE_F32;
    return name == "F16" ? FP8RT_DTYPE_F16 : FP8RT_DTYPE_BF16;
}

// A plan, destroyed at the end of its scope.
class Plan {
public:
    Plan(const Library &library, fp8rt_context *context, const fp8rt_linear_desc &desc) : library_(library) {
        library.check(library.linear_plan_create(context, &desc, &plan_), "planning the linear");
    }
    ~Plan() { library_.linear_plan_destroy(plan_); }
    Plan(const Plan &) = delete;
    Plan &operator=(const Plan &) = delete;

    fp8rt_linear_plan *get() const { return plan_; }

    std::uint64_t workspace_bytes(std::int64_t rows) const {
        std::uint64_t bytes = 0;
        library_.check(library_.linear_plan_workspace(plan_, rows, &bytes), "asking for the workspace");
        return bytes;
    }

private:
    const Library &library_;
    fp8rt_linear_plan *plan_ = nullptr;
};

}  // namespace

AlignedWeight::AlignedWeight(const Tensor &tensor) {
    const std::uint64_t bytes = tensor.bytes();
    weight_ = {static_cast<std::int64_t>(tensor.info->shape[0]), static_cast<std::int64_t>(tensor.info->shape[1]),
               float_dtype(tensor.info->dtype), bytes, tensor.data};
    if (reinterpret_cast<std::uintptr_t>(tensor.data) % (tensor.info->bits / 8) == 0) return;
    copy_.resize((bytes + sizeof(float) - 1) / sizeof(float));
    std::memcpy(copy_.data(), tensor.data, bytes);
    weight_.data = reinterpret_cast<const std::uint8_t *>(copy_.data());
}

Quantizer::Quantizer(const Library &library, std::uint32_t recipe, bool pow2, std::uint32_t threads)
    : library_(library) {
    desc_.struct_size = sizeof desc_;
    desc_.recipe = recipe;
    desc_.scale_format = pow2 ? FP8RT_SCALE_FORMAT_POW2 : FP8RT_SCALE_FORMAT_FP32;
    fp8rt_context_desc context{};
    context.struct_size = sizeof context;
    context.device = -1;
    context.num_threads = threads;
    library_.check(library_.context_create(&context, &context_), "making a context");
    library_.check(library_.context_query(context_, nullptr, &threads_), "asking the context");
}

Quantizer::~Quantizer() { library_.context_destroy(context_); }

fp8rt_tensor Quantizer::scales_view(const Weight &weight, const float *scales) const {
    fp8rt_tensor layout{};
    library_.check(library_.weight_scales_layout(&desc_, 0, weight.rows, weight.columns, &layout),
                   "asking for the shape of the scales");
    layout.data = const_cast<float *>(scales);
    return layout;
}

void Quantizer::run(const Weight &weight, Quantized &result, fp8rt_health *health) const {
    const fp8rt_tensor input = weight_view(weight);
    const fp8rt_tensor codes = codes_view(weight, result);
    const fp8rt_tensor scales = scales_view(weight, result.scales.data());
    library_.check(library_.quantize_weight(context_, &desc_, &input, &codes, &scales, health, nullptr),
                   "quantizing");
}

Quantized Quantizer::quantize(const Weight &weight) const {
    Quantized result;
    result.codes.resize(static_cast<std::size_t>(weight.rows * weight.columns));
    result.scales.resize(scales_view(weight, nullptr).bytes / sizeof(float));
    run(weight, result, &result.health);
    return result;
}

double Quantizer::time(const Weight &weight, Quantized &result) const {
    using Clock = std::chrono::steady_clock;
    double best = std::numeric_limits<double>::infinity();
    for (int repeat = 0; repeat < 5; ++repeat) {
        const auto start = Clock::now();
        run(weight, result, nullptr);
        best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
    }
    return best;
}

void Quantizer::dequantize(const Weight &weight, const std::uint8_t *codes, const float *scales,
                           std::vector<float> &values) const {
    const auto count = static_cast<std::size_t>(weight.rows * weight.columns);
    values.resize(count);
    const fp8rt_tensor input = matrix(codes, count, FP8RT_DTYPE_E4M3, weight.rows, weight.columns);
    const fp8rt_tensor input_scales = scales_view(weight, scales);
    const fp8rt_tensor output = matrix(values, FP8RT_DTYPE_F32, weight.rows, weight.columns);
    library_.check(library_.dequantize_weight(context_, &desc_, &input, &input_scales, &output, nullptr),
                   "dequantizing");
}

double Quantizer::error(const Weight &weight, const Quantized &quantized) const {
    const std::int64_t block_columns = (weight.columns + BLOCK - 1) / BLOCK;
    ErrorSums sums;
    std::vector<float> values;
    for (std::int64_t first = 0; first < weight.rows; first += STRIPE) {
        const Weight stripe = weight.stripe(first, STRIPE);
        dequantize(stripe, quantized.codes.data() + first * weight.columns,
                   quantized.scales.data() + first / BLOCK * block_columns, values);
        sums.add(weight_error(values, stripe, threads_));
    }
    return sums.ratio();
}

std::vector<float> Quantizer::linear(const Weight &weight, const Quantized &quantized, const std::vector<float> &x,
                                     std::int64_t rows) const {
    fp8rt_linear_desc desc{};
    desc.struct_size = sizeof desc;
    desc.max_m = rows;
    desc.n = weight.rows;
    desc.k = weight.columns;
    desc.input_dtype = desc.output_dtype = FP8RT_DTYPE_F32;
    desc.activation_scale_format = desc.weight_scale_format = desc_.scale_format;
    const Plan plan(library_, context_, desc);
    const std::uint64_t bytes = plan.workspace_bytes(rows);
    const std::size_t padded = bytes + FP8RT_WORKSPACE_ALIGNMENT;
    std::vector<std::uint8_t> memory(padded);
    void *workspace = memory.data();
    std::size_t space = padded;
    std::align(FP8RT_WORKSPACE_ALIGNMENT, bytes, workspace, space);

    std::vector<float> y(static_cast<std::size_t>(rows * weight.rows));
    const fp8rt_tensor input = matrix(x, FP8RT_DTYPE_F32, rows, weight.columns);
    const fp8rt_tensor codes = codes_view(weight, quantized);
    const fp8rt_tensor scales = scales_view(weight, quantized.scales.data());
    const fp8rt_tensor output = matrix(y, FP8RT_DTYPE_F32, rows, weight.rows);
    library_.check(library_.linear(plan.get(), &input, &codes, &scales, nullptr, &output, workspace, bytes, nullptr),
                   "the FP8 linear");
    return y;
}
