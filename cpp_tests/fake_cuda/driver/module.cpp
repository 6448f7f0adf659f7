// Modules and functions.

#include <algorithm>

#include "recording.hpp"

using namespace fake_cuda;

namespace {

// Machine code runs on its own generation, from its own minor version on.
bool runs_on(int architecture, int device) {
  const auto &attributes = state().attributes[static_cast<std::size_t>(device)];
  return architecture / 10 == attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] &&
         architecture % 10 <= attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR];
}

CUresult load(CUmodule *handle, const void *image) {
  Cubin cubin{};
  if (image == nullptr || !read_cubin(image, cubin)) return CUDA_ERROR_INVALID_IMAGE;
  if (!runs_on(cubin.architecture, current()->device)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  auto module = std::make_unique<Module>();
  module->context = current();
  for (const Kernel &kernel : cubin.kernels) {
    module->functions.push_back(std::make_unique<Function>(Function{module.get(), kernel, 48 * 1024}));
  }
  *handle = reinterpret_cast<CUmodule>(module.get());
  state().modules.push_back(std::move(module));
  return CUDA_SUCCESS;
}

}  // namespace

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  return record(__func__, Needs::kContextWithoutCapture, {module, image},
                [&](fake_cuda_call &) { return load(module, image); });
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, CUjit_option *options,
                            void **values) {
  return record(__func__, Needs::kContextWithoutCapture, {module, image, count, options, values},
                [&](fake_cuda_call &) { return load(module, image); });
}

CUresult cuModuleUnload(CUmodule handle) {
  return record(__func__, Needs::kContextWithoutCapture, {handle}, [&](fake_cuda_call &) {
    const Module *module = find_module(handle);
    if (module == nullptr || module->context != current()) return CUDA_ERROR_INVALID_HANDLE;
    auto &modules = state().modules;
    modules.erase(std::find_if(modules.begin(), modules.end(), [&](const auto &m) { return m.get() == module; }));
    return CUDA_SUCCESS;
  });
}

// Loads the function where loading is lazy, so it is no call for a capture either.
CUresult cuModuleGetFunction(CUfunction *function, CUmodule handle, const char *name) {
  return record(__func__, Needs::kContextWithoutCapture, {function, handle, name}, [&](fake_cuda_call &) {
    const Module *module = find_module(handle);
    if (module == nullptr || module->context != current()) return CUDA_ERROR_INVALID_HANDLE;
    for (const auto &candidate : module->functions) {
      if (candidate->kernel.name != name) continue;
      *function = reinterpret_cast<CUfunction>(candidate.get());
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_FOUND;
  });
}

CUresult cuFuncLoad(CUfunction handle) {
  return record(__func__, Needs::kContextWithoutCapture, {handle}, [&](fake_cuda_call &) {
    return find_function(handle) == nullptr ? CUDA_ERROR_INVALID_HANDLE : CUDA_SUCCESS;
  });
}

CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  return record(__func__, Needs::kInit, {handle, static_cast<int>(attribute), value}, [&](fake_cuda_call &) {
    Function *function = find_function(handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    const auto device = static_cast<std::size_t>(function->module->context->device);
    const int most = state().attributes[device][CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN];
    if (value < 0 || value + static_cast<int>(function->kernel.static_shared_bytes) > most) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    function->shared_limit = value;
    return CUDA_SUCCESS;
  });
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle) {
  return record(__func__, Needs::kInit, {value, static_cast<int>(attribute), handle}, [&](fake_cuda_call &) {
    const Function *function = find_function(handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    const auto threads = static_cast<int>(function->kernel.max_threads);
    *value = 0;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) *value = threads == 0 ? 1024 : threads;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) *value = function->shared_limit;
    if (attribute == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) {
      *value = static_cast<int>(function->kernel.static_shared_bytes);
    }
    return CUDA_SUCCESS;
  });
}

CUresult cuFuncGetParamInfo(CUfunction handle, size_t index, size_t *offset, size_t *bytes) {
  return record(__func__, Needs::kInit, {handle, index, offset, bytes}, [&](fake_cuda_call &) {
    const Function *function = find_function(handle);
    if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (index >= function->kernel.parameters.size()) return CUDA_ERROR_INVALID_VALUE;
    *offset = function->kernel.parameters[index].offset;
    if (bytes != nullptr) *bytes = function->kernel.parameters[index].bytes;
    return CUDA_SUCCESS;
  });
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction handle, int threads, size_t shared) {
  return record(__func__, Needs::kContext, {blocks, handle, threads, shared}, [&](fake_cuda_call &) {
    if (find_function(handle) == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    *blocks = std::max(1, 2048 / threads);
    return CUDA_SUCCESS;
  });
}

size_t fake_cuda_live_modules(void) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return state().modules.size();
}
