// One call on the GPU and on the host, compared in every byte: elements, gaps between rows, padding, guards, inputs,
// and health.

#ifndef FP8RT_TEST_BOTH_HPP
#define FP8RT_TEST_BOTH_HPP

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "calls.hpp"
#include "contexts.hpp"
#include "cuda.hpp"
#include "data.hpp"
#include "matrix.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {

constexpr std::uint32_t kFloats[] = {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32};
constexpr std::uint32_t kRecipes[] = {FP8RT_RECIPE_VLLM, FP8RT_RECIPE_DEEPGEMM, FP8RT_RECIPE_NEMO_RL, FP8RT_RECIPE_TE};
constexpr std::uint32_t kFormats[] = {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2,
                                      FP8RT_SCALE_FORMAT_UE8M0_PACKED};

// First byte of a matrix's memory: the guard before the first element.
inline std::uint8_t *memory_of(Matrix &matrix) {
  const Matrix &view = matrix;
  return matrix.data() - (view.data() - view.storage().data());
}

// A copy of a matrix in device memory at the same alignment: with its guards and gaps, or tight, so that a memory
// checker sees the first byte beyond it.
class DeviceMatrix {
 public:
  explicit DeviceMatrix(const Matrix &matrix) : matrix_(matrix), tight_(tight_buffers()) {
    const auto lead = static_cast<std::size_t>(matrix_.data() - matrix_.storage().data());
    begin_ = tight_ ? kGuardBytes : 0;
    data_ = lead - begin_;
    buffer_ = DeviceBuffer(tight_ ? data_ + matrix_.bytes() : matrix_.storage().size());
    upload(matrix);
  }

  // Whether the matrices that are made from now on are tight.
  static bool &tight_buffers() {
    static bool tight = false;
    return tight;
  }

  fp8rt_tensor tensor(int device = kDevice) const {
    fp8rt_tensor view = matrix_.tensor();
    view.data = buffer_.data() + data_;
    view.device = device;
    return view;
  }
  void upload(const Matrix &matrix) { buffer_.upload(matrix.storage().data() + begin_, buffer_.bytes()); }
  Matrix download() const {
    Matrix copy = matrix_;
    buffer_.download(memory_of(copy) + begin_, buffer_.bytes());
    return copy;
  }

 private:
  Matrix matrix_;
  bool tight_;
  std::size_t begin_ = 0, data_ = 0;
  DeviceBuffer buffer_;
};

// Counters in device memory.
class DeviceHealth {
 public:
  explicit DeviceHealth(fp8rt_health begin = {}) : buffer_(sizeof begin) { buffer_.upload(&begin, sizeof begin); }

  fp8rt_health *get() const { return reinterpret_cast<fp8rt_health *>(buffer_.data()); }
  fp8rt_health download() const {
    fp8rt_health health;
    buffer_.download(&health, sizeof health);
    return health;
  }

 private:
  DeviceBuffer buffer_;
};

inline ::testing::AssertionResult same_health(const fp8rt_health &got, const fp8rt_health &want) {
  if (got == want) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << got << ", expected " << want;
}

// The first of the named results that is a failure.
inline ::testing::AssertionResult all_of(
    const std::vector<std::pair<std::string, ::testing::AssertionResult>> &results) {
  for (const auto &[name, result] : results) {
    if (!result) {
      return ::testing::AssertionFailure() << name << ": " << result.message();
    }
  }
  return ::testing::AssertionSuccess();
}

inline const Function &function_of(Kind kind, bool activation) {
  for (const Function &function : kFunctions) {
    if (function.kind == kind && function.activation == activation) {
      return function;
    }
  }
  return kFunctions[0];
}

// The three tensors of a call. `codes` is not used by compute.
struct Operands {
  Matrix values;
  Matrix codes;
  Matrix scales;
};

// An empty, poisoned output of E4M3 for values of these extents.
inline Matrix make_codes(Extents extents, Strides strides = {}, std::size_t offset = 0) {
  return Matrix(FP8RT_DTYPE_E4M3, extents, strides, 0, offset);
}

