// The main of every program here. Exits 77, which ctest calls skipped, where there are fewer GPUs than
// FP8RT_TEST_DEVICES.

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>

#include "contexts.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr int kSkipped = 77;

std::unique_ptr<fp8rt::Context> gpu_of_program, host_of_program;

bool has_devices(int wanted) {
  const auto [count, reason] = count_devices();
  if (count < wanted) {
    std::printf("skipped: needs GPUs: %d, has: %d%s%s\n", wanted, count, reason.empty() ? "" : ", ", reason.c_str());
    return false;
  }
  return true;
}

void print_device() {
  cudaDeviceProp properties;
  CUDA(cudaGetDeviceProperties(&properties, kDevice));
  std::printf("%s, compute capability %d.%d\n%s\n", properties.name, properties.major, properties.minor,
              fp8rt_build_info());
  std::fflush(stdout);
}

int run() {
  print_device();
  seed_of_the_day();
  gpu_of_program = std::make_unique<fp8rt::Context>(gpu_context(kDevice));
  host_of_program = std::make_unique<fp8rt::Context>();
  const int result = RUN_ALL_TESTS();
  gpu_of_program.reset();
  host_of_program.reset();
  return result;
}

}  // namespace

const fp8rt::Context &gpu() { return *gpu_of_program; }
const fp8rt::Context &host() { return *host_of_program; }

}  // namespace fp8rt_test

int main(int argc, char **argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (!fp8rt_test::has_devices(FP8RT_TEST_DEVICES)) {
    return fp8rt_test::kSkipped;
  }
  try {
    return fp8rt_test::run();
  } catch (const std::exception &error) {
    std::printf("failed before the first test: %s\n", error.what());
    return 1;
  }
}
