// Device memory, pinned memory, copies, and what is known of a pointer.

#include <algorithm>
#include <cstring>

#include <sys/mman.h>
#include <unistd.h>

#include "recording.hpp"

using namespace fake_cuda;

namespace {

constexpr std::size_t kMostBytes = std::size_t{80} << 30;

std::uint64_t number(const void *pointer) { return reinterpret_cast<std::uintptr_t>(pointer); }

// The same pages twice: once for the host to look at, once as the device pointer, which faults on the host.
CUresult allocate_on_device(CUdeviceptr *pointer, std::size_t bytes) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (bytes > kMostBytes) return CUDA_ERROR_OUT_OF_MEMORY;
  const int file = memfd_create("fake_cuda", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) return CUDA_ERROR_OUT_OF_MEMORY;
  void *view = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  void *base = mmap(nullptr, bytes, PROT_NONE, MAP_SHARED, file, 0);
  close(file);
  if (view == MAP_FAILED || base == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  state().allocations.push_back({number(base), bytes, current(), true, static_cast<std::uint8_t *>(view)});
  *pointer = number(base);
  return CUDA_SUCCESS;
}

CUresult allocate_on_host(void **pointer, std::size_t bytes) {
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  void *pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  state().allocations.push_back({number(pages), bytes, current(), false, static_cast<std::uint8_t *>(pages)});
  *pointer = pages;
  return CUDA_SUCCESS;
}

CUresult release(std::uint64_t base, bool on_device) {
  auto &allocations = state().allocations;
  const auto matches = [&](const Allocation &a) { return a.base == base && a.on_device == on_device; };
  const auto found = std::find_if(allocations.begin(), allocations.end(), matches);
  if (found == allocations.end()) return CUDA_ERROR_INVALID_VALUE;
  munmap(found->view, found->bytes);
  if (on_device) munmap(reinterpret_cast<void *>(found->base), found->bytes);
  allocations.erase(found);
  return CUDA_SUCCESS;
}

// Where the host finds a range of device memory, NULL if it is none.
std::uint8_t *device_bytes(std::uint64_t address, std::size_t bytes) {
  const Allocation *a = find_allocation(address, bytes);
  return a == nullptr || !a->on_device ? nullptr : a->view + (address - a->base);
}

CUresult copy(void *to, const void *from, std::size_t bytes) {
  if (bytes == 0) return CUDA_SUCCESS;
  if (to == nullptr || from == nullptr) return CUDA_ERROR_INVALID_VALUE;
  std::memmove(to, from, bytes);
  return CUDA_SUCCESS;
}

CUresult fill(CUdeviceptr to, std::uint32_t value, std::size_t element, std::size_t count) {
  std::uint8_t *bytes = device_bytes(to, element * count);
  if (bytes == nullptr) return count == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  for (std::size_t i = 0; i < count; ++i) std::memcpy(bytes + i * element, &value, element);
  return CUDA_SUCCESS;
}

// Where the host finds a range of the memory that one side of a copy of rows names; NULL if it is none.
std::uint8_t *rows_of(CUmemorytype kind, const void *host, CUdeviceptr device, std::size_t bytes) {
  if (kind == CU_MEMORYTYPE_DEVICE) return device_bytes(device, bytes);
  return kind == CU_MEMORYTYPE_HOST ? static_cast<std::uint8_t *>(const_cast<void *>(host)) : nullptr;
}

CUresult copy_rows(const CUDA_MEMCPY2D &c) {
  if (c.WidthInBytes == 0 || c.Height == 0) return CUDA_SUCCESS;
  const std::size_t most = std::size_t{1} << 31;
  if (c.srcPitch < c.WidthInBytes || c.dstPitch < c.WidthInBytes || c.srcPitch >= most || c.dstPitch >= most) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (c.srcXInBytes != 0 || c.srcY != 0 || c.dstXInBytes != 0 || c.dstY != 0) return CUDA_ERROR_NOT_SUPPORTED;
  const std::size_t last = c.Height - 1;
  const std::uint8_t *from = rows_of(c.srcMemoryType, c.srcHost, c.srcDevice, last * c.srcPitch + c.WidthInBytes);
  std::uint8_t *to = rows_of(c.dstMemoryType, c.dstHost, c.dstDevice, last * c.dstPitch + c.WidthInBytes);
  if (from == nullptr || to == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (std::size_t row = 0; row < c.Height; ++row) {
    std::memcpy(to + row * c.dstPitch, from + row * c.srcPitch, c.WidthInBytes);
  }
  return CUDA_SUCCESS;
}

// Work enqueued on a stream.
template <class Body>
CUresult enqueue(const char *function, CUstream stream, Arguments arguments, Body body) {
  return record(function, Needs::kContext, arguments, [&](fake_cuda_call &call) {
    if (usable(stream)) return body();
    call.violation = "a stream of another context, or of none";
    return CUDA_ERROR_INVALID_HANDLE;
  });
}

template <class T>
void store(void *data, T value) {
  std::memcpy(data, &value, sizeof value);
}

CUresult describe(void *data, CUpointer_attribute attribute, std::uint64_t address, const Allocation &a) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return store(data, a.context), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return store(data, static_cast<unsigned int>(a.on_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST)),
             CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return store(data, address), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
      if (a.on_device) return CUDA_ERROR_INVALID_VALUE;
      return store(data, address), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return store(data, false), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return store(data, a.context->device), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
      return store(data, a.base), CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
      return store(data, a.bytes), CUDA_SUCCESS;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

// What cuPointerGetAttributes gives for memory that CUDA does not know.
void describe_unknown(void *data, CUpointer_attribute attribute) {
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      return store(data, 0u);
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
      return store(data, false);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return store(data, -2);
    default:
      return store(data, std::uint64_t{0});
  }
}

std::size_t live(bool on_device) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const auto &all = state().allocations;
  return static_cast<std::size_t>(
      std::count_if(all.begin(), all.end(), [&](const Allocation &a) { return a.on_device == on_device; }));
}

}  // namespace