inline fp8rt_status call_on_host(const Function &function, const Rule &rule, Operands &operands,
                                 fp8rt_health *health) {
  const fp8rt_quantize_desc desc = rule.desc();
  const fp8rt_tensor values = operands.values.tensor(), codes = operands.codes.tensor(),
                     scales = operands.scales.tensor();
  return call(function, {host().get(), &desc, &values, &codes, &scales, health, nullptr});
}

// Copies of the operands on the GPU, and the call on them.
struct DeviceOperands {
  explicit DeviceOperands(const Operands &operands)
      : values(operands.values), codes(operands.codes), scales(operands.scales) {}

  fp8rt_status call(const Function &function, const Rule &rule, fp8rt_health *counters, cudaStream_t stream,
                    const fp8rt::Context &context = gpu(), int device = kDevice) const {
    const fp8rt_quantize_desc desc = rule.desc();
    const fp8rt_tensor views[] = {values.tensor(device), codes.tensor(device), scales.tensor(device)};
    return fp8rt_test::call(function,
                            {context.get(), &desc, &views[0], &views[1], &views[2], counters, stream});
  }
  ::testing::AssertionResult same(const Operands &want) const {
    return all_of({{"values", same_bytes(values.download(), want.values)},
                   {"codes", same_bytes(codes.download(), want.codes)},
                   {"scales", same_bytes(scales.download(), want.scales)}});
  }

  DeviceMatrix values, codes, scales;
};

// One of the eight functions on both sides.
inline ::testing::AssertionResult same_on_both(Kind kind, const Rule &rule, Operands operands) {
  const Function &function = function_of(kind, rule.activation);
  const DeviceOperands device(operands);
  const DeviceHealth device_health;
  fp8rt_health health{};
  const Stream stream;
  const bool counted = function.has_health();
  const auto on_gpu = succeeded(device.call(function, rule, counted ? device_health.get() : nullptr, stream.get()));
  if (!on_gpu) {
    return ::testing::AssertionFailure() << "GPU: " << on_gpu.message();
  }
  const auto on_host = succeeded(call_on_host(function, rule, operands, counted ? &health : nullptr));
  stream.synchronize();
  return all_of({{"host", on_host},
                 {"bytes", device.same(operands)},
                 {"health", same_health(device_health.download(), health)}});
}

inline Rule rule_of(std::uint32_t recipe, std::uint32_t format, bool activation) {
  Rule rule;
  rule.recipe = recipe;
  rule.format = format;
  rule.activation = activation;
  return rule;
}

inline std::string describe(const Rule &rule, const Matrix &values) {
  return std::string(rule.activation ? "activation " : "weight ") + dtype_name(values.dtype()) + " " +
         (values.extents().experts == 0 ? "" : std::to_string(values.experts()) + "x") +
         std::to_string(values.rows()) + "x" + std::to_string(values.columns()) + " rows " +
         std::to_string(values.strides().row) + " apart, recipe " + std::to_string(rule.recipe) + ", format " +
         std::to_string(rule.format) + ", FP8RT_TEST_SEED=" + std::to_string(seed_of_the_day());
}

// The name of a case of recipe, format and dtype.
inline std::string parameter_name(const std::tuple<std::uint32_t, std::uint32_t, std::uint32_t> &parameters) {
  const char *recipes[] = {"Default", "Vllm", "DeepGemm", "NemoRl", "Te"};
  const char *formats[] = {"Fp32", "Pow2", "Packed"};
  return std::string(recipes[std::get<0>(parameters)]) + formats[std::get<1>(parameters)] +
         dtype_name(std::get<2>(parameters));
}

// A seed that is new in each run of the program and for each call.
inline std::uint64_t next_seed() {
  static std::uint64_t count = 0;
  return (static_cast<std::uint64_t>(seed_of_the_day()) << 32) + count++;
}

// Random values, and poisoned codes and scales that fit them.
inline Operands make_operands(const Rule &rule, Matrix values, Fill kind, bool column_major = false) {
  fill(values, kind, rule.activation ? 1 : 128, next_seed());
  const Extents extents = values.extents();
  return {std::move(values), make_codes(extents), make_scales(rule, extents, column_major)};
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_BOTH_HPP
