// The half of the library that needs no driver: a quantization on the host with a result that is known.

#ifndef FP8RT_TEST_HOST_HALF_HPP
#define FP8RT_TEST_HOST_HALF_HPP

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "fp8rt.hpp"

namespace fp8rt_test {

inline void check_host_half() {
  const fp8rt::Context context;
  const std::vector<float> values(128 * 128, 448.0f);
  std::vector<std::uint8_t> codes(values.size());
  float scale = 0;
  const fp8rt_tensor weight = fp8rt::tensor(values.data(), FP8RT_DTYPE_F32, {128, 128});
  const fp8rt_tensor codes_view = fp8rt::tensor(codes.data(), FP8RT_DTYPE_E4M3, {128, 128});
  const fp8rt_tensor scales = fp8rt::tensor(&scale, FP8RT_DTYPE_F32, {1, 1});
  fp8rt::check(fp8rt_quantize_weight(context.get(), nullptr, &weight, &codes_view, &scales, nullptr, nullptr));
  EXPECT_EQ(codes, std::vector<std::uint8_t>(codes.size(), 0x7E));
  EXPECT_NEAR(scale, 1.0f, 1e-6f);
}

inline fp8rt_status create_on(std::int32_t device, fp8rt_context **context) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.device = device;
  return fp8rt_context_create(&desc, context);
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_HOST_HALF_HPP
