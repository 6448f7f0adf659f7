// The fused producers and their unfused exports, called alike on either side.

#ifndef FP8RT_TEST_FUSED_HPP
#define FP8RT_TEST_FUSED_HPP

#include "both.hpp"

namespace fp8rt_test {

constexpr float kEpsilon = 1e-5f;

enum class Producer { kSilu, kNorm, kNormWithResidual };

inline const char *name_of(Producer producer) {
  return producer == Producer::kSilu ? "silu" : producer == Producer::kNorm ? "norm" : "norm with residual";
}

// What a producer reads: gate_up [M, 2K], or input [M, K] with the weight of the norm and perhaps a residual.
struct Inputs {
  Producer producer;
  Matrix input, residual, weight;

  Extents extents() const {
    return {input.rows(), producer == Producer::kSilu ? input.columns() / 2 : input.columns()};
  }
};

// Rows farther apart than they are long by `gap` elements, and the first element moved by as many.
inline Inputs make_inputs(Producer producer, std::uint32_t dtype, Extents extents, Fill kind, std::int64_t gap = 0) {
  const std::int64_t columns = producer == Producer::kSilu ? 2 * extents.columns : extents.columns;
  const std::size_t offset = static_cast<std::size_t>(gap) * element_bytes(dtype);
  Inputs inputs{producer, Matrix(dtype, {extents.rows, columns}, {columns + gap}, 0, offset),
                Matrix(dtype, extents, {extents.columns + 2 * gap}, 0, offset),
                Matrix(dtype, {1, extents.columns}, {}, 0, offset)};
  fill(inputs.input, kind, 1, next_seed());
  fill(inputs.residual, kind, 1, next_seed());
  fill(inputs.weight, Fill::kPlain, 1, next_seed());
  return inputs;
}

inline fp8rt_tensor vector_view(fp8rt_tensor row) {
  row.rank = 1;
  row.shape[0] = row.shape[1];
  row.stride[0] = 1;
  return row;
}

// The views of a producer's inputs, on either side.
struct InputViews {
  fp8rt_tensor input, residual, weight;
};

inline InputViews views_of(const Inputs &inputs) {
  return {inputs.input.tensor(), inputs.residual.tensor(), vector_view(inputs.weight.tensor())};
}

inline fp8rt_status produce(const fp8rt::Context &context, Producer producer, const InputViews &views,
                            const fp8rt_tensor &output, cudaStream_t stream) {
  if (producer == Producer::kSilu) {
    return fp8rt_silu_and_mul(context.get(), &views.input, &output, stream);
  }
  const fp8rt_tensor *residual = producer == Producer::kNorm ? nullptr : &views.residual;
  return fp8rt_rms_norm(context.get(), &views.input, residual, &views.weight, kEpsilon, &output, stream);
}

inline fp8rt_status produce_quantized(const fp8rt::Context &context, Producer producer, const Rule &rule,
                                      const InputViews &views, const fp8rt_tensor &codes, const fp8rt_tensor &scales,
                                      fp8rt_health *health, cudaStream_t stream) {
  const fp8rt_quantize_desc desc = rule.desc();
  if (producer == Producer::kSilu) {
    return fp8rt_silu_and_mul_quantize(context.get(), &desc, &views.input, &codes, &scales, health, stream);
  }
  const fp8rt_tensor *residual = producer == Producer::kNorm ? nullptr : &views.residual;
  return fp8rt_rms_norm_quantize(context.get(), &desc, &views.input, residual, &views.weight, kEpsilon, &codes,
                                 &scales, health, stream);
}

// Inputs on the GPU.
struct DeviceInputs {
  explicit DeviceInputs(const Inputs &inputs)
      : producer(inputs.producer), input(inputs.input), residual(inputs.residual), weight(inputs.weight) {}

  InputViews views() const { return {input.tensor(), residual.tensor(), vector_view(weight.tensor())}; }

  Producer producer;
  DeviceMatrix input, residual, weight;
};

// Everything that one way of doing it wrote.
struct Produced {
  Matrix codes, scales, residual;
  fp8rt_health health;
};

inline ::testing::AssertionResult same_product(const Produced &got, const Produced &want) {
  return all_of({{"codes", same_bytes(got.codes, want.codes)},
                 {"scales", same_bytes(got.scales, want.scales)},
                 {"residual", same_bytes(got.residual, want.residual)},
                 {"health", same_health(got.health, want.health)}});
}

// The fused export on the GPU, into poisoned outputs.
inline ::testing::AssertionResult run_fused(const Rule &rule, const Inputs &inputs, Produced &produced) {
  const DeviceInputs device(inputs);
  const DeviceMatrix codes(produced.codes), scales(produced.scales);
  const DeviceHealth health;
  const Stream stream;
  const auto done = succeeded(produce_quantized(gpu(), inputs.producer, rule, device.views(), codes.tensor(),
                                                scales.tensor(), health.get(), stream.get()));
  stream.synchronize();
  produced = {codes.download(), scales.download(), device.residual.download(), health.download()};
  return all_of({{"fused", done}, {"input", same_bytes(device.input.download(), inputs.input)}});
}

// The unfused export, then quantize, on the GPU. `output` takes what the unfused export gave.
inline ::testing::AssertionResult run_unfused(const Rule &rule, const Inputs &inputs, Produced &produced,
                                              Matrix &output) {
  const DeviceInputs device(inputs);
  const DeviceMatrix between(output), codes(produced.codes), scales(produced.scales);
  const DeviceHealth health;
  const Stream stream;
  const fp8rt_quantize_desc desc = rule.desc();
  const fp8rt_tensor views[] = {between.tensor(), codes.tensor(), scales.tensor()};
  const auto done = succeeded(produce(gpu(), inputs.producer, device.views(), views[0], stream.get()));
  const auto quantized = succeeded(
      fp8rt_quantize_activation(gpu().get(), &desc, &views[0], &views[1], &views[2], health.get(), stream.get()));
  stream.synchronize();
  output = between.download();
  produced = {codes.download(), scales.download(), device.residual.download(), health.download()};
  return all_of({{"unfused", done},
                 {"quantize", quantized},
                 {"input", same_bytes(device.input.download(), inputs.input)}});
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_FUSED_HPP
