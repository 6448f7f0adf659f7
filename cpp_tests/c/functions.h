// The functions that plain.c uses. How they are found is up to linked.c and opened.c.
#ifndef FP8RT_TEST_FUNCTIONS_H
#define FP8RT_TEST_FUNCTIONS_H

#include "fp8rt.h"

struct functions {
  uint32_t (*abi_version)(void);
  const char *(*last_error)(void);
  fp8rt_status (*context_create)(const fp8rt_context_desc *, fp8rt_context **);
  fp8rt_status (*context_destroy)(fp8rt_context *);
  fp8rt_status (*quantize_weight)(fp8rt_context *, const fp8rt_quantize_desc *, const fp8rt_tensor *,
                                  const fp8rt_tensor *, const fp8rt_tensor *, fp8rt_health *, void *);
  fp8rt_status (*policy_create)(const fp8rt_policy_desc *, fp8rt_policy **);
  fp8rt_status (*policy_destroy)(fp8rt_policy *);
  fp8rt_status (*policy_decide)(const fp8rt_policy *, const char *, uint32_t, const int64_t *,
                                fp8rt_policy_decision *, char *, uint64_t, uint64_t *);
  fp8rt_status (*shard_layout)(const fp8rt_shard_desc *, fp8rt_shard_info *, fp8rt_shard_part *, int64_t *);
  fp8rt_status (*torch_register)(void);
};

// Ends the process with a message if the library or a function is missing.
struct functions find_functions(void);

#endif
