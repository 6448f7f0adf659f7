// Errors of the driver: the status, the number, the name of the function, and nothing left behind.

#include "caller.hpp"

namespace fp8rt_test {
namespace {

// The driver's functions fail for as long as this lives.
class Failing {
 public:
  Failing(const char *function, CUresult result, std::uint32_t after_calls = 0) : function_(function) {
    fake_cuda_fail(function, result, after_calls);
  }
  Failing(const Failing &) = delete;
  Failing &operator=(const Failing &) = delete;
  ~Failing() { fake_cuda_fail(function_, 0, 0); }

 private:
  const char *function_;
};

::testing::AssertionResult failed_as(fp8rt_status status, CUresult number, const char *entry, const char *function) {
  if (fp8rt_last_cuda_error() != number) {
    return ::testing::AssertionFailure() << "fp8rt_last_cuda_error() is " << fp8rt_last_cuda_error() << ", not "
                                         << number << ": " << fp8rt_last_error();
  }
  return failed_with(status, FP8RT_STATUS_CUDA_ERROR, entry, {function, std::to_string(number)});
}

class Failures : public ::testing::TestWithParam<Function> {
 protected:
  void SetUp() override { fake_cuda_reset(); }

  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
  Operands operands{0, GetParam(), FP8RT_DTYPE_BF16, 256, 256};
};

TEST_P(Failures, OfALaunch) {
  {
    const Failing failing("cuLaunchKernelEx", CUDA_ERROR_ILLEGAL_ADDRESS);
    EXPECT_TRUE(failed_as(operands.run(context, stream), CUDA_ERROR_ILLEGAL_ADDRESS, GetParam().name,
                          "cuLaunchKernelEx"));
  }
  EXPECT_EQ(current_context(), nullptr);
  EXPECT_OK(operands.run(context, stream));
}

TEST_P(Failures, OfLoading) {
  const std::size_t modules = fake_cuda_live_modules();
  {
    const Failing failing("cuModuleLoadData", CUDA_ERROR_NO_BINARY_FOR_GPU);
    EXPECT_TRUE(failed_as(operands.run(context, stream), CUDA_ERROR_NO_BINARY_FOR_GPU, GetParam().name,
                          "cuModuleLoadData"));
  }
  EXPECT_EQ(fake_cuda_live_modules(), modules);
  EXPECT_EQ(current_context(), nullptr);
  EXPECT_OK(operands.run(context, stream));
}

// After some kernels were found: the module is not kept half-known.
TEST_P(Failures, InTheMiddleOfLoading) {
  const std::size_t modules = fake_cuda_live_modules();
  {
    const Failing failing("cuModuleGetFunction", CUDA_ERROR_NOT_FOUND, 2);
    EXPECT_TRUE(failed_as(operands.run(context, stream), CUDA_ERROR_NOT_FOUND, GetParam().name,
                          "cuModuleGetFunction"));
  }
  EXPECT_EQ(fake_cuda_live_modules(), modules);
  EXPECT_OK(operands.run(context, stream));
}

TEST_P(Failures, OfMakingTheContextCurrent) {
  const Failing failing("cuCtxPushCurrent", CUDA_ERROR_INVALID_CONTEXT);
  EXPECT_TRUE(failed_as(operands.run(context, stream), CUDA_ERROR_INVALID_CONTEXT, GetParam().name,
                        "cuCtxPushCurrent"));
  EXPECT_EQ(launches().size(), 0u);
}

TEST_P(Failures, OfTheCaptureQuery) {
  const Failing failing("cuStreamIsCapturing", CUDA_ERROR_INVALID_HANDLE);
  EXPECT_TRUE(failed_as(operands.run(context, stream), CUDA_ERROR_INVALID_HANDLE, GetParam().name,
                        "cuStreamIsCapturing"));
}

INSTANTIATE_TEST_SUITE_P(All, Failures, ::testing::ValuesIn(kFunctions));

class CreateFailures : public ::testing::TestWithParam<const char *> {};

TEST_P(CreateFailures, LeaveNothing) {
  const Current current(1);
  const CUcontext before = current_context();
  fake_cuda_reset();
  const std::size_t retained = fake_cuda_retained(0), modules = fake_cuda_live_modules();
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.device = 0;
  fp8rt_context *context = nullptr;
  {
    const Failing failing(GetParam(), CUDA_ERROR_UNKNOWN);
    EXPECT_TRUE(failed_as(fp8rt_context_create(&desc, &context), CUDA_ERROR_UNKNOWN, "fp8rt_context_create",
                          GetParam()));
  }
  EXPECT_EQ(context, nullptr);
  EXPECT_EQ(fake_cuda_retained(0), retained);
  EXPECT_EQ(fake_cuda_live_modules(), modules);
  EXPECT_EQ(current_context(), before);
  EXPECT_OK(fp8rt_context_create(&desc, &context));
  EXPECT_OK(fp8rt_context_destroy(context));
}

INSTANTIATE_TEST_SUITE_P(All, CreateFailures,
                         ::testing::Values("cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute",
                                           "cuDevicePrimaryCtxRetain"));

TEST(PrepareFailures, LeaveTheContextUsable) {
  const fp8rt::Context context = gpu_context(0);
  fake_cuda_reset();
  for (std::uint32_t calls = 0; calls < 3; ++calls) {
    const Failing failing("cuModuleLoadData", CUDA_ERROR_OUT_OF_MEMORY, calls);
    const fp8rt_status status = fp8rt_context_prepare(context.get(), nullptr);
    if (status == FP8RT_STATUS_OK) break;
    EXPECT_TRUE(status == FP8RT_STATUS_CUDA_ERROR || status == FP8RT_STATUS_OUT_OF_MEMORY);
    EXPECT_EQ(fp8rt_last_cuda_error(), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_EQ(current_context(), nullptr);
  }
  EXPECT_OK(fp8rt_context_prepare(context.get(), nullptr));
}

}  // namespace
}  // namespace fp8rt_test
