// Scales, quantizing and dequantizing, of weights and activations.
#include "calls.hpp"

namespace fuzz {

namespace {

// What the calls of this file have in common: a matrix, its codes, its scales, and how they belong together.
struct Subject {
  bool is_weight;
  Shape shape;
  int64_t experts, rows, columns;
  fp8rt_quantize_desc desc;
  fp8rt_tensor scales_layout;
  uint32_t dtype;
  fp8rt_context *context;
  void *stream;
};

// The layout that the library itself gives; anything at all where it refuses.
fp8rt_tensor lay_out_scales(Arguments &arguments, const Subject &subject) {
  fp8rt_tensor layout = {nullptr, 16, FP8RT_DTYPE_F32, -1, 2, 0, {1, 1, 0}, {1, 1, 0}};
  fp8rt_quantize_desc desc = subject.desc;
  desc.struct_size = sizeof desc;
  if (subject.is_weight) {
    fp8rt_weight_scales_layout(&desc, subject.experts, subject.rows, subject.columns, &layout);
  } else {
    uint32_t order = arguments.reader().byte() % 2U;
    fp8rt_activation_scales_layout(&desc, order, subject.rows, subject.columns, &layout);
  }
  return layout;
}

Subject make_subject(Arguments &arguments, fp8rt_context *context) {
  Reader &reader = arguments.reader();
  Subject subject = {};
  subject.is_weight = reader.chance(2);
  subject.experts = subject.is_weight && reader.chance(4) ? 1 + reader.byte() % 3 : 0;
  subject.rows = reader.extent();
  subject.columns = reader.extent();
  subject.shape = subject.is_weight ? arguments.weight(subject.experts, subject.rows, subject.columns)
                                    : arguments.matrix(subject.rows, subject.columns);
  subject.desc = arguments.quantization(subject.is_weight ? subject.rows : 0);
  if (!subject.is_weight && !reader.chance(16)) {
    subject.desc.num_parts = 0;
  }
  subject.scales_layout = lay_out_scales(arguments, subject);
  subject.dtype = arguments.float_dtype();
  subject.context = reader.chance(64) ? nullptr : context;
  subject.stream = reader.chance(64) ? &arguments : nullptr;
  return subject;
}

}  // namespace

void call_scales_layout(Arguments &arguments, fp8rt_context *) {
  Reader &reader = arguments.reader();
  int64_t rows = reader.chance(2) ? reader.hostile() : reader.extent();
  int64_t columns = reader.chance(2) ? reader.hostile() : reader.extent();
  const fp8rt_quantize_desc *desc = arguments.descriptor(arguments.quantization(rows));
  auto *scales = static_cast<fp8rt_tensor *>(arguments.raw_output(sizeof(fp8rt_tensor), alignof(fp8rt_tensor)));
  if (reader.chance(2)) {
    int64_t experts = reader.chance(2) ? reader.hostile() : 0;
    run(arguments, [&] { return fp8rt_weight_scales_layout(desc, experts, rows, columns, scales); });
  } else {
    uint32_t order = reader.chance(8) ? reader.word() : reader.byte() % 2U;
    run(arguments, [&] { return fp8rt_activation_scales_layout(desc, order, rows, columns, scales); });
  }
}

void call_compute_scales(Arguments &arguments, fp8rt_context *context) {
  Subject subject = make_subject(arguments, context);
  const fp8rt_quantize_desc *desc = arguments.descriptor(subject.desc);
  const fp8rt_tensor *input = arguments.input(subject.dtype, subject.shape);
  const fp8rt_tensor *scales = arguments.scales(subject.scales_layout, true);
  auto call = subject.is_weight ? &fp8rt_compute_weight_scales : &fp8rt_compute_activation_scales;
  run(arguments, [&] { return call(subject.context, desc, input, scales, subject.stream); });
}

void call_quantize(Arguments &arguments, fp8rt_context *context) {
  Subject subject = make_subject(arguments, context);
  const fp8rt_quantize_desc *desc = arguments.descriptor(subject.desc);
  const fp8rt_tensor *input = arguments.input(subject.dtype, subject.shape);
  const fp8rt_tensor *codes = arguments.output(FP8RT_DTYPE_E4M3, subject.shape);
  const fp8rt_tensor *scales = arguments.scales(subject.scales_layout, true);
  auto *health = static_cast<fp8rt_health *>(arguments.raw_output(sizeof(fp8rt_health), alignof(fp8rt_health)));
  auto call = subject.is_weight ? &fp8rt_quantize_weight : &fp8rt_quantize_activation;
  run(arguments, [&] { return call(subject.context, desc, input, codes, scales, health, subject.stream); });
}

void call_quantize_with_scales(Arguments &arguments, fp8rt_context *context) {
  Subject subject = make_subject(arguments, context);
  const fp8rt_quantize_desc *desc = arguments.descriptor(subject.desc);
  const fp8rt_tensor *input = arguments.input(subject.dtype, subject.shape);
  const fp8rt_tensor *scales = arguments.scales(subject.scales_layout, false);
  const fp8rt_tensor *codes = arguments.output(FP8RT_DTYPE_E4M3, subject.shape);
  auto *health = static_cast<fp8rt_health *>(arguments.raw_output(sizeof(fp8rt_health), alignof(fp8rt_health)));
  auto call = subject.is_weight ? &fp8rt_quantize_weight_with_scales : &fp8rt_quantize_activation_with_scales;
  run(arguments, [&] { return call(subject.context, desc, input, scales, codes, health, subject.stream); });
}

void call_dequantize(Arguments &arguments, fp8rt_context *context) {
  Subject subject = make_subject(arguments, context);
  const fp8rt_quantize_desc *desc = arguments.descriptor(subject.desc);
  const fp8rt_tensor *codes = arguments.input(FP8RT_DTYPE_E4M3, subject.shape);
  const fp8rt_tensor *scales = arguments.scales(subject.scales_layout, false);
  const fp8rt_tensor *output = arguments.output(subject.dtype, subject.shape);
  auto call = subject.is_weight ? &fp8rt_dequantize_weight : &fp8rt_dequantize_activation;
  run(arguments, [&] { return call(subject.context, desc, codes, scales, output, subject.stream); });
}

}  // namespace fuzz
