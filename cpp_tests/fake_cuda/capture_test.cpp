// Graph capture: what is not prepared is refused and loads nothing; what is prepared only launches.

#include "caller.hpp"

namespace fp8rt_test {
namespace {

class Capturing : public ::testing::TestWithParam<Function> {
 protected:
  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
};

TEST_P(Capturing, UnpreparedIsRefused) {
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 256);
  fake_cuda_reset();
  {
    const Capture capture(stream);
    EXPECT_TRUE(failed_with(operands.run(context, stream), FP8RT_STATUS_NOT_PREPARED, GetParam().name, {"prepare"}));
  }
  EXPECT_TRUE(no_violations());
  EXPECT_EQ(fake_cuda_count("cuModuleLoadData") + fake_cuda_count("cuModuleLoadDataEx"), 0u);
  EXPECT_EQ(launches().size(), 0u);
  EXPECT_EQ(current_context(), nullptr);
  EXPECT_OK(operands.run(context, stream)) << "after the capture";
}

// Torch captures in the mode in which loading is illegal in the whole process, for other threads and streams too: the
// attempt alone breaks the capture. So the call either loads as a relaxed thread may, or refuses.
TEST_P(Capturing, UnpreparedBreaksNoCaptureOfAnotherStream) {
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 256);
  const Stream other(0);
  fake_cuda_reset();
  {
    const Capture capture(other);
    const bool succeeded = operands.run(context, stream) == FP8RT_STATUS_OK;
    EXPECT_EQ(launches().size(), succeeded ? 1u : 0u);
    EXPECT_TRUE(no_violations());
  }
  EXPECT_OK(operands.run(context, stream)) << "after the capture";
}

TEST_P(Capturing, PreparedLaunches) {
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 256);
  ASSERT_OK(fp8rt_context_prepare(context.get(), stream.get()));
  fake_cuda_reset();
  const Capture capture(stream);
  ASSERT_OK(operands.run(context, stream));
  EXPECT_EQ(launches().size(), 1u);
  EXPECT_TRUE(only_light_calls());
  EXPECT_TRUE(no_violations());
}

// A call before the capture loads what it needs, and the capture may use it.
TEST_P(Capturing, ACallBeforeIsEnough) {
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 256);
  ASSERT_OK(operands.run(context, stream));
  fake_cuda_reset();
  const Capture capture(stream);
  ASSERT_OK(operands.run(context, stream));
  EXPECT_TRUE(only_light_calls());
}

INSTANTIATE_TEST_SUITE_P(All, Capturing, ::testing::ValuesIn(kFunctions));

TEST(PrepareDuringCapture, IsAnErrorThatLoadsNothing) {
  const fp8rt::Context context = gpu_context(0);
  const Stream stream(0);
  fake_cuda_reset();
  {
    const Capture capture(stream);
    EXPECT_NE(fp8rt_context_prepare(context.get(), stream.get()), FP8RT_STATUS_OK);
    EXPECT_NE(std::string(fp8rt_last_error()).find("captur"), std::string::npos) << fp8rt_last_error();
    EXPECT_TRUE(no_violations());
  }
  EXPECT_EQ(fake_cuda_live_modules(), 0u);
  EXPECT_OK(fp8rt_context_prepare(context.get(), stream.get()));
}

}  // namespace
}  // namespace fp8rt_test
