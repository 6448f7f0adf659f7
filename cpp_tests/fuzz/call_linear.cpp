// Plans and linears.
#include <cstring>

#include "calls.hpp"

namespace fuzz {

namespace {

// A plan that was made, and the shape of the run that follows. The plan itself may have been given other numbers.
struct Linear {
  fp8rt_linear_plan *plan;
  fp8rt_linear_desc desc;
  int64_t m, n, k;
};

fp8rt_tensor weight_scales_layout(const Linear &linear) {
  fp8rt_quantize_desc desc = {};
  desc.struct_size = sizeof desc;
  desc.scale_format = linear.desc.weight_scale_format;
  desc.num_parts = linear.desc.num_parts;
  desc.part_rows = linear.desc.part_rows;
  fp8rt_tensor layout = {nullptr, 16, FP8RT_DTYPE_F32, -1, 2, 0, {1, 1, 0}, {1, 1, 0}};
  fp8rt_weight_scales_layout(&desc, 0, linear.n, linear.k, &layout);
  return layout;
}

fp8rt_tensor input_scales_layout(const Linear &linear) {
  fp8rt_quantize_desc desc = {};
  desc.struct_size = sizeof desc;
  desc.scale_format = linear.desc.activation_scale_format;
  fp8rt_tensor layout = {nullptr, 16, FP8RT_DTYPE_F32, -1, 2, 0, {1, 1, 0}, {1, 1, 0}};
  fp8rt_activation_scales_layout(&desc, linear.desc.activation_scale_layout, linear.m, linear.k, &layout);
  return layout;
}

Shape rows_of(int64_t rows, int64_t columns, int64_t stride) {
  bool usable = stride >= columns && stride <= columns + 32;
  return Shape{2, {rows, columns, 0}, {usable ? stride : columns, 1, 0}};
}

const fp8rt_tensor *bias_of(Arguments &arguments, const Linear &linear) {
  bool wanted = (linear.desc.bias_dtype != 0) != arguments.reader().chance(16);
  return wanted ? arguments.input(linear.desc.bias_dtype, Shape{1, {linear.n, 0, 0}, {1, 0, 0}}) : nullptr;
}

void ask_plan(Arguments &arguments, const Linear &linear) {
  Reader &reader = arguments.reader();
  arguments.arena().reset(reader.word());
  fp8rt_linear_plan_info *info = arguments.descriptor(fp8rt_linear_plan_info{}, false);
  run(arguments, [&] { return fp8rt_linear_plan_query(linear.plan, info); });

  uint64_t capacity = reader.byte();
  arguments.arena().reset(reader.word());
  auto *text = static_cast<char *>(arguments.raw_output(capacity, 1));
  auto *length = static_cast<uint64_t *>(arguments.raw_output(sizeof(uint64_t), alignof(uint64_t)));
  run(arguments, [&] { return fp8rt_linear_plan_describe(linear.plan, text, capacity, length); });
}

uint64_t ask_workspace(Arguments &arguments, const Linear &linear) {
  Reader &reader = arguments.reader();
  int64_t other = reader.hostile();
  uint64_t bytes = 0;
  check_status(fp8rt_linear_plan_workspace(linear.plan, other, &bytes));
  bytes = 0;
  check_status(fp8rt_linear_plan_workspace(linear.plan, linear.m, &bytes));
  return bytes;
}

// Prepares, then runs with x quantized by the library or by the caller.
void run_linear(Arguments &arguments, const Linear &linear) {
  Reader &reader = arguments.reader();
  uint64_t workspace_bytes = ask_workspace(arguments, linear);
  arguments.arena().reset(reader.word());
  bool quantized = reader.chance(2);
  uint32_t input_dtype = quantized ? uint32_t{FP8RT_DTYPE_E4M3} : linear.desc.input_dtype;
  Shape input_shape = quantized ? rows_of(linear.m, linear.k, linear.desc.input_stride)
                                : arguments.matrix(linear.m, linear.k);

  const fp8rt_tensor *x = arguments.input(input_dtype, input_shape);
  const fp8rt_tensor *x_scales = arguments.scales(input_scales_layout(linear), false);
  const fp8rt_tensor *weight =
      arguments.input(FP8RT_DTYPE_E4M3, rows_of(linear.n, linear.k, linear.desc.weight_stride));
  const fp8rt_tensor *scales = arguments.scales(weight_scales_layout(linear), false);
  const fp8rt_tensor *bias = bias_of(arguments, linear);
  const fp8rt_tensor *y =
      arguments.output(linear.desc.output_dtype, rows_of(linear.m, linear.n, linear.desc.output_stride));
  if (workspace_bytes > Arena::kCapacity / 2 || reader.chance(16)) {
    workspace_bytes = reader.byte();
  }
  void *workspace = arguments.raw_output(workspace_bytes, FP8RT_WORKSPACE_ALIGNMENT);
  void *stream = reader.chance(64) ? &arguments : nullptr;

  arguments.arena().before();
  check_status(fp8rt_linear_plan_prepare(linear.plan, weight, scales, bias, stream));
  arguments.arena().check(false);
  run(arguments, [&] {
    return quantized ? fp8rt_linear_prequantized(linear.plan, x, x_scales, weight, scales, bias, y, workspace,
                                                 workspace_bytes, stream)
                     : fp8rt_linear(linear.plan, x, weight, scales, bias, y, workspace, workspace_bytes, stream);
  });
}

}  // namespace

void call_linear(Arguments &arguments, fp8rt_context *context) {
  Reader &reader = arguments.reader();
  Linear linear = {};
  linear.m = reader.extent();
  linear.n = reader.extent();
  linear.k = reader.extent();
  linear.desc = arguments.linear(linear.m + reader.byte() % 3, linear.n, linear.k);
  const fp8rt_linear_desc *desc = arguments.descriptor(linear.desc);
  void *place = arguments.raw_output(sizeof(fp8rt_linear_plan *), alignof(fp8rt_linear_plan *));
  fp8rt_context *asked = reader.chance(64) ? nullptr : context;
  fp8rt_status status = run(
      arguments, [&] { return fp8rt_linear_plan_create(asked, desc, static_cast<fp8rt_linear_plan **>(place)); });
  if (status != FP8RT_STATUS_OK) {
    return;
  }
  std::memcpy(&linear.plan, place, sizeof linear.plan);
  ask_plan(arguments, linear);
  run_linear(arguments, linear);
  check_status(fp8rt_linear_plan_destroy(linear.plan));
}

}  // namespace fuzz
