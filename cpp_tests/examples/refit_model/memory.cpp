#include "memory.hpp"

#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace {

constexpr std::size_t ALIGNMENT = 256;

class Host : public Device {
public:
    void *allocate(std::size_t bytes) override { return ::operator new(bytes + 1, std::align_val_t{ALIGNMENT}); }
    void release(void *memory) override { ::operator delete(memory, std::align_val_t{ALIGNMENT}); }
    void *allocate_pinned(std::size_t bytes) override { return allocate(bytes); }
    void release_pinned(void *memory) override { release(memory); }
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
        if (result != 0) throw std::runtime_error(std::string(name) + " failed with CUDA error " + std::to_string(result));
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
    void release(void *memory) override { driver_.call("cuMemFree_v2", address_of(memory)); }
    void *allocate_pinned(std::size_t bytes) override {
        void *memory = nullptr;
        driver_.call("cuMemHostAlloc", &memory, bytes, 0u);
        return memory;
    }
    void release_pinned(void *memory) override { driver_.call("cuMemFreeHost", memory); }
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
