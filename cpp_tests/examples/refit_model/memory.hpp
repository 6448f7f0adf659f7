// Memory of the device that a refit runs on, host or GPU. A GPU is used through libcuda, opened at run time: this
// program is built without CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

class Device {
public:
    virtual ~Device() = default;

    // Throws std::bad_alloc or std::runtime_error. 256-byte aligned; on the host already touched, so that what is
    // measured later, time or growth, does not hold its first use.
    virtual void *allocate(std::size_t bytes) = 0;
    virtual void release(void *memory) noexcept = 0;
    // Host memory that the device reads without a copy of its own.
    virtual void *allocate_pinned(std::size_t bytes) = 0;
    virtual void release_pinned(void *memory) noexcept = 0;

    // Bytes that may still be allocated.
    virtual std::size_t free_bytes() const = 0;
    // Bytes in use: on a GPU those of the device, on the host the most that this process has had.
    virtual std::size_t used_bytes() const = 0;

    virtual void upload(void *to, const void *from, std::size_t bytes) = 0;
    virtual void download(void *to, const void *from, std::size_t bytes) = 0;
    virtual void zero(void *memory, std::size_t bytes) = 0;

    // NULL on the host.
    virtual void *stream() const = 0;
    // Between the two, milliseconds on the stream; stop waits for it.
    virtual void start() = 0;
    virtual double stop() = 0;
};

// `ordinal` -1: the host.
std::unique_ptr<Device> open_device(int ordinal);

// Memory that is given back.
class Buffer {
public:
    enum class Kind { kDevice, kPinned };

    Buffer() : memory_(nullptr, {nullptr, Kind::kDevice}) {}
    Buffer(Device &device, std::size_t bytes, Kind kind = Kind::kDevice)
        : bytes_(bytes), memory_(nullptr, {&device, kind}) {
        memory_.reset(kind == Kind::kPinned ? device.allocate_pinned(bytes) : device.allocate(bytes));
    }

    unsigned char *data() const { return static_cast<unsigned char *>(memory_.get()); }
    std::size_t bytes() const { return bytes_; }

private:
    struct Release {
        Device *device;
        Kind kind;
        void operator()(void *memory) const noexcept {
            kind == Kind::kPinned ? device->release_pinned(memory) : device->release(memory);
        }
    };

    std::size_t bytes_ = 0;
    std::unique_ptr<void, Release> memory_;
};
