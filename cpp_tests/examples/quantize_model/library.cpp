#include "library.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "error.hpp"

namespace {

std::string find_library() {
    const char *named = std::getenv("FP8RT_LIBRARY");
    if (named != nullptr && *named != '\0') return named;
    std::error_code no_program;
    const auto program = std::filesystem::read_symlink("/proc/self/exe", no_program);
    for (const char *name : {"libfp8rt.so.0", "libfp8rt.so"}) {
        const auto beside = program.parent_path() / name;
        if (!no_program && ::access(beside.c_str(), R_OK) == 0) return beside.string();
    }
    return "libfp8rt.so.0";
}

// The handle is never closed: the library stays for the life of the process.
void *open_library(const std::string &path) {
    void *handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw Error("cannot open the library " + path + ": " + ::dlerror());
    return handle;
}

template <class Function>
void load(void *handle, const std::string &path, const char *name, Function &function) {
    void *address = ::dlsym(handle, name);
    if (address == nullptr) throw Error(path + " has no function " + name);
    function = reinterpret_cast<Function>(address);
}

}  // namespace

Library::Library(const std::string &wanted) : path(wanted.empty() ? find_library() : wanted) {
    void *handle = open_library(path);
    // The version first: with another one, no other name means what this header says.
    load(handle, path, "fp8rt_abi_version", abi_version);
    if (abi_version() != FP8RT_ABI_VERSION) {
        throw Error(path + " has ABI version " + std::to_string(abi_version()) + ", this program needs " +
                    std::to_string(FP8RT_ABI_VERSION));
    }
    load(handle, path, "fp8rt_build_info", build_info);
    load(handle, path, "fp8rt_last_error", last_error);
    load(handle, path, "fp8rt_status_name", status_name);
    load(handle, path, "fp8rt_context_create", context_create);
    load(handle, path, "fp8rt_context_destroy", context_destroy);
    load(handle, path, "fp8rt_context_query", context_query);
    load(handle, path, "fp8rt_weight_scales_layout", weight_scales_layout);
    load(handle, path, "fp8rt_quantize_weight", quantize_weight);
    load(handle, path, "fp8rt_dequantize_weight", dequantize_weight);
    load(handle, path, "fp8rt_linear_plan_create", linear_plan_create);
    load(handle, path, "fp8rt_linear_plan_destroy", linear_plan_destroy);
    load(handle, path, "fp8rt_linear_plan_workspace", linear_plan_workspace);
    load(handle, path, "fp8rt_linear", linear);
}

void Library::check(fp8rt_status status, const std::string &what) const {
    if (status == FP8RT_STATUS_OK) return;
    throw Error(what + ": " + last_error() + " (" + status_name(static_cast<std::int32_t>(status)) + ")");
}
