// Calls and what they say: one signature for the eight functions that quantize, assertions on a status with its
// message, and workspaces.

#ifndef FP8RT_TEST_CALLS_HPP
#define FP8RT_TEST_CALLS_HPP

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <ostream>
#include <string>
#include <vector>

#include "fp8rt.hpp"
#include "matrix.hpp"
#include "oracle.hpp"

inline bool operator==(const fp8rt_health &a, const fp8rt_health &b) {
  return a.non_finite == b.non_finite && a.saturated == b.saturated && a.became_zero == b.became_zero &&
         a.became_subnormal == b.became_subnormal;
}

inline std::ostream &operator<<(std::ostream &out, const fp8rt_health &health) {
  return out << "{non_finite " << health.non_finite << ", saturated " << health.saturated << ", became_zero "
             << health.became_zero << ", became_subnormal " << health.became_subnormal << "}";
}

namespace fp8rt_test {

inline ::testing::AssertionResult succeeded(fp8rt_status status) {
  if (status == FP8RT_STATUS_OK) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << fp8rt_status_name(status) << ": " << fp8rt_last_error();
}

// The status that is wanted, a message that begins with the function's name, and each of `texts` in it.
inline ::testing::AssertionResult failed_with(fp8rt_status got, fp8rt_status want, const std::string &function,
                                              const std::vector<std::string> &texts) {
  const std::string message = fp8rt_last_error();
  if (got != want) {
    return ::testing::AssertionFailure() << fp8rt_status_name(got) << ", expected " << fp8rt_status_name(want)
                                         << "; the last message is \"" << message << "\"";
  }
  if (message.rfind(function + ": ", 0) != 0) {
    return ::testing::AssertionFailure() << "\"" << message << "\" does not begin with \"" << function << ": \"";
  }
  for (const std::string &text : texts) {
    if (message.find(text, function.size()) == std::string::npos) {
      return ::testing::AssertionFailure() << "\"" << message << "\" does not contain \"" << text << "\"";
    }
  }
  return ::testing::AssertionSuccess();
}

#define EXPECT_OK(call) EXPECT_TRUE(::fp8rt_test::succeeded(call))
#define ASSERT_OK(call) ASSERT_TRUE(::fp8rt_test::succeeded(call))

enum class Kind { kQuantize, kWithScales, kCompute, kDequantize };

// One of the eight functions. `values` is the weight or activation: an input, but for dequantize.
struct Function {
  const char *name;
  Kind kind;
  bool activation;

