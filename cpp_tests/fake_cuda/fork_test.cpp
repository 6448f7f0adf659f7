// CUDA does not survive a fork: a context of the parent says so in the child, and never calls the driver there.

#include <sys/wait.h>
#include <unistd.h>

#include "caller.hpp"

namespace fp8rt_test {
namespace {

// Runs `body` in a child, which is successful if it returns 0.
template <class Body>
void in_child(Body body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) _exit(body());
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "the child crashed";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

// Number of the first check that failed, 0 if none did.
int first_failure(std::initializer_list<bool> checks) {
  int number = 0;
  for (const bool check : checks) {
    ++number;
    if (!check) return number;
  }
  return 0;
}

// First, because it wants a process that has not used the driver.
TEST(Fork, BeforeTheDriverIsUsedIsFine) {
  in_child([] {
    const fp8rt::Context context = gpu_context(0);
    const Stream stream(0);
    const Operands operands(0, kFunctions[0], FP8RT_DTYPE_BF16, 256, 256);
    return first_failure({operands.run(context, stream) == FP8RT_STATUS_OK, launches().size() == 1});
  });
}

class Forked : public ::testing::TestWithParam<Function> {};

TEST_P(Forked, CallsAreRefused) {
  fp8rt::Context context = gpu_context(0);
  const Stream stream(0);
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 256);
  ASSERT_OK(operands.run(context, stream));
  fake_cuda_reset();
  in_child([&] {
    const bool refused = operands.run(context, stream) == FP8RT_STATUS_FORKED;
    const bool said = std::string(fp8rt_last_error()).find("fork") != std::string::npos;
    const bool prepare = fp8rt_context_prepare(context.get(), stream.get()) == FP8RT_STATUS_FORKED;
    return first_failure({refused, said, prepare, fake_cuda_count(nullptr) == 0});
  });
  EXPECT_OK(operands.run(context, stream)) << "in the parent";
}

INSTANTIATE_TEST_SUITE_P(All, Forked, ::testing::ValuesIn(kFunctions));

TEST(Fork, AContextOfTheParentMayBeDestroyed) {
  fp8rt::Context context = gpu_context(0);
  ASSERT_OK(fp8rt_context_prepare(context.get(), nullptr));
  fake_cuda_reset();
  in_child([&] {
    context = fp8rt::Context();
    return first_failure({fake_cuda_violations() == 0});
  });
}

// The driver itself refuses: there is nothing better to say than its error.
TEST(Fork, ANewContextInTheChildIsAnError) {
  const fp8rt::Context context = gpu_context(0);
  in_child([] {
    fp8rt_context_desc desc = fp8rt::context_desc();
    desc.device = 0;
    fp8rt_context *made = nullptr;
    const fp8rt_status status = fp8rt_context_create(&desc, &made);
    return first_failure({status == FP8RT_STATUS_FORKED || status == FP8RT_STATUS_CUDA_ERROR, made == nullptr});
  });
}

TEST(Fork, HostContextsGoOn) {
  const fp8rt::Context gpu = gpu_context(0);
  in_child([] {
    const fp8rt::Context context;
    return first_failure({fp8rt_context_prepare(context.get(), nullptr) == FP8RT_STATUS_OK});
  });
}

}  // namespace
}  // namespace fp8rt_test
