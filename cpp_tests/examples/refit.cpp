// New weights into a running model, by name and in buckets, on host memory.
// [readme]
#include <cstdio>
#include <fp8rt.hpp>
#include <string>
#include <vector>

constexpr std::int64_t HIDDEN = 512, HEADS = 576, GROUPS = 192;  // rows of q, and of k and v

int main() try {
    const fp8rt::Context context;  // host memory, all cores

    // The running model: parameters at addresses that stay. q, k and v are one weight, with a grid of blocks each.
    std::vector<std::uint8_t> code_bytes((HEADS + 2 * GROUPS) * HIDDEN);
    std::vector<std::uint16_t> norm(HIDDEN);
    const std::int64_t parts[] = {HEADS, GROUPS, GROUPS};
    fp8rt_quantize_desc layout = fp8rt::quantize_desc();
    layout.part_rows = parts, layout.num_parts = 3;
    fp8rt_tensor scales{};
    fp8rt::check(fp8rt_weight_scales_layout(&layout, 0, HEADS + 2 * GROUPS, HIDDEN, &scales));
    std::vector<float> scale_values(scales.bytes / sizeof(float));
    scales.data = scale_values.data();
    const fp8rt_tensor codes =
        fp8rt::tensor(code_bytes.data(), FP8RT_DTYPE_E4M3, {HEADS + 2 * GROUPS, HIDDEN});
    fp8rt_refit_destination qkv = fp8rt::refit_destination("layers.0.qkv_proj.weight", codes, scales);
    qkv.part_rows = parts, qkv.num_parts = 3;
    const fp8rt_tensor kept = fp8rt::tensor(norm.data(), FP8RT_DTYPE_BF16, {HIDDEN});
    const fp8rt_refit_destination input_norm = fp8rt::refit_destination("layers.0.input_layernorm.weight", kept);

    // What the trainer calls them, and where each goes: expert, row and column of source and destination, and extents.
    const std::vector<fp8rt_refit_region> regions = {
        {"layers.0.q_proj.weight", 0, 0, {0, 0, 0}, {1, HEADS, HIDDEN}, {0, 0, 0}},
        {"layers.0.k_proj.weight", 0, 0, {0, 0, 0}, {1, GROUPS, HIDDEN}, {0, HEADS, 0}},
        {"layers.0.v_proj.weight", 0, 0, {0, 0, 0}, {1, GROUPS, HIDDEN}, {0, HEADS + GROUPS, 0}}};
    fp8rt::Refit refit(context, {qkv, input_norm}, regions);

    for (int step = 1; step <= 2; ++step) {
        // A tensor of the trainer; 0x3F80 is 1.0 in bfloat16. Large ones may come in cuts that begin on a block.
        const std::vector<std::uint16_t> values(HEADS * HIDDEN, static_cast<std::uint16_t>(0x3F80 + step));
        const auto item = [&](const char *name, std::int64_t rows) {
            return fp8rt::refit_item(name, fp8rt::tensor(values.data(), FP8RT_DTYPE_BF16, {rows, HIDDEN}));
        };
        fp8rt_refit_item rest = item("layers.0.q_proj.weight", HEADS - 256);
        rest.first_row = 256;
        fp8rt_health health{};
        refit.begin();
        refit.run({item("layers.0.v_proj.weight", GROUPS), rest}, &health);
        if (fp8rt_refit_finish(refit.get(), 0, nullptr) != FP8RT_STATUS_OK) std::printf("%s\n", fp8rt_last_error());
        refit.run({item("layers.0.input_layernorm.weight", 1), item("layers.0.k_proj.weight", GROUPS),
                   item("layers.0.q_proj.weight", 256)},
                  &health);
        const fp8rt_refit_receipt receipt = refit.finish();  // throws, and names it, if anything is missing
        std::printf("refit %d: %u parameters, %llu bytes written, %llu values not finite\n", step,
                    receipt.destinations_filled, static_cast<unsigned long long>(receipt.bytes_written),
                    static_cast<unsigned long long>(health.non_finite));
    }
    return 0;
} catch (const fp8rt::Error &failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
}
// [/readme]
