// R8: another device is current than the one that holds the tensors. Needs two GPUs.

#include <gtest/gtest.h>

#include "both.hpp"

namespace fp8rt_test {
namespace {

// Operands, and a stream, on a device.
struct Placed {
  Placed(int device_, const Operands &operands)
      : device(device_), current(device_), on_device(operands), stream(std::make_unique<Stream>()) {}

  int device;
  CurrentDevice current;
  DeviceOperands on_device;
  std::unique_ptr<Stream> stream;
};

TEST(TwoDevices, R8TheCurrentDeviceIsKept) {
  for (const int device : {0, 1}) {
    const CurrentDevice other(1 - device);
    const fp8rt::Context context = gpu_context(device);
    EXPECT_EQ(current_device(), 1 - device);
    ASSERT_OK(fp8rt_context_prepare(context.get(), nullptr));
    EXPECT_EQ(current_device(), 1 - device);
    for (const Function &function : kFunctions) {
      const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, function.activation);
      Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {130, 300}), Fill::kSpread);
      operands.scales.fill(0.5f);
      const Placed placed(device, operands);
      const CurrentDevice current(1 - device);
      ASSERT_OK(placed.on_device.call(function, rule, nullptr, placed.stream->get(), context, device));
      EXPECT_EQ(current_device(), 1 - device) << function.name;
      placed.stream->synchronize();
      ASSERT_OK(call_on_host(function, rule, operands, nullptr));
      const CurrentDevice back(device);
      EXPECT_TRUE(placed.on_device.same(operands)) << function.name << " on device " << device;
    }
  }
}

TEST(TwoDevices, ATensorOfTheOtherDeviceIsRefused) {
  const Function &function = function_of(Kind::kQuantize, false);
  const Rule rule;
  const Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {130, 300}), Fill::kSpread);
  const Placed placed(1, operands);
  EXPECT_TRUE(failed_with(placed.on_device.call(function, rule, nullptr, placed.stream->get(), gpu(), 1),
                          FP8RT_STATUS_DEVICE, function.name, {"device 1", "0"}));
  EXPECT_TRUE(placed.on_device.same(operands));
}

}  // namespace
}  // namespace fp8rt_test
