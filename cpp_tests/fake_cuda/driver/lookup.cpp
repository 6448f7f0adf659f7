// cuGetProcAddress: the functions of this library, the newest version of each first.

#include <string>

#include <dlfcn.h>

#include "recording.hpp"

using namespace fake_cuda;

namespace {

void *own_symbol(const char *name) {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void *>(&own_symbol), &info) == 0) return nullptr;
  void *self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  if (self == nullptr) return nullptr;
  void *found = nullptr;
  for (const char *suffix : {"_v4", "_v3", "_v2", ""}) {
    if (found == nullptr) found = dlsym(self, (std::string(name) + suffix).c_str());
  }
  dlclose(self);
  return found;
}

}  // namespace

CUresult cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *status) {
  return record(__func__, Needs::kNothing, {name, function, version, flags, status}, [&](fake_cuda_call &) {
    *function = own_symbol(name);
    const bool found = *function != nullptr;
    if (status != nullptr) *status = found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return found || status != nullptr ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
  });
}
