// Loading the library touches no CUDA and starts no thread. This program does not link the fake driver: it is there for
// dlopen alone.

#include <gtest/gtest.h>

#include <string>

#include "host_half.hpp"
#include "process.hpp"

namespace fp8rt_test {
namespace {

// In one test, because what is opened stays.
TEST(Loading, TheFirstGpuContextOpensTheDriver) {
  EXPECT_FALSE(is_mapped("libcuda"));
  EXPECT_EQ(num_threads(), 1);
  check_host_half();
  EXPECT_FALSE(is_mapped("libcuda")) << "the host half opens the driver";
  const long threads = num_threads();
  fp8rt_context *context = nullptr;
  ASSERT_EQ(create_on(0, &context), FP8RT_STATUS_OK) << fp8rt_last_error();
  EXPECT_TRUE(is_mapped("libcuda"));
  EXPECT_EQ(num_threads(), threads) << "a GPU context starts threads";
  EXPECT_EQ(fp8rt_context_destroy(context), FP8RT_STATUS_OK);
}

}  // namespace
}  // namespace fp8rt_test
