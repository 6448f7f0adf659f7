// Initialization, devices and contexts.

#include <cstdio>
#include <cstring>

#include <unistd.h>

#include "recording.hpp"

using namespace fake_cuda;

namespace {

// The contexts of a thread, the current one on top. Plain memory: it works while a thread ends.
struct Stack {
  Context *contexts[64];
  int depth;
};

thread_local Stack stack{};

Context *known(CUcontext handle) {
  for (Context &context : state().contexts) {
    if (static_cast<void *>(&context) == static_cast<void *>(handle) && context.retained != 0) return &context;
  }
  return nullptr;
}

CUcontext handle_of(Context *context) { return reinterpret_cast<CUcontext>(context); }

bool is_device(CUdevice device) { return device >= 0 && device < kDevices; }

CUresult release(CUdevice device) {
  if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
  Context &context = state().contexts[static_cast<std::size_t>(device)];
  if (context.retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --context.retained;
  return CUDA_SUCCESS;
}

}  // namespace

namespace fake_cuda {

Context *current() { return stack.depth == 0 ? nullptr : stack.contexts[stack.depth - 1]; }

}  // namespace fake_cuda

CUresult cuInit(unsigned int flags) {
  return record(__func__, Needs::kNothing, {flags}, [&](fake_cuda_call &call) {
    State &s = state();
    if (s.initialized_by != 0) return check_initialized(call);
    s.initialized_by = getpid();
    return CUDA_SUCCESS;
  });
}

CUresult cuDriverGetVersion(int *version) {
  return record(__func__, Needs::kNothing, {version}, [&](fake_cuda_call &) {
    *version = 13000;
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGetCount(int *count) {
  return record(__func__, Needs::kInit, {count}, [&](fake_cuda_call &) {
    *count = kDevices;
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  return record(__func__, Needs::kInit, {device, ordinal}, [&](fake_cuda_call &) {
    if (!is_device(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  return record(__func__, Needs::kInit, {value, static_cast<int>(attribute), device}, [&](fake_cuda_call &) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (attribute <= 0 || attribute >= kAttributes) return CUDA_ERROR_INVALID_VALUE;
    *value = state().attributes[static_cast<std::size_t>(device)][static_cast<std::size_t>(attribute)];
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) {
  return record(__func__, Needs::kInit, {name, bytes, device}, [&](fake_cuda_call &) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    std::snprintf(name, static_cast<std::size_t>(bytes), "Fake H100 %d", device);
    return CUDA_SUCCESS;
  });
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
  return record(__func__, Needs::kInit, {bytes, device}, [&](fake_cuda_call &) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = std::size_t{80} << 30;
    return CUDA_SUCCESS;
  });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  return record(__func__, Needs::kInit, {context, device}, [&](fake_cuda_call &call) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    Context &primary = state().contexts[static_cast<std::size_t>(device)];
    if (primary.retained == 0 && check_no_capture(call) != CUDA_SUCCESS) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    ++primary.retained;
    *context = handle_of(&primary);
    return CUDA_SUCCESS;
  });
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  return record(__func__, Needs::kInit, {device}, [&](fake_cuda_call &) { return release(device); });
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return record(__func__, Needs::kInit, {device}, [&](fake_cuda_call &) { return release(device); });
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active) {
  return record(__func__, Needs::kInit, {device, flags, active}, [&](fake_cuda_call &) {
    if (!is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    *flags = 0;
    *active = state().contexts[static_cast<std::size_t>(device)].retained != 0;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  return record(__func__, Needs::kInit, {context}, [&](fake_cuda_call &) {
    *context = handle_of(current());
    return CUDA_SUCCESS;
  });
}

// NULL pops, as on a real driver.
CUresult cuCtxSetCurrent(CUcontext context) {
  return record(__func__, Needs::kInit, {context}, [&](fake_cuda_call &) {
    if (context == nullptr) {
      stack.depth -= stack.depth != 0;
      return CUDA_SUCCESS;
    }
    Context *wanted = known(context);
    if (wanted == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    stack.depth += stack.depth == 0;
    stack.contexts[stack.depth - 1] = wanted;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxPushCurrent(CUcontext context) {
  return record(__func__, Needs::kInit, {context}, [&](fake_cuda_call &) {
    Context *wanted = known(context);
    if (wanted == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (stack.depth == 64) return CUDA_ERROR_OUT_OF_MEMORY;
    stack.contexts[stack.depth++] = wanted;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxPopCurrent(CUcontext *context) {
  return record(__func__, Needs::kContext, {context}, [&](fake_cuda_call &) {
    if (context != nullptr) *context = handle_of(current());
    --stack.depth;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxGetDevice(CUdevice *device) {
  return record(__func__, Needs::kContext, {device}, [&](fake_cuda_call &) {
    *device = current()->device;
    return CUDA_SUCCESS;
  });
}

CUresult cuCtxSynchronize(void) {
  return record(__func__, Needs::kContextWithoutCapture, {}, [](fake_cuda_call &) { return CUDA_SUCCESS; });
}

void fake_cuda_set_attribute(int32_t device, int32_t attribute, int32_t value) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  state().attributes.at(static_cast<std::size_t>(device)).at(static_cast<std::size_t>(attribute)) = value;
}

size_t fake_cuda_retained(int32_t device) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return state().contexts.at(static_cast<std::size_t>(device)).retained;
}
