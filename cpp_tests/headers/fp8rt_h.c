// The C header needs nothing before it and may come twice. Compiled as C11 and, by its C++ twin, as C++17.
#include "fp8rt.h"
#include "fp8rt.h"

// The sizes that callers built against this header pass in struct_size.
_Static_assert(sizeof(fp8rt_context_desc) == 16, "fp8rt_context_desc changed");
_Static_assert(sizeof(fp8rt_quantize_desc) == 32, "fp8rt_quantize_desc changed");
_Static_assert(sizeof(fp8rt_tensor) == 80, "fp8rt_tensor changed");
_Static_assert(sizeof(fp8rt_policy_desc) == 48, "fp8rt_policy_desc changed");
_Static_assert(sizeof(fp8rt_policy_decision) == 24, "fp8rt_policy_decision changed");
_Static_assert(sizeof(fp8rt_policy_info) == 32, "fp8rt_policy_info changed");
_Static_assert(sizeof(fp8rt_shard_desc) == 48, "fp8rt_shard_desc changed");
_Static_assert(sizeof(fp8rt_shard_info) == 48, "fp8rt_shard_info changed");
_Static_assert(sizeof(fp8rt_shard_part) == 40, "fp8rt_shard_part changed");
_Static_assert(sizeof(fp8rt_health) == 32, "fp8rt_health changed");

int fp8rt_h_as_c(void);
int fp8rt_h_as_c(void) {
  fp8rt_status status = FP8RT_STATUS_OK;
  return (int)status;
}
