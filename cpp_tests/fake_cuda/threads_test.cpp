// One context from many threads, the first calls too: every call launches, what was loaded twice is unloaded, and each
// thread keeps its own current context.

#include <atomic>
#include <thread>

#include "caller.hpp"

namespace fp8rt_test {
namespace {

constexpr int kThreads = 8, kCalls = 50;

// Alternately with no device, ours, and another one current.
void run_calls(const fp8rt::Context &context, int number, std::atomic<int> &wrong) {
  const Current current(number % 3 - 1);
  const CUcontext before = current_context();
  const Stream stream(0);
  for (int i = 0; i < kCalls; ++i) {
    const Operands operands(0, kFunctions[(number + i) % 8], FP8RT_DTYPE_BF16, 256, 256);
    wrong += operands.run(context, stream) != FP8RT_STATUS_OK;
    wrong += current_context() != before;
  }
}

TEST(Threads, ShareAContext) {
  primary(0);
  primary(1);
  for (int round = 0; round < 10; ++round) {
    std::size_t modules = 0;
    {
      const fp8rt::Context prepared = gpu_context(0);
      ASSERT_OK(fp8rt_context_prepare(prepared.get(), nullptr));
      modules = fake_cuda_live_modules();
    }
    const fp8rt::Context context = gpu_context(0);
    fake_cuda_reset();
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int number = 0; number < kThreads; ++number) {
      threads.emplace_back([&, number] { run_calls(context, number, wrong); });
    }
    for (std::thread &thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(launches().size(), std::size_t{kThreads * kCalls});
    EXPECT_LE(fake_cuda_live_modules(), modules);
    EXPECT_TRUE(no_violations());
  }
}

}  // namespace
}  // namespace fp8rt_test
