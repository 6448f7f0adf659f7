// A machine without libcuda: its names lead to files that are no libraries, so that a driver of the machine is not
// found either.

#include <gtest/gtest.h>

#include <string>

#include "host_half.hpp"
#include "process.hpp"

namespace fp8rt_test {
namespace {

TEST(NoDriver, IsSaid) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    fp8rt_context *context = nullptr;
    EXPECT_EQ(create_on(0, &context), FP8RT_STATUS_NO_DEVICE);
    EXPECT_NE(std::string(fp8rt_last_error()).find("libcuda"), std::string::npos) << fp8rt_last_error();
    EXPECT_EQ(context, nullptr);
  }
  EXPECT_FALSE(is_mapped("libcuda"));
}

TEST(NoDriver, TheHostHalfWorks) { check_host_half(); }

}  // namespace
}  // namespace fp8rt_test
