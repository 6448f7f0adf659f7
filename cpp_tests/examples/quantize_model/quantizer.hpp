// The library at work on one weight.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint.hpp"
#include "library.hpp"
#include "reference.hpp"

// A tensor as the library takes it. Its data in a file may begin at any byte: then it is copied.
class AlignedWeight {
public:
    explicit AlignedWeight(const Tensor &tensor);
    const Weight &view() const { return weight_; }

private:
    Weight weight_;
    std::vector<float> copy_;  // float for its alignment
};

struct Quantized {
    std::vector<std::uint8_t> codes;  // [N, K]
    std::vector<float> scales;        // [ceil(N/128), ceil(K/128)]
    fp8rt_health health{};
};

class Quantizer {
public:
    Quantizer(const Library &library, std::uint32_t recipe, bool pow2, std::uint32_t threads);
    ~Quantizer();
    Quantizer(const Quantizer &) = delete;
    Quantizer &operator=(const Quantizer &) = delete;

    std::uint32_t threads() const { return threads_; }
    std::uint32_t recipe() const { return desc_.recipe; }
    bool pow2() const { return desc_.scale_format == FP8RT_SCALE_FORMAT_POW2; }

    Quantized quantize(const Weight &weight) const;
    // Seconds of the best of a few runs that give `result` again.
    double time(const Weight &weight, Quantized &result) const;
    // Relative error of the dequantized weight. Needs little memory, however large the weight is.
    double error(const Weight &weight, const Quantized &quantized) const;
    // The FP8 linear of x [rows, K], float32 in and out. Result [rows, N].
    std::vector<float> linear(const Weight &weight, const Quantized &quantized, const std::vector<float> &x,
                              std::int64_t rows) const;

private:
    fp8rt_tensor scales_view(const Weight &weight, const float *scales) const;
    void dequantize(const Weight &weight, const std::uint8_t *codes, const float *scales,
                    std::vector<float> &values) const;
    void run(const Weight &weight, Quantized &result, fp8rt_health *health) const;

    const Library &library_;
    fp8rt_context *context_ = nullptr;
    fp8rt_quantize_desc desc_{};
    std::uint32_t threads_ = 0;
};
