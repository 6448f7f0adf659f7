// How long the first linear of a process takes, with the load of the library: first_linear [M N K]
//
// The process is not linked to the library and has its CUDA context before. Prints the milliseconds of each step and
// their sum; fails if y is wrong.

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cuda.hpp"
#include "fp8rt.hpp"
#include "linear_shapes.hpp"

namespace fp8rt_bench {
namespace {

using fp8rt_test::DeviceBuffer;
using fp8rt_test::kDevice;
using fp8rt_test::Stream;

constexpr float kWeightScale = 1.0f / 64;

// The functions that a linear needs, of a library that is opened now.
class Library {
 public:
  void check(fp8rt_status status) const {
    if (status != FP8RT_STATUS_OK) {
      throw std::runtime_error(last_error());
    }
  }

 private:
  static void *open() {
    const char *named = std::getenv("FP8RT_LIBRARY");
    void *handle = dlopen(named != nullptr && *named != '\0' ? named : "libfp8rt.so.0", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      throw std::runtime_error(dlerror());
    }
    return handle;
  }
  template <typename Function>
  Function *find(const char *name) const {
    void *symbol = dlsym(handle_, name);
    if (symbol == nullptr) {
      throw std::runtime_error(std::string("the library has no ") + name);
    }
    return reinterpret_cast<Function *>(symbol);
  }

  void *handle_ = open();

 public:
#define FP8RT_FUNCTION(name) decltype(fp8rt_##name) *name = find<decltype(fp8rt_##name)>("fp8rt_" #name)
  FP8RT_FUNCTION(last_error);
  FP8RT_FUNCTION(context_create);
  FP8RT_FUNCTION(linear_plan_create);
  FP8RT_FUNCTION(linear_plan_prepare);
  FP8RT_FUNCTION(linear_plan_workspace);
  FP8RT_FUNCTION(linear);
#undef FP8RT_FUNCTION
};

fp8rt_tensor on_device(const DeviceBuffer &memory, fp8rt_dtype dtype, std::int64_t rows, std::int64_t columns) {
  fp8rt_tensor view = fp8rt::tensor(memory.data(), dtype, {rows, columns});
  view.device = kDevice;
  return view;
}

DeviceBuffer filled(std::int64_t elements, std::uint32_t word, std::int64_t element_bytes) {
  std::vector<std::uint32_t> words(static_cast<std::size_t>((elements * element_bytes + 3) / 4), word);
  DeviceBuffer memory(words.size() * 4);
  memory.upload(words.data(), memory.bytes());
  return memory;
}

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// x of ones; a weight of codes of one.
struct Operands {
  Operands(std::int64_t m_, std::int64_t n_, std::int64_t k_)
      : m(m_), n(n_), k(k_), x(filled(m * k, 0x3F803F80, 2)), codes(filled(n * k, 0x38383838, 1)),
        scales(filled(bands() * groups(), bits_of(kWeightScale), 4)), y(filled(m * n, 0xFFFFFFFF, 2)) {}

  std::int64_t bands() const { return (n + 127) / 128; }
  std::int64_t groups() const { return (k + 127) / 128; }

  // Elements of y that are not what they should be, to a hundredth.
  std::int64_t wrong() const {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(m * n));
    y.download(values.data(), values.size() * 2);
    const float want = static_cast<float>(k) * kWeightScale;
    return std::count_if(values.begin(), values.end(), [&](std::uint16_t value) {
      const std::uint32_t bits = std::uint32_t{value} << 16;
      float got;
      std::memcpy(&got, &bits, sizeof got);
      return !(std::fabs(got - want) <= want / 100);
    });
  }

  std::int64_t m, n, k;
  DeviceBuffer x, codes, scales, y;
};

class Steps {
 public:
  void done(const char *name) {
    const auto now = std::chrono::steady_clock::now();
    steps_.emplace_back(name, std::chrono::duration<double, std::milli>(now - last_).count());
    last_ = std::chrono::steady_clock::now();
  }
  void print(const Operands &operands) const {
    std::printf("first M=%ld N=%ld K=%ld", long{operands.m}, long{operands.n}, long{operands.k});
    double sum = 0;
    for (const auto &[name, milliseconds] : steps_) {
      std::printf(" %s_ms=%.2f", name, milliseconds);
      sum += milliseconds;
    }
    std::printf(" sum_ms=%.2f\n", sum);
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  std::vector<std::pair<const char *, double>> steps_;
};

int run(std::int64_t m, std::int64_t n, std::int64_t k) {
  const Stream stream;
  const Operands operands(m, n, k);
  const fp8rt_tensor x = on_device(operands.x, FP8RT_DTYPE_BF16, m, k);
  const fp8rt_tensor weight = on_device(operands.codes, FP8RT_DTYPE_E4M3, n, k);
  const fp8rt_tensor scales = on_device(operands.scales, FP8RT_DTYPE_F32, operands.bands(), operands.groups());
  const fp8rt_tensor y = on_device(operands.y, FP8RT_DTYPE_BF16, m, n);
  fp8rt_context_desc context_desc = fp8rt::context_desc();
  context_desc.device = kDevice;
  fp8rt_linear_desc desc = fp8rt::linear_desc();
  desc.max_m = m;
  desc.n = n;
  desc.k = k;

  Steps steps;
  const Library library;
  steps.done("load");
  fp8rt_context *context = nullptr;
  library.check(library.context_create(&context_desc, &context));
  steps.done("context");
  fp8rt_linear_plan *plan = nullptr;
  library.check(library.linear_plan_create(context, &desc, &plan));
  steps.done("plan");
  library.check(library.linear_plan_prepare(plan, &weight, &scales, nullptr, stream.get()));
  steps.done("prepare");
  std::uint64_t bytes = 0;
  library.check(library.linear_plan_workspace(plan, m, &bytes));
  const DeviceBuffer workspace(static_cast<std::size_t>(bytes));
  steps.done("workspace");
  library.check(library.linear(plan, &x, &weight, &scales, nullptr, &y, workspace.data(), bytes, stream.get()));
  steps.done("enqueue");
  stream.synchronize();
  steps.done("synchronize");
  steps.print(operands);

  if (const std::int64_t wrong = operands.wrong()) {
    std::printf("first: %ld of %ld elements of y are wrong\n", long{wrong}, long{m * n});
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace fp8rt_bench

int main(int argc, char **argv) {
  using namespace fp8rt_bench;
  try {
    const bool given = argc == 4;
    if (argc != 1 && !given) {
      throw std::invalid_argument("first_linear [M N K]");
    }
    return run(given ? positive_number(argv[1]) : 1, given ? positive_number(argv[2]) : 4096,
               given ? positive_number(argv[3]) : 4096);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
}
