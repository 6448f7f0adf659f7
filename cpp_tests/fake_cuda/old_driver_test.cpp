// A driver that lacks a function: an error that names it, and no crash later.

#include <gtest/gtest.h>

#include <string>

#include "host_half.hpp"

namespace fp8rt_test {
namespace {

TEST(OldDriver, NamesWhatIsMissing) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    fp8rt_context *context = nullptr;
    EXPECT_EQ(create_on(0, &context), FP8RT_STATUS_NO_DEVICE);
    EXPECT_NE(std::string(fp8rt_last_error()).find("cuLaunchKernelEx"), std::string::npos) << fp8rt_last_error();
    EXPECT_EQ(context, nullptr);
  }
}

TEST(OldDriver, TheHostHalfWorks) { check_host_half(); }

}  // namespace
}  // namespace fp8rt_test
