// The functions as dlopen and dlsym find them, in the file that FP8RT_LIBRARY names.
#include "functions.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bits are the same.
static void find(void *library, const char *name, void *function) {
  void *symbol = dlsym(library, name);
  if (symbol == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
  memcpy(function, &symbol, sizeof symbol);
}

struct functions find_functions(void) {
  const char *path = getenv("FP8RT_LIBRARY");
  void *library = dlopen(path != NULL ? path : "libfp8rt.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    exit(1);
  }
  struct functions functions;
  find(library, "fp8rt_abi_version", &functions.abi_version);
  find(library, "fp8rt_last_error", &functions.last_error);
  find(library, "fp8rt_context_create", &functions.context_create);
  find(library, "fp8rt_context_destroy", &functions.context_destroy);
  find(library, "fp8rt_quantize_weight", &functions.quantize_weight);
  find(library, "fp8rt_policy_create", &functions.policy_create);
  find(library, "fp8rt_policy_destroy", &functions.policy_destroy);
  find(library, "fp8rt_policy_decide", &functions.policy_decide);
  find(library, "fp8rt_shard_layout", &functions.shard_layout);
  find(library, "fp8rt_torch_register", &functions.torch_register);
  return functions;
}
