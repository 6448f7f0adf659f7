// What a linear on a GPU needs: weights, the matrices of M rows, and a plan that is prepared.

#ifndef FP8RT_BENCH_LINEAR_OPERANDS_HPP
#define FP8RT_BENCH_LINEAR_OPERANDS_HPP

#include <algorithm>
#include <vector>

#include "linear_options.hpp"
#include "tensors.hpp"
#include "timers.hpp"

namespace fp8rt_bench {

struct QuantizedWeight {
  QuantizedWeight(std::int64_t n, std::int64_t k) : codes(FP8RT_DTYPE_E4M3, n, k), scales(weight_scales(n, k)) {}

  Tensor codes, scales;
};

// So many weights that one that comes again has left L2.
inline int weights_beyond_cache(std::int64_t n, std::int64_t k) {
  return static_cast<int>(std::max<std::int64_t>(4, 300'000'000 / (n * k)));
}

inline std::vector<QuantizedWeight> quantized_weights(const fp8rt::Context &context, const Stream &stream,
                                                      std::int64_t n, std::int64_t k, int count) {
  const Tensor values(FP8RT_DTYPE_BF16, n, k);
  std::vector<QuantizedWeight> weights;
  for (int index = 0; index < count; ++index) {
    fill_normal(values.memory, values.memory.bytes());
    const QuantizedWeight &weight = weights.emplace_back(n, k);
    fp8rt::check(fp8rt_quantize_weight(context.get(), nullptr, &values.view, &weight.codes.view, &weight.scales.view,
                                       nullptr, stream.get()));
    stream.synchronize();
  }
  return weights;
}

// x as values and quantized, the bias, and y.
struct LinearOperands {
  LinearOperands(const fp8rt::Context &context, const Stream &stream, const LinearOptions &options, std::int64_t m_,
                 std::int64_t n_, std::int64_t k_)
      : m(m_), n(n_), k(k_), x(random_bf16(m, k)), quantized(m, k), y(options.output_dtype, m, n) {
    fp8rt::check(fp8rt_quantize_activation(context.get(), nullptr, &x.view, &quantized.codes.view,
                                           &quantized.scales.view, nullptr, stream.get()));
    stream.synchronize();
    if (options.bias_dtype != 0) {
      const auto dtype = static_cast<fp8rt_dtype>(options.bias_dtype);
      bias = std::make_unique<Tensor>(fp8rt::tensor(nullptr, dtype, {n}));
      CUDA(cudaMemset(bias->view.data, 0, bias->memory.bytes()));
    }
  }

  const fp8rt_tensor *bias_or_none() const { return bias ? &bias->view : nullptr; }

  std::int64_t m, n, k;
  Tensor x;
  ActivationOutputs quantized;
  Tensor y;
  std::unique_ptr<Tensor> bias;
};

// Workspace of all plans, one after another.
class Workspace {
 public:
  void reserve(std::uint64_t bytes) {
    if (bytes > memory_.bytes()) {
      memory_ = DeviceBuffer();
      memory_ = DeviceBuffer(static_cast<std::size_t>(bytes));
    }
  }
  void *data() const { return memory_.data(); }
  std::uint64_t bytes() const { return memory_.bytes(); }

 private:
  DeviceBuffer memory_;
};

inline fp8rt_linear_desc linear_desc_of(const LinearOptions &options, std::uint32_t backends, std::int64_t m,
                                        std::int64_t n, std::int64_t k) {
  fp8rt_linear_desc desc = fp8rt::linear_desc();
  desc.flags = options.invariant ? FP8RT_LINEAR_BATCH_INVARIANT : 0;
  desc.max_m = m;
  desc.n = n;
  desc.k = k;
  desc.output_dtype = options.output_dtype;
  desc.bias_dtype = options.bias_dtype;
  desc.backends = backends;
  return desc;
}

// A plan, prepared, with everything that its calls pass but the weight.
class PreparedLinear {
 public:
  PreparedLinear(const fp8rt::Context &context, const Stream &stream, const fp8rt_linear_desc &desc,
                 const LinearOperands &operands, const QuantizedWeight &weight, Workspace &workspace)
      : plan_(context, desc), stream_(stream), operands_(operands), workspace_(workspace) {
    workspace.reserve(plan_.workspace(operands.m));
    fp8rt::check(fp8rt_linear_plan_prepare(plan_.get(), &weight.codes.view, &weight.scales.view,
                                           operands.bias_or_none(), stream.get()));
  }

  void run(const QuantizedWeight &weight) const {
    fp8rt::check(fp8rt_linear(plan_.get(), &operands_.x.view, &weight.codes.view, &weight.scales.view,
                              operands_.bias_or_none(), &operands_.y.view, workspace_.data(), workspace_.bytes(),
                              stream_.get()));
  }
  void run_prequantized(const QuantizedWeight &weight) const {
    fp8rt::check(fp8rt_linear_prequantized(
        plan_.get(), &operands_.quantized.codes.view, &operands_.quantized.scales.view, &weight.codes.view,
        &weight.scales.view, operands_.bias_or_none(), &operands_.y.view, workspace_.data(), workspace_.bytes(),
        stream_.get()));
  }

  // The backend and what it chose: "deepgemm (tile 16x48)".
  std::string choice() const {
    const std::string line = plan_.describe();
    const std::size_t begin = line.find(": ");
    return begin == std::string::npos ? line : line.substr(begin + 2, line.find(';') - begin - 2);
  }

 private:
  fp8rt::LinearPlan plan_;
  const Stream &stream_;
  const LinearOperands &operands_;
  const Workspace &workspace_;
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_LINEAR_OPERANDS_HPP
