// An FP8 linear through the C++ header, compared with float.
// [readme]
#include <cmath>
#include <cstdio>
#include <fp8rt.hpp>
#include <memory>
#include <random>
#include <vector>

constexpr std::int64_t M = 16, N = 256, K = 512;

int main() try {
    std::vector<float> x(M * K), w(N * K), y(M * N);
    std::mt19937 generator;
    std::normal_distribution<float> normal;
    for (float &value : x) value = normal(generator);
    for (float &value : w) value = normal(generator);

    // Once for each weight: codes and scales.
    const fp8rt::Context context;  // host memory, all cores
    const fp8rt_tensor weight = fp8rt::tensor(w.data(), FP8RT_DTYPE_F32, {N, K});
    std::vector<std::uint8_t> code_bytes(N * K);
    const fp8rt_tensor codes = fp8rt::tensor(code_bytes.data(), FP8RT_DTYPE_E4M3, {N, K});
    fp8rt_tensor scales{};
    fp8rt::check(fp8rt_weight_scales_layout(nullptr, 0, N, K, &scales));
    std::vector<float> scale_values(scales.bytes / sizeof(float));
    scales.data = scale_values.data();
    fp8rt::check(fp8rt_quantize_weight(context.get(), nullptr, &weight, &codes, &scales, nullptr, nullptr));

    // Once for each shape: the plan. It holds no pointers.
    fp8rt_linear_desc desc = fp8rt::linear_desc();
    desc.max_m = M, desc.n = N, desc.k = K;
    desc.input_dtype = desc.output_dtype = FP8RT_DTYPE_F32;
    const fp8rt::LinearPlan plan(context, desc);

    // Once for each step: y = x . weight^T, with x quantized on the way.
    const std::size_t bytes = plan.workspace(M);
    std::size_t space = bytes + FP8RT_WORKSPACE_ALIGNMENT;
    std::vector<char> memory(space);
    void *workspace = memory.data();
    std::align(FP8RT_WORKSPACE_ALIGNMENT, bytes, workspace, space);
    const fp8rt_tensor input = fp8rt::tensor(x.data(), FP8RT_DTYPE_F32, {M, K});
    const fp8rt_tensor output = fp8rt::tensor(y.data(), FP8RT_DTYPE_F32, {M, N});
    fp8rt::check(fp8rt_linear(plan.get(), &input, &codes, &scales, nullptr, &output, workspace, bytes, nullptr));

    double gap = 0, size = 0;
    for (std::int64_t m = 0; m < M; ++m)
        for (std::int64_t n = 0; n < N; ++n) {
            double exact = 0;
            for (std::int64_t k = 0; k < K; ++k) exact += double{x[m * K + k]} * w[n * K + k];
            gap += (y[m * N + n] - exact) * (y[m * N + n] - exact);
            size += exact * exact;
        }
    std::printf("%s\nrelative error %.4f\n", plan.describe().c_str(), std::sqrt(gap / size));
    return std::sqrt(gap / size) < 0.06 ? 0 : 1;
} catch (const fp8rt::Error &failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
}
// [/readme]