CUresult cuMemAlloc(CUdeviceptr *pointer, size_t bytes) {
  return record(__func__, Needs::kContextWithoutCapture, {pointer, bytes},
                [&](fake_cuda_call &) { return allocate_on_device(pointer, bytes); });
}

CUresult cuMemFree(CUdeviceptr pointer) {
  return record(__func__, Needs::kContextWithoutCapture, {pointer},
                [&](fake_cuda_call &) { return pointer == 0 ? CUDA_SUCCESS : release(pointer, true); });
}

CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream) {
  return enqueue(__func__, stream, {pointer, bytes, stream}, [&] { return allocate_on_device(pointer, bytes); });
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
  return enqueue(__func__, stream, {pointer, stream}, [&] { return release(pointer, true); });
}

CUresult cuMemAllocHost(void **pointer, size_t bytes) {
  return record(__func__, Needs::kContextWithoutCapture, {pointer, bytes},
                [&](fake_cuda_call &) { return allocate_on_host(pointer, bytes); });
}

CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned int flags) {
  return record(__func__, Needs::kContextWithoutCapture, {pointer, bytes, flags},
                [&](fake_cuda_call &) { return allocate_on_host(pointer, bytes); });
}

CUresult cuMemFreeHost(void *pointer) {
  return record(__func__, Needs::kContextWithoutCapture, {pointer},
                [&](fake_cuda_call &) { return release(number(pointer), false); });
}

CUresult cuMemGetInfo(size_t *free_bytes, size_t *bytes) {
  return record(__func__, Needs::kContext, {free_bytes, bytes}, [&](fake_cuda_call &) {
    *free_bytes = *bytes = kMostBytes;
    return CUDA_SUCCESS;
  });
}

CUresult cuMemGetAddressRange(CUdeviceptr *base, size_t *bytes, CUdeviceptr pointer) {
  return record(__func__, Needs::kContext, {base, bytes, pointer}, [&](fake_cuda_call &) {
    const Allocation *a = find_allocation(pointer);
    if (a == nullptr || !a->on_device) return CUDA_ERROR_NOT_FOUND;
    if (base != nullptr) *base = a->base;
    if (bytes != nullptr) *bytes = a->bytes;
    return CUDA_SUCCESS;
  });
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t bytes) {
  return record(__func__, Needs::kContextWithoutCapture, {to, from, bytes},
                [&](fake_cuda_call &) { return copy(device_bytes(to, bytes), from, bytes); });
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t bytes) {
  return record(__func__, Needs::kContextWithoutCapture, {to, from, bytes},
                [&](fake_cuda_call &) { return copy(to, device_bytes(from, bytes), bytes); });
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
  return enqueue(__func__, stream, {to, from, bytes, stream},
                 [&] { return copy(device_bytes(to, bytes), from, bytes); });
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return enqueue(__func__, stream, {to, from, bytes, stream},
                 [&] { return copy(to, device_bytes(from, bytes), bytes); });
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  return enqueue(__func__, stream, {to, from, bytes, stream},
                 [&] { return copy(device_bytes(to, bytes), device_bytes(from, bytes), bytes); });
}

// The arguments that are remembered: where to, where from, bytes of a row, rows, stream.
CUresult cuMemcpy2DAsync(const CUDA_MEMCPY2D *c, CUstream stream) {
  const std::uint64_t from = c->srcMemoryType == CU_MEMORYTYPE_DEVICE ? c->srcDevice : number(c->srcHost);
  return enqueue(__func__, stream, {c->dstDevice, from, c->WidthInBytes, c->Height, stream},
                 [&] { return copy_rows(*c); });
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  return enqueue(__func__, stream, {to, value, count, stream}, [&] { return fill(to, value, 1, count); });
}

CUresult cuMemsetD32Async(CUdeviceptr to, unsigned int value, size_t count, CUstream stream) {
  return enqueue(__func__, stream, {to, value, count, stream}, [&] { return fill(to, value, 4, count); });
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  return record(__func__, Needs::kInit, {data, static_cast<int>(attribute), pointer}, [&](fake_cuda_call &) {
    const Allocation *a = find_allocation(pointer);
    return a == nullptr ? CUDA_ERROR_INVALID_VALUE : describe(data, attribute, pointer, *a);
  });
}

CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **data,
                                CUdeviceptr pointer) {
  return record(__func__, Needs::kInit, {count, attributes, data, pointer}, [&](fake_cuda_call &) {
    const Allocation *a = find_allocation(pointer);
    for (unsigned int i = 0; i < count; ++i) {
      if (a == nullptr || describe(data[i], attributes[i], pointer, *a) != CUDA_SUCCESS) {
        describe_unknown(data[i], attributes[i]);
      }
    }
    return CUDA_SUCCESS;
  });
}

size_t fake_cuda_live_allocations(void) { return live(true); }
size_t fake_cuda_live_host_allocations(void) { return live(false); }

void *fake_cuda_host_view(uint64_t device_pointer) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return device_bytes(device_pointer, 1);
}
