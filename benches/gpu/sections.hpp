// The main of a bench: sections by name, a context on the GPU, and rates.

#ifndef FP8RT_BENCH_SECTIONS_HPP
#define FP8RT_BENCH_SECTIONS_HPP

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cuda.hpp"
#include "fp8rt.hpp"

namespace fp8rt_bench {

inline fp8rt::Context gpu_context() {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.device = fp8rt_test::kDevice;
  return fp8rt::Context(desc);
}

inline void print_device() {
  cudaDeviceProp properties;
  CUDA(cudaGetDeviceProperties(&properties, fp8rt_test::kDevice));
  std::printf("device %s, %d multiprocessors\n%s\n", properties.name, properties.multiProcessorCount,
              fp8rt_build_info());
}

// TB/s of so many bytes an element.
inline double rate(std::int64_t elements, int bytes, double us) {
  return static_cast<double>(elements) * bytes / us / 1e6;
}

template <typename Bench>
struct Section {
  const char *name;
  void (Bench::*run)();
};

// A section that fails says so, and the others run. Returns how many failed.
template <typename Bench>
int run_each(const Section<Bench> *sections, std::size_t count, const std::vector<std::string> &wanted) {
  print_device();
  Bench bench;
  int failures = 0;
  for (const Section<Bench> *section = sections; section != sections + count; ++section) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), section->name) == wanted.end()) {
      continue;
    }
    try {
      (bench.*section->run)();
    } catch (const std::exception &error) {
      std::printf("%s failed: %s\n", section->name, error.what());
      failures += 1;
    }
    std::fflush(stdout);
  }
  return failures;
}

// Exit code: 77 where there is no GPU, 1 where something failed.
template <typename Bench>
int run_sections(const Section<Bench> *sections, std::size_t count, const std::vector<std::string> &wanted) {
  const auto [devices, reason] = fp8rt_test::count_devices();
  if (devices == 0) {
    std::printf("skipped: no GPU: %s\n", reason.c_str());
    return 77;
  }
  try {
    return run_each<Bench>(sections, count, wanted) == 0 ? 0 : 1;
  } catch (const std::exception &error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
}

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_SECTIONS_HPP
