// Many weights in one call, tables of them, and the fused producers.
#include "calls.hpp"

namespace fuzz {

namespace {

fp8rt_health *make_health(Arguments &arguments) {
  return static_cast<fp8rt_health *>(arguments.raw_output(sizeof(fp8rt_health), alignof(fp8rt_health)));
}

fp8rt_tensor value_of(const fp8rt_tensor *tensor) { return tensor == nullptr ? fp8rt_tensor{} : *tensor; }

fp8rt_weight_entry make_entry(Arguments &arguments, fp8rt_quantize_desc desc) {
  Reader &reader = arguments.reader();
  const int64_t experts = reader.chance(4) ? 1 + reader.byte() % 3 : 0;
  const int64_t rows = reader.extent(), columns = reader.extent();
  const Shape shape = arguments.weight(experts, rows, columns);
  fp8rt_weight_entry entry = {};
  if (reader.chance(4)) {
    entry.part_rows = arguments.parts(rows, &entry.num_parts);
  }
  fp8rt_tensor layout = {nullptr, 16, FP8RT_DTYPE_F32, -1, 2, 0, {1, 1, 0}, {1, 1, 0}};
  desc.struct_size = sizeof desc;
  desc.part_rows = entry.part_rows, desc.num_parts = entry.num_parts;
  fp8rt_weight_scales_layout(&desc, experts, rows, columns, &layout);
  entry.weight = value_of(arguments.input(arguments.float_dtype(), shape));
  entry.codes = value_of(arguments.output(FP8RT_DTYPE_E4M3, shape));
  entry.scales = value_of(arguments.scales(layout, true));
  entry.reserved = reader.chance(64) ? reader.word() : 0;
  return entry;
}

}  // namespace

void call_weights(Arguments &arguments, fp8rt_context *context) {
  Reader &reader = arguments.reader();
  fp8rt_quantize_desc settings = arguments.quantization(0);
  if (!reader.chance(16)) {
    settings.num_parts = 0;
  }
  const fp8rt_quantize_desc *desc = arguments.descriptor(settings);
  std::vector<fp8rt_weight_entry> entries;
  for (int count = reader.byte() % 4; count > 0; --count) {
    entries.push_back(make_entry(arguments, settings));
  }
  fp8rt_context *used = reader.chance(64) ? nullptr : context;
  void *stream = reader.chance(64) ? &arguments : nullptr;
  fp8rt_health *health = make_health(arguments);
  const fp8rt_weight_entry *given = reader.chance(64) ? nullptr : entries.data();
  const auto count = given == nullptr ? uint32_t{0} : static_cast<uint32_t>(entries.size());
  switch (reader.byte() % 3) {
    case 0:
      run(arguments, [&] { return fp8rt_quantize_weights(used, desc, given, count, health, stream); });
      break;
    case 1:
      run(arguments, [&] {
        return fp8rt_quantize_weights_from_host(used, desc, given, count, nullptr, reader.word(), health, stream);
      });
      break;
    default: {
      fp8rt_weight_table *table = nullptr;
      check_status(fp8rt_weight_table_create(used, desc, given, count, &table));
      run(arguments, [&] { return fp8rt_weight_table_run(table, health, stream); });
      check_status(fp8rt_weight_table_destroy(table));
    }
  }
}

void call_producers(Arguments &arguments, fp8rt_context *context) {
  Reader &reader = arguments.reader();
  const int64_t rows = reader.extent(), columns = reader.extent();
  const uint32_t dtype = arguments.float_dtype();
  const bool silu = reader.chance(2), quantizes = reader.chance(2);
  fp8rt_quantize_desc settings = arguments.quantization(0);
  settings.num_parts = reader.chance(32) ? 1 : 0;
  const fp8rt_quantize_desc *desc = arguments.descriptor(settings);
  const Shape shape = arguments.matrix(rows, columns);
  const fp8rt_tensor *input = arguments.input(dtype, silu ? arguments.matrix(rows, 2 * columns) : shape);
  const fp8rt_tensor *residual = reader.chance(2) ? nullptr : arguments.output(dtype, shape);
  const fp8rt_tensor *weight = arguments.input(dtype, Shape{1, {columns, 0, 0}, {1, 0, 0}});
  const float epsilon = reader.chance(32) ? -1.0f : 1e-5f;
  void *stream = reader.chance(64) ? &arguments : nullptr;
  if (!quantizes) {
    const fp8rt_tensor *output = arguments.output(dtype, shape);
    run(arguments, [&] {
      return silu ? fp8rt_silu_and_mul(context, input, output, stream)
                  : fp8rt_rms_norm(context, input, residual, weight, epsilon, output, stream);
    });
    return;
  }
  fp8rt_tensor layout = {nullptr, 16, FP8RT_DTYPE_F32, -1, 2, 0, {1, 1, 0}, {1, 1, 0}};
  fp8rt_quantize_desc honest = settings;
  honest.struct_size = sizeof honest, honest.num_parts = 0;
  fp8rt_activation_scales_layout(&honest, reader.byte() % 2U, rows, columns, &layout);
  const fp8rt_tensor *codes = arguments.output(FP8RT_DTYPE_E4M3, shape);
  const fp8rt_tensor *scales = arguments.scales(layout, true);
  fp8rt_health *health = make_health(arguments);
  run(arguments, [&] {
    return silu ? fp8rt_silu_and_mul_quantize(context, desc, input, codes, scales, health, stream)
                : fp8rt_rms_norm_quantize(context, desc, input, residual, weight, epsilon, codes, scales, health,
                                          stream);
  });
}

}  // namespace fuzz
