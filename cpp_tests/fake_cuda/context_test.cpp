// Contexts of devices: what they retain, which tensors they take, and that the caller's current context stays.

#include "caller.hpp"

namespace fp8rt_test {
namespace {

fp8rt_context_desc on_device(std::int32_t device) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.device = device;
  return desc;
}

TEST(GpuContext, RetainsThePrimaryContextAndGivesItBack) {
  primary(0);
  const std::size_t retained = fake_cuda_retained(0), modules = fake_cuda_live_modules();
  {
    const fp8rt::Context context = gpu_context(0);
    EXPECT_EQ(fake_cuda_retained(0), retained + 1);
    ASSERT_OK(fp8rt_context_prepare(context.get(), nullptr));
    EXPECT_GT(fake_cuda_live_modules(), modules);
    std::int32_t device = -1;
    ASSERT_OK(fp8rt_context_query(context.get(), &device, nullptr));
    EXPECT_EQ(device, 0);
  }
  EXPECT_EQ(fake_cuda_retained(0), retained);
  EXPECT_EQ(fake_cuda_live_modules(), modules);
}

TEST(GpuContext, OtherOrdinalsAreRefusedWithBothNumbers) {
  fp8rt_context *context = nullptr;
  const fp8rt_context_desc seven = on_device(7), negative = on_device(-2);
  EXPECT_TRUE(failed_with(fp8rt_context_create(&seven, &context), FP8RT_STATUS_NO_DEVICE, "fp8rt_context_create",
                          {"7", "2"}));
  EXPECT_EQ(fp8rt_context_create(&negative, &context), FP8RT_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(context, nullptr);
}

// The build has no code for it: an error at once, not a failing launch later.
TEST(GpuContext, UnknownArchitecturesAreUnsupported) {
  fake_cuda_reset();
  fake_cuda_set_attribute(0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 7);
  const std::size_t retained = fake_cuda_retained(0);
  fp8rt_context *context = nullptr;
  const fp8rt_context_desc desc = on_device(0);
  EXPECT_TRUE(failed_with(fp8rt_context_create(&desc, &context), FP8RT_STATUS_UNSUPPORTED, "fp8rt_context_create",
                          {"7.0"}));
  EXPECT_EQ(fake_cuda_retained(0), retained);
  fake_cuda_reset();
}

TEST(GpuContext, PreparesTwice) {
  const fp8rt::Context context = gpu_context(0);
  ASSERT_OK(fp8rt_context_prepare(context.get(), nullptr));
  const std::size_t modules = fake_cuda_live_modules();
  fake_cuda_reset();
  ASSERT_OK(fp8rt_context_prepare(context.get(), nullptr));
  EXPECT_EQ(fake_cuda_live_modules(), modules);
  EXPECT_EQ(fake_cuda_count("cuModuleLoadData"), 0u);
}

// Everything that a context does, on device 0, with another device current (-1: none, 0: its own).
void check_current_stays(int current_device) {
  const Current current(current_device);
  const CUcontext before = current_context();
  {
    const fp8rt::Context context = gpu_context(0);
    EXPECT_EQ(current_context(), before) << "create";
    const Stream stream(0);
    for (const Function &function : kFunctions) {
      const Operands operands(0, function, FP8RT_DTYPE_BF16, 256, 256);
      EXPECT_OK(operands.run(context, stream));
      EXPECT_EQ(current_context(), before) << function.name;
      fake_cuda_fail("cuLaunchKernelEx", CUDA_ERROR_LAUNCH_FAILED, 0);
      EXPECT_EQ(operands.run(context, stream), FP8RT_STATUS_CUDA_ERROR);
      fake_cuda_fail("cuLaunchKernelEx", 0, 0);
      EXPECT_EQ(current_context(), before) << function.name << " that fails";
    }
    EXPECT_OK(fp8rt_context_prepare(context.get(), stream.get()));
    EXPECT_EQ(current_context(), before) << "prepare";
  }
  EXPECT_EQ(current_context(), before) << "destroy";
}

TEST(CurrentContext, StaysWhereThereIsNone) { check_current_stays(-1); }
TEST(CurrentContext, StaysWhereItIsOurs) { check_current_stays(0); }
TEST(CurrentContext, StaysWhereItIsAnotherDevice) { check_current_stays(1); }

class Devices : public ::testing::TestWithParam<Function> {};

TEST_P(Devices, TensorsElsewhereAreRefused) {
  const fp8rt::Context context = gpu_context(0);
  const Stream stream(0);
  Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 256);
  fp8rt_tensor *const tensors[] = {&operands.values, &operands.codes, &operands.scales};
  for (fp8rt_tensor *tensor : tensors) {
    if (tensor == &operands.codes && !GetParam().has_codes()) continue;
    for (const std::int32_t device : {-1, 1}) {
      tensor->device = device;
      fake_cuda_reset();
      EXPECT_TRUE(failed_with(operands.run(context, stream), FP8RT_STATUS_DEVICE, GetParam().name,
                              {std::to_string(device), "0"}));
      EXPECT_EQ(launches().size(), 0u);
    }
    tensor->device = 0;
  }
  EXPECT_OK(operands.run(context, stream));
}

TEST_P(Devices, AHostContextTakesNoDeviceTensors) {
  const fp8rt::Context context;
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 256);
  Pointers pointers = operands.pointers(context, Stream(0));
  pointers.stream = nullptr;
  EXPECT_TRUE(failed_with(call(GetParam(), pointers), FP8RT_STATUS_DEVICE, GetParam().name, {"0", "-1"}));
}

TEST_P(Devices, EachContextUsesItsOwn) {
  const fp8rt::Context contexts[] = {gpu_context(0), gpu_context(1)};
  for (int device = 0; device < 2; ++device) {
    const Current other(1 - device);
    const Stream stream(device);
    const Operands operands(device, GetParam(), FP8RT_DTYPE_F16, 256, 256);
    fake_cuda_reset();
    ASSERT_OK(operands.run(contexts[device], stream));
    ASSERT_NE(fake_cuda_last_launch(), nullptr);
    EXPECT_EQ(fake_cuda_last_launch()->device, device);
    EXPECT_TRUE(no_violations());
  }
}

INSTANTIATE_TEST_SUITE_P(All, Devices, ::testing::ValuesIn(kFunctions));

}  // namespace
}  // namespace fp8rt_test
