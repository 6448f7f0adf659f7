// One function for each group of exports: builds arguments, calls, checks.
#pragma once

#include "arguments.hpp"

namespace fuzz {

void call_version(Arguments &arguments, fp8rt_context *context);
void call_context(Arguments &arguments, fp8rt_context *context);
void call_scales_layout(Arguments &arguments, fp8rt_context *context);
void call_compute_scales(Arguments &arguments, fp8rt_context *context);
void call_quantize(Arguments &arguments, fp8rt_context *context);
void call_quantize_with_scales(Arguments &arguments, fp8rt_context *context);
void call_dequantize(Arguments &arguments, fp8rt_context *context);
void call_weights(Arguments &arguments, fp8rt_context *context);
void call_refit(Arguments &arguments, fp8rt_context *context);
void call_producers(Arguments &arguments, fp8rt_context *context);
void call_fingerprint(Arguments &arguments, fp8rt_context *context);
void call_report(Arguments &arguments, fp8rt_context *context);
void call_linear(Arguments &arguments, fp8rt_context *context);
void call_policy(Arguments &arguments, fp8rt_context *context);
void call_shard(Arguments &arguments, fp8rt_context *context);

// Aborts if a status is none that a sound library can return here.
void check_status(fp8rt_status status);

// Runs one call between `before` and `check` of the arena and returns its status.
template <class Call>
fp8rt_status run(Arguments &arguments, const Call &call) {
  arguments.arena().before();
  fp8rt_status status = call();
  arguments.arena().check(status == FP8RT_STATUS_OK);
  check_status(status);
  return status;
}

}  // namespace fuzz
