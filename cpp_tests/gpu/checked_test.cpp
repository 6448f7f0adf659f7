// Refusals and empty calls under FP8RT_CHECK=1, which asks of every pointer whether it is memory of the device.

#include <gtest/gtest.h>

#include <cstdlib>

#include "both.hpp"

namespace fp8rt_test {
namespace {

// Before main, since the library may read it once.
const int kCheckIsSet = ::setenv("FP8RT_CHECK", "1", 1);

Operands example(const Function &function) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, function.activation);
  Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {130, 300}), Fill::kPlain);
  operands.scales.fill(0.5f);
  fill(operands.codes, Fill::kAnyBits, 1, next_seed());
  return operands;
}

Rule example_rule(const Function &function) {
  return rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, function.activation);
}

// The three views of a call on the GPU; the tests spoil one of them.
struct Views {
  explicit Views(const DeviceOperands &device)
      : values(device.values.tensor()), codes(device.codes.tensor()), scales(device.scales.tensor()) {}

  fp8rt_status call(const Function &function, const Rule &rule, const Stream &stream,
                    fp8rt_health *health = nullptr) const {
    const fp8rt_quantize_desc desc = rule.desc();
    return fp8rt_test::call(function, {gpu().get(), &desc, &values, &codes, &scales, health, stream.get()});
  }

  fp8rt_tensor values, codes, scales;
};

// A refused call writes nothing, and the next one works.
void expect_refused(const Function &function, const Operands &operands, const DeviceOperands &device,
                    const Views &spoiled, fp8rt_status want, const std::vector<std::string> &texts) {
  const Stream stream;
  const Rule rule = example_rule(function);
  EXPECT_TRUE(failed_with(spoiled.call(function, rule, stream), want, function.name, texts));
  stream.synchronize();
  EXPECT_TRUE(device.same(operands)) << function.name;
  EXPECT_OK(Views(device).call(function, rule, stream));
  stream.synchronize();
}

TEST(Checked, GoodCallsWork) {
  ASSERT_EQ(kCheckIsSet, 0);
  for (const Function &function : kFunctions) {
    EXPECT_TRUE(same_on_both(function.kind, example_rule(function), example(function))) << function.name;
  }
}

// R9: a host pointer given as device memory.
TEST(Checked, R9HostPointersAreRefused) {
  for (const Function &function : kFunctions) {
    Operands operands = example(function);
    for (int which = 0; which < 3; ++which) {
      if (which == 1 && !function.has_codes()) {
        continue;
      }
      const DeviceOperands device(operands);
      Views views(device);
      fp8rt_tensor *const roles[] = {&views.values, &views.codes, &views.scales};
      Matrix *const hosts[] = {&operands.values, &operands.codes, &operands.scales};
      const char *const names[] = {function.values_name(), "codes", "scales"};
      roles[which]->data = hosts[which]->data();
      expect_refused(function, operands, device, views, FP8RT_STATUS_DEVICE, {names[which]});
    }
  }
}

TEST(Refused, HostTensorsInAGpuContext) {
  for (const Function &function : kFunctions) {
    const Operands operands = example(function);
    const DeviceOperands device(operands);
    Views views(device);
    views.values.device = -1;
    expect_refused(function, operands, device, views, FP8RT_STATUS_DEVICE, {function.values_name(), "-1"});
  }
}

TEST(Refused, DeviceTensorsInAHostContext) {
  for (const Function &function : kFunctions) {
    const Operands operands = example(function);
    const DeviceOperands device(operands);
    const Views views(device);
    const fp8rt_quantize_desc desc = example_rule(function).desc();
    const fp8rt_status status =
        call(function, {host().get(), &desc, &views.values, &views.codes, &views.scales, nullptr, nullptr});
    EXPECT_TRUE(failed_with(status, FP8RT_STATUS_DEVICE, function.name, {"device 0", "-1"}));
    EXPECT_TRUE(device.same(operands));
  }
}

// S10: both numbers are named.
TEST(Refused, ScalesThatAreTooSmall) {
  for (const Function &function : kFunctions) {
    const Operands operands = example(function);
    const DeviceOperands device(operands);
    Views views(device);
    views.scales.shape[1] = 2;
    expect_refused(function, operands, device, views, FP8RT_STATUS_SHAPE, {"scales", "2", "3"});
  }
}

TEST(Refused, MemoryThatIsTooSmall) {
  for (const Function &function : kFunctions) {
    const Operands operands = example(function);
    const DeviceOperands device(operands);
    Views views(device);
    views.values.bytes -= 1;
    expect_refused(function, operands, device, views, FP8RT_STATUS_BOUNDS, {function.values_name()});
  }
}

TEST(Refused, OverlapOfOutputAndInput) {
  for (const Function &function : kFunctions) {
    if (!function.has_codes()) {
      continue;
    }
    const Operands operands = example(function);
    const DeviceOperands device(operands);
    Views views(device);
    views.codes.data = views.values.data;
    expect_refused(function, operands, device, views, FP8RT_STATUS_OVERLAP, {"overlap"});
  }
}

TEST(Refused, ADeviceThatIsNotThere) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.device = 1000;
  fp8rt_context *context = nullptr;
  EXPECT_TRUE(failed_with(fp8rt_context_create(&desc, &context), FP8RT_STATUS_NO_DEVICE, "fp8rt_context_create",
                          {"1000"}));
  EXPECT_EQ(context, nullptr);
}

// S6: extents of 0, with data and without.
TEST(Empty, Succeed) {
  for (const Function &function : kFunctions) {
    for (const std::uint32_t format : kFormats) {
      for (const Extents extents : {Extents{0, 128}, {128, 0}, {0, 0}, {5, 0}}) {
        const Rule rule = rule_of(FP8RT_RECIPE_VLLM, format, function.activation);
        const Operands operands = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, extents), Fill::kPlain, true);
        ASSERT_TRUE(same_on_both(function.kind, rule, operands))
            << function.name << ", " << describe(rule, operands.values);
        const DeviceOperands device(operands);
        Views views(device);
        views.values.data = views.codes.data = nullptr;
        views.scales.data = views.scales.bytes == 0 ? nullptr : views.scales.data;
        const Stream stream;
        EXPECT_OK(views.call(function, rule, stream)) << function.name;
        stream.synchronize();
      }
    }
  }
}

TEST(Empty, ExpertsSucceed) {
  const Rule rule;
  Matrix values(FP8RT_DTYPE_BF16, {128, 128, 1});
  const Operands operands = make_operands(rule, values, Fill::kPlain);
  const DeviceOperands device(operands);
  Views views(device);
  views.values.shape[0] = views.codes.shape[0] = views.scales.shape[0] = 0;
  const Stream stream;
  EXPECT_OK(views.call(function_of(Kind::kQuantize, false), rule, stream));
  stream.synchronize();
  EXPECT_TRUE(device.same(operands));
}

// Last of this program: were they not refused, the kernel's fault would spoil what comes after.
TEST(Checked, R9HostCountersAreRefused) {
  for (const Function &function : kFunctions) {
    if (!function.has_health()) {
      continue;
    }
    const Operands operands = example(function);
    const DeviceOperands device(operands);
    const Stream stream;
    fp8rt_health health{};
    const fp8rt_status status = Views(device).call(function, example_rule(function), stream, &health);
    EXPECT_TRUE(failed_with(status, FP8RT_STATUS_DEVICE, function.name, {"health"}));
    stream.synchronize();
    EXPECT_TRUE(device.same(operands));
  }
}

}  // namespace
}  // namespace fp8rt_test
