// The functions as the linker finds them.
#include "functions.h"

struct functions find_functions(void) {
  struct functions functions = {fp8rt_abi_version,     fp8rt_last_error,    fp8rt_context_create, fp8rt_context_destroy,
                                fp8rt_quantize_weight, fp8rt_policy_create, fp8rt_policy_destroy, fp8rt_policy_decide,
                                fp8rt_shard_layout,    fp8rt_torch_register};
  return functions;
}
