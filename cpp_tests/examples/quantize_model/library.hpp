// libfp8rt.so, opened at run time: this program links nothing of it.
#pragma once

#include <fp8rt.h>

#include <string>

struct Library {
    // An empty path: FP8RT_LIBRARY, else beside this program, else where the system looks.
    explicit Library(const std::string &path);

    // Throws what fp8rt_last_error says if `status` is not OK.
    void check(fp8rt_status status, const std::string &what) const;

    std::string path;  // of the file that was opened
    decltype(&fp8rt_abi_version) abi_version;
    decltype(&fp8rt_build_info) build_info;
    decltype(&fp8rt_last_error) last_error;
    decltype(&fp8rt_status_name) status_name;
    decltype(&fp8rt_context_create) context_create;
    decltype(&fp8rt_context_destroy) context_destroy;
    decltype(&fp8rt_context_query) context_query;
    decltype(&fp8rt_weight_scales_layout) weight_scales_layout;
    decltype(&fp8rt_quantize_weight) quantize_weight;
    decltype(&fp8rt_dequantize_weight) dequantize_weight;
    decltype(&fp8rt_linear_plan_create) linear_plan_create;
    decltype(&fp8rt_linear_plan_destroy) linear_plan_destroy;
    decltype(&fp8rt_linear_plan_workspace) linear_plan_workspace;
    decltype(&fp8rt_linear) linear;
};
