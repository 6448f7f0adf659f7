// Opens the library at run time: nothing is linked, and a machine without it gets a message.
// [readme]
#include <dlfcn.h>
#include <fp8rt.h>

#include <cstdio>

template <class Function>
bool load(void *library, const char *name, Function &function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
}

int main(int count, char **arguments) {
    void *library = dlopen(count > 1 ? arguments[1] : "libfp8rt.so.0", RTLD_NOW | RTLD_LOCAL);
    decltype(&fp8rt_abi_version) abi_version;
    decltype(&fp8rt_weight_scales_layout) weight_scales_layout;
    decltype(&fp8rt_last_error) last_error;
    if (library == nullptr || !load(library, "fp8rt_abi_version", abi_version)) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    if (abi_version() != FP8RT_ABI_VERSION || !load(library, "fp8rt_last_error", last_error) ||
        !load(library, "fp8rt_weight_scales_layout", weight_scales_layout)) {
        std::fprintf(stderr, "another libfp8rt than this program was built for\n");
        return 1;
    }
    fp8rt_tensor scales{};
    if (weight_scales_layout(nullptr, 0, 4096, 7168, &scales) != FP8RT_STATUS_OK) {
        std::fprintf(stderr, "%s\n", last_error());
        return 1;
    }
    std::printf("a weight of 4096x7168 has %lldx%lld scales\n", static_cast<long long>(scales.shape[0]),
                static_cast<long long>(scales.shape[1]));
    return 0;
}
// [/readme]
