// The backends of a GPU, what is promised of each, and what each answered.

#ifndef FP8RT_TEST_LINEAR_BACKENDS_HPP
#define FP8RT_TEST_LINEAR_BACKENDS_HPP

#include <gtest/gtest.h>

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "contexts.hpp"
#include "linear_problem.hpp"

namespace fp8rt_test {

struct Backend {
  std::uint32_t bit;
  const char *name;

  bool operator==(const Backend &other) const { return bit == other.bit; }
};

constexpr Backend kDeepGemm{FP8RT_BACKEND_DEEPGEMM, "deepgemm"}, kCutlass{FP8RT_BACKEND_CUTLASS, "cutlass"},
    kCublasLt{FP8RT_BACKEND_CUBLASLT, "cublaslt"}, kPlain{FP8RT_BACKEND_PLAIN, "plain"};

// In the order in which they are asked.
constexpr Backend kBackends[] = {kDeepGemm, kCutlass, kCublasLt, kPlain};

// Whether the device is one that DeepGEMM's kernels are compiled for.
inline bool is_hopper_sxm() {
  static const bool answer = [] {
    cudaDeviceProp properties;
    CUDA(cudaGetDeviceProperties(&properties, kDevice));
    return properties.major == 9 && properties.minor == 0 && properties.multiProcessorCount == 132;
  }();
  return answer;
}

inline bool is_cutlass_built() {
  const std::string info = fp8rt_build_info();
  return info.find("cutlass") != std::string::npos && info.find("cutlass: none") == std::string::npos;
}

// 12.9 is the first that knows scales of 1x128 by 128x128.
inline bool is_cublaslt_there() {
  static const bool answer = [] {
    for (const char *name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
      void *library = dlopen(name, RTLD_LAZY | RTLD_LOCAL);
      void *symbol = library == nullptr ? nullptr : dlsym(library, "cublasLtGetVersion");
      if (symbol != nullptr && reinterpret_cast<std::size_t (*)()>(symbol)() >= 120900) {
        return true;
      }
    }
    return false;
  }();
  return answer;
}

// The shapes that tensor cores with copies by tensor maps take: rows of 16 bytes, whole vectors of y, float scales.
inline bool is_regular(const LinearShape &shape) {
  std::int64_t begin = 0;
  for (const std::int64_t rows : shape.parts) {
    if (begin % 8 != 0) {
      return false;
    }
    begin += rows;
  }
  const bool floats = shape.activation_format != FP8RT_SCALE_FORMAT_UE8M0_PACKED &&
                      shape.weight_format != FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  return floats && shape.m > 0 && shape.n > 0 && shape.k > 0 && shape.n % 8 == 0 && shape.k % 16 == 0 &&
         shape.extra_stride % 16 == 0;
}

// What a backend may not refuse. All else it may, and then says why.
inline bool must_take(const Backend &backend, const LinearShape &shape) {
  const bool packed = shape.activation_format == FP8RT_SCALE_FORMAT_UE8M0_PACKED ||
                      shape.weight_format == FP8RT_SCALE_FORMAT_UE8M0_PACKED;
  if (backend == kPlain) {
    return !packed;
  }
  // Which backends keep the order of sums for every M is theirs to say.
  if (!is_hopper_sxm() || !is_regular(shape) || shape.output_dtype != FP8RT_DTYPE_BF16 || shape.flags != 0) {
    return false;
  }
  if (backend == kDeepGemm) {
    return shape.k <= 28672;
  }
  const bool common = shape.n % 128 == 0 && shape.k % 128 == 0 && shape.parts.empty() && shape.extra_stride == 0;
  return backend == kCutlass ? is_cutlass_built() && common : is_cublaslt_there() && common;
}

// Counts what each backend took and refused, and prints it when the program ends: nothing is passed over in silence.
class Answers : public ::testing::Environment {
 public:
  static Answers &of_program() {
    static auto *const answers =
        static_cast<Answers *>(::testing::AddGlobalTestEnvironment(new Answers));  // gtest owns it
    return *answers;
  }

  void took(const Backend &backend) { ++taken_[backend.name]; }
  void refused(const Backend &backend, const std::string &reason) {
    ++refused_[backend.name];
    reasons_[backend.name].insert(reason);
  }
  int taken(const Backend &backend) { return taken_[backend.name]; }

  void TearDown() override {
    constexpr std::size_t kMostReasons = 12;
    for (const Backend &backend : kBackends) {
      std::printf("%s took %d plans and refused %d\n", backend.name, taken_[backend.name], refused_[backend.name]);
      std::size_t printed = 0;
      for (const std::string &reason : reasons_[backend.name]) {
        if (printed++ == kMostReasons) {
          std::printf("  and %zu other reasons\n", reasons_[backend.name].size() - kMostReasons);
          break;
        }
        std::printf("  %s\n", reason.c_str());
      }
    }
    std::fflush(stdout);
  }

 private:
  std::map<std::string, int> taken_, refused_;
  std::map<std::string, std::set<std::string>> reasons_;
};

// Registered before main begins.
inline Answers &answers_of_program = Answers::of_program();

// "K is 0" from "...: deepgemm: K is 0; cutlass: ...". Empty if the backend is not named.
inline std::string reason_of(const Backend &backend, const std::string &message) {
  const std::string begin = std::string(backend.name) + ": ";
  const std::size_t at = message.find(begin);
  if (at == std::string::npos) {
    return "";
  }
  const std::size_t from = at + begin.size();
  return message.substr(from, std::min(message.find(';', from), message.size()) - from);
}

// A plan by one backend alone; none if it refuses, which is a failure where it must not, or where it says no reason.
inline std::optional<fp8rt::LinearPlan> plan_by(const Backend &backend, const LinearProblem &problem,
                                                const fp8rt::Context &context = gpu()) {
  fp8rt_linear_desc desc = problem.desc();
  desc.backends = backend.bit;
  try {
    fp8rt::LinearPlan plan(context, desc);
    EXPECT_EQ(plan.query().backend, backend.bit);
    answers_of_program.took(backend);
    return plan;
  } catch (const fp8rt::Error &error) {
    const std::string reason = reason_of(backend, error.what());
    EXPECT_EQ(error.status(), FP8RT_STATUS_UNSUPPORTED) << error.what();
    EXPECT_NE(reason, "") << error.what();
    EXPECT_FALSE(must_take(backend, problem.shape)) << error.what();
    answers_of_program.refused(backend, reason);
    return std::nullopt;
  }
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_LINEAR_BACKENDS_HPP