  const char *values_name() const { return activation ? "activation" : "weight"; }
  bool has_codes() const { return kind != Kind::kCompute; }
  bool has_health() const { return kind == Kind::kQuantize || kind == Kind::kWithScales; }
  bool writes_scales() const { return kind == Kind::kQuantize || kind == Kind::kCompute; }
  bool writes_codes() const { return kind == Kind::kQuantize || kind == Kind::kWithScales; }
  std::uint32_t default_recipe() const { return activation ? FP8RT_RECIPE_VLLM : FP8RT_RECIPE_NEMO_RL; }
};

inline void PrintTo(const Function &function, std::ostream *out) { *out << function.name; }

constexpr Function kFunctions[] = {
    {"fp8rt_quantize_weight", Kind::kQuantize, false},
    {"fp8rt_quantize_activation", Kind::kQuantize, true},
    {"fp8rt_quantize_weight_with_scales", Kind::kWithScales, false},
    {"fp8rt_quantize_activation_with_scales", Kind::kWithScales, true},
    {"fp8rt_compute_weight_scales", Kind::kCompute, false},
    {"fp8rt_compute_activation_scales", Kind::kCompute, true},
    {"fp8rt_dequantize_weight", Kind::kDequantize, false},
    {"fp8rt_dequantize_activation", Kind::kDequantize, true},
};

// The pointers of a call, in the roles that all eight share.
struct Pointers {
  fp8rt_context *context = nullptr;
  const fp8rt_quantize_desc *desc = nullptr;
  const fp8rt_tensor *values = nullptr;
  const fp8rt_tensor *codes = nullptr;
  const fp8rt_tensor *scales = nullptr;
  fp8rt_health *health = nullptr;
  void *stream = nullptr;
};

inline fp8rt_status call(const Function &function, const Pointers &p) {
  switch (function.kind) {
    case Kind::kQuantize: {
      const auto quantize = function.activation ? fp8rt_quantize_activation : fp8rt_quantize_weight;
      return quantize(p.context, p.desc, p.values, p.codes, p.scales, p.health, p.stream);
    }
    case Kind::kWithScales: {
      const auto with_scales =
          function.activation ? fp8rt_quantize_activation_with_scales : fp8rt_quantize_weight_with_scales;
      return with_scales(p.context, p.desc, p.values, p.scales, p.codes, p.health, p.stream);
    }
    case Kind::kCompute: {
      const auto compute = function.activation ? fp8rt_compute_activation_scales : fp8rt_compute_weight_scales;
      return compute(p.context, p.desc, p.values, p.scales, p.stream);
    }
    case Kind::kDequantize:
      break;
  }
  const auto dequantize = function.activation ? fp8rt_dequantize_activation : fp8rt_dequantize_weight;
  return dequantize(p.context, p.desc, p.codes, p.scales, p.values, p.stream);
}

// A call on whole matrices under a rule.
inline fp8rt_status call(Kind kind, const fp8rt::Context &context, const Rule &rule, const Matrix &values,
                         const Matrix *codes, const Matrix &scales, fp8rt_health *health = nullptr) {
  for (const Function &function : kFunctions) {
    if (function.kind == kind && function.activation == rule.activation) {
      const fp8rt_quantize_desc desc = rule.desc();
      const fp8rt_tensor values_view = values.tensor(), scales_view = scales.tensor();
      const fp8rt_tensor codes_view = codes == nullptr ? fp8rt_tensor{} : codes->tensor();
      return call(function, {context.get(), &desc, &values_view, codes == nullptr ? nullptr : &codes_view,
                             &scales_view, health, nullptr});
    }
  }
  return FP8RT_STATUS_INTERNAL;
}

inline fp8rt_status quantize(const fp8rt::Context &context, const Rule &rule, const Matrix &values,
                             const Matrix &codes, const Matrix &scales, fp8rt_health *health = nullptr) {
  return call(Kind::kQuantize, context, rule, values, &codes, scales, health);
}

inline fp8rt_status quantize_with_scales(const fp8rt::Context &context, const Rule &rule, const Matrix &values,
                                         const Matrix &scales, const Matrix &codes, fp8rt_health *health = nullptr) {
  return call(Kind::kWithScales, context, rule, values, &codes, scales, health);
}

inline fp8rt_status compute_scales(const fp8rt::Context &context, const Rule &rule, const Matrix &values,
                                   const Matrix &scales) {
  return call(Kind::kCompute, context, rule, values, nullptr, scales);
}

inline fp8rt_status dequantize(const fp8rt::Context &context, const Rule &rule, const Matrix &codes,
                               const Matrix &scales, const Matrix &values) {
  return call(Kind::kDequantize, context, rule, values, &codes, scales);
}

inline fp8rt::Context context_with_threads(std::uint32_t num_threads) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.num_threads = num_threads;
  return fp8rt::Context(desc);
}

// Sets an environment variable for as long as it lives. Not for tests with threads.
class Environment {
 public:
  Environment(const char *name, const char *value) : name_(name) {
    const char *before = std::getenv(name);
    had_ = before != nullptr;
    before_ = had_ ? before : "";
    ::setenv(name, value, 1);
  }
  Environment(const Environment &) = delete;
  Environment &operator=(const Environment &) = delete;
  ~Environment() {
    if (had_) {
      ::setenv(name_, before_.c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }

 private:
  const char *name_;
  bool had_;
  std::string before_;
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_CALLS_HPP
