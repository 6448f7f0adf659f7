// Every function of the C ABI with hostile descriptors and honest memory: shapes, strides, dtypes, flags and numbers
// are anything; pointers are NULL, badly aligned, or into memory of which `bytes` tells the truth. Nothing may crash,
// nothing may be written outside the outputs, a call that fails writes nothing, and no input is an internal fault.
#include <cstdlib>
#include <iterator>

#include "calls.hpp"

namespace {

using Call = void (*)(fuzz::Arguments &, fp8rt_context *);

const Call kCalls[] = {
    fuzz::call_version,  fuzz::call_context,  fuzz::call_scales_layout,        fuzz::call_compute_scales,
    fuzz::call_quantize, fuzz::call_quantize, fuzz::call_quantize_with_scales, fuzz::call_dequantize,
    fuzz::call_weights,  fuzz::call_producers, fuzz::call_linear, fuzz::call_linear, fuzz::call_linear,
    fuzz::call_policy,   fuzz::call_policy,   fuzz::call_shard,
    fuzz::call_refit,    fuzz::call_refit, fuzz::call_fingerprint, fuzz::call_report,
};

fp8rt_context *make_context() {
  fp8rt_context_desc desc = {sizeof desc, 0, -1, 1};
  fp8rt_context *context = nullptr;
  if (fp8rt_context_create(&desc, &context) != FP8RT_STATUS_OK) {
    std::abort();
  }
  return context;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static fp8rt_context *context = make_context();
  static fuzz::Arena arena;
  fuzz::Reader reader(data, size);
  Call call = kCalls[reader.byte() % std::size(kCalls)];
  arena.reset(reader.word());
  fuzz::Arguments arguments(reader, arena);
  call(arguments, context);
  return 0;
}
