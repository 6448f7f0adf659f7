#include "memory.hpp"

#include <dlfcn.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

namespace {

constexpr std::size_t ALIGNMENT = 256;

class Host : public Device {
public:
    void *allocate(std::size_t bytes) override {
        return std::memset(::operator new(bytes + 1, std::align_val_t{ALIGNMENT}), 0, bytes + 1);
    }
    void release(void *memory) noexcept override { ::operator delete(memory, std::align_val_t{ALIGNMENT}); }
    void *allocate_pinned(std::size_t bytes) override { return allocate(bytes); }
    void release_pinned(void *memory) noexcept override { release(memory); }
    std::size_t free_bytes() const override {
        std::ifstream file("/proc/meminfo");
        for (std::string word; file >> word;) {
            std::size_t kib = 0;
            if (word == "MemAvailable:" && file >> kib) return kib << 10;
        }
        return std::numeric_limits<std::size_t>::max();
    }
    std::size_t used_bytes() const override {
        rusage usage{};
        getrusage(RUSAGE_SELF, &usage);
        return static_cast<std::size_t>(usage.ru_maxrss) << 10;
    }
    void upload(void *to, const void *from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
    void download(void *to, const void *from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
    void zero(void *memory, std::size_t bytes) override { std::memset(memory, 0, bytes); }
    void *stream() const override { return nullptr; }
    void start() override { begin_ = Clock::now(); }
    double stop() override { return std::chrono::duration<double, std::milli>(Clock::now() - begin_).count(); }

private:
    using Clock = std::chrono::steady_clock;

    Clock::time_point begin_;
};

// The functions of libcuda that are used, with the types of its interface.
struct Driver {
    Driver() : library(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
        if (library == nullptr) throw std::runtime_error(dlerror());
    }

    // Calls a function by its name, and throws what went wrong.
    template <class... Arguments>
    void call(const char *name, Arguments... arguments) const {
        using Function = int (*)(Arguments...);
        const auto function = reinterpret_cast<Function>(dlsym(library, name));
        if (function == nullptr) throw std::runtime_error(dlerror());
        const int result = function(arguments...);
        if (result != 0) throw std::runtime_error(std::string(name) + ": " + describe(result));
    }

    // Its number, and its name where libcuda tells it.
    std::string describe(int error) const {
        const auto name_of = reinterpret_cast<int (*)(int, const char **)>(dlsym(library, "cuGetErrorName"));
        const char *name = nullptr;
        if (name_of != nullptr) name_of(error, &name);
        return "CUDA error " + std::to_string(error) + (name == nullptr ? "" : std::string(", ") + name);
    }

    void *library;
};

using Address = unsigned long long;

Address address_of(const void *memory) { return reinterpret_cast<std::uintptr_t>(memory); }

class Gpu : public Device {
public:
    explicit Gpu(int ordinal) {
        driver_.call("cuInit", 0u);
        driver_.call("cuDeviceGet", &device_, ordinal);
        driver_.call("cuDevicePrimaryCtxRetain", &context_, device_);
        driver_.call("cuCtxSetCurrent", context_);
        driver_.call("cuStreamCreate", &stream_, 1u);  // CU_STREAM_NON_BLOCKING
        driver_.call("cuEventCreate", &begin_, 0u);
        driver_.call("cuEventCreate", &end_, 0u);
    }

    void *allocate(std::size_t bytes) override {
        Address address = 0;
        driver_.call("cuMemAlloc_v2", &address, bytes == 0 ? std::size_t{1} : bytes);
        return reinterpret_cast<void *>(static_cast<std::uintptr_t>(address));
    }
    // What failed before fails here again, and has been thrown already.
    void release(void *memory) noexcept override {
        try {
            driver_.call("cuMemFree_v2", address_of(memory));
        } catch (const std::runtime_error &) {
        }
    }
    void *allocate_pinned(std::size_t bytes) override {
        void *memory = nullptr;
        driver_.call("cuMemHostAlloc", &memory, bytes, 0u);
        return memory;
    }
    void release_pinned(void *memory) noexcept override {
        try {
            driver_.call("cuMemFreeHost", memory);
        } catch (const std::runtime_error &) {
        }
    }
    std::size_t free_bytes() const override { return memory_info().free; }
    std::size_t used_bytes() const override { return memory_info().total - memory_info().free; }
    // The stream does not wait for what is not on it, so these wait themselves.
    void upload(void *to, const void *from, std::size_t bytes) override {
        driver_.call("cuMemcpyHtoDAsync_v2", address_of(to), from, bytes, stream_);
        wait();
    }
    void download(void *to, const void *from, std::size_t bytes) override {
        driver_.call("cuMemcpyDtoHAsync_v2", to, address_of(from), bytes, stream_);
        wait();
    }
    void zero(void *memory, std::size_t bytes) override {
        driver_.call("cuMemsetD8Async", address_of(memory), static_cast<unsigned char>(0), bytes, stream_);
    }
    void *stream() const override { return stream_; }
    void start() override { driver_.call("cuEventRecord", begin_, stream_); }
    double stop() override {
        float milliseconds = 0;
        driver_.call("cuEventRecord", end_, stream_);
        wait();
        driver_.call("cuEventElapsedTime", &milliseconds, begin_, end_);
        return milliseconds;
    }

private:
    struct MemoryInfo {
        std::size_t free = 0, total = 0;
    };

    MemoryInfo memory_info() const {
        MemoryInfo info;
        driver_.call("cuMemGetInfo_v2", &info.free, &info.total);
        return info;
    }
    void wait() { driver_.call("cuStreamSynchronize", stream_); }

    Driver driver_;
    int device_ = 0;
    void *context_ = nullptr, *stream_ = nullptr, *begin_ = nullptr, *end_ = nullptr;
};

}  // namespace

std::unique_ptr<Device> open_device(int ordinal) {
    if (ordinal < 0) return std::make_unique<Host>();
    return std::make_unique<Gpu>(ordinal);
}
