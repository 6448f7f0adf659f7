#include "state.hpp"

#include <algorithm>

namespace fake_cuda {

State &state() {
  static State *const only = [] {
    auto *made = new State;
    for (int device = 0; device < kDevices; ++device) made->contexts[device] = {device, 0};
    set_default_attributes(*made);
    return made;
  }();
  return *only;
}

// An H100.
void set_default_attributes(State &s) {
  for (auto &attributes : s.attributes) {
    attributes.fill(0);
    attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] = 9;
    attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR] = 0;
    attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT] = 132;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK] = 1024;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR] = 2048;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK] = 48 * 1024;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] = 227 * 1024;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] = 228 * 1024;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X] = 2147483647;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y] = 65535;
    attributes[CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z] = 65535;
    attributes[CU_DEVICE_ATTRIBUTE_WARP_SIZE] = 32;
    attributes[CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING] = 1;
    attributes[CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT] = 3;
    attributes[CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED] = 1;
    attributes[CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH] = 1;
    attributes[CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH] = 1;
    attributes[CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE] = 50 << 20;
    attributes[CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED] = 1;
  }
}

CUstreamCaptureMode &capture_mode() {
  thread_local CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  return mode;
}

bool any_capture() {
  const State &s = state();
  const auto capturing = [](const auto &stream) { return stream->capturing; };
  return std::any_of(s.streams.begin(), s.streams.end(), capturing) || s.default_capturing[0] ||
         s.default_capturing[1] || s.default_capturing[2];
}

template <class Object, class Handle>
static Object *find(const std::vector<std::unique_ptr<Object>> &objects, Handle handle) {
  for (const auto &object : objects) {
    if (static_cast<void *>(object.get()) == static_cast<void *>(handle)) return object.get();
  }
  return nullptr;
}

Function *find_function(CUfunction handle) {
  for (const auto &module : state().modules) {
    if (Function *function = find(module->functions, handle)) return function;
  }
  return nullptr;
}

Module *find_module(CUmodule handle) { return find(state().modules, handle); }
Stream *find_stream(CUstream handle) { return find(state().streams, handle); }
Event *find_event(CUevent handle) { return find(state().events, handle); }

bool is_default_stream(CUstream handle) {
  return handle == nullptr || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD;
}

bool usable(CUstream handle) {
  if (is_default_stream(handle)) return true;
  const Stream *stream = find_stream(handle);
  return stream != nullptr && stream->context == current();
}

const Allocation *find_allocation(std::uint64_t address, std::size_t bytes) {
  for (const Allocation &a : state().allocations) {
    if (address >= a.base && address < a.base + a.bytes && bytes <= a.bytes - (address - a.base)) return &a;
  }
  return nullptr;
}

}  // namespace fake_cuda
