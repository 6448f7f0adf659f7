// Contexts, plans, errors and the log, used by many threads at once. Run under a thread sanitizer by the label
// `threads`.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "linear_problem.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr int kThreads = 8, kRounds = 4;

// Calls `work(thread)` on all threads at once; an assertion of any of them fails the test.
template <typename Work>
void on_all_threads(Work work) {
  std::atomic<int> waiting{kThreads};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      waiting.fetch_sub(1);
      while (waiting.load() > 0) {
        std::this_thread::yield();
      }
      work(thread);
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
}

TEST(ManyThreads, QuantizeWithOneContext) {
  for (const std::uint32_t owned : {1u, 3u}) {
    const fp8rt::Context context = context_with_threads(owned);
    on_all_threads([&](int thread) {
      Rule rule;
      rule.activation = thread % 2 == 0;
      rule.format = static_cast<std::uint32_t>(thread % 3);
      Matrix values(FP8RT_DTYPE_BF16, {150 + 30 * thread, 520});
      Random(static_cast<std::uint32_t>(thread)).fill_hostile(values, true);
      Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents());
      Matrix want_codes = codes, want_scales = scales;
      oracle_quantize(rule, values, want_codes, want_scales);
      for (int round = 0; round < kRounds; ++round) {
        Matrix got_codes = codes, got_scales = scales;
        EXPECT_OK(quantize(context, rule, values, got_codes, got_scales));
        EXPECT_TRUE(same_bytes(got_codes, want_codes));
        EXPECT_TRUE(same_bytes(got_scales, want_scales));
      }
    });
  }
}

// Threads may share the counters: they are added to, never set.
TEST(ManyThreads, ShareTheHealthCounters) {
  const fp8rt::Context context = context_with_threads(2);
  Rule rule;
  Matrix values(FP8RT_DTYPE_BF16, {200, 300});
  Random(3).fill_hostile(values, true);
  Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents());
  const fp8rt_health one = oracle_quantize(rule, values, codes, scales);
  fp8rt_health shared{};
  on_all_threads([&](int) {
    Matrix own_codes(FP8RT_DTYPE_E4M3, values.extents());
    const Matrix own_scales = make_scales(rule, values.extents());
    EXPECT_OK(quantize(context, rule, values, own_codes, own_scales, &shared));
  });
  const std::uint64_t times = kThreads;
  EXPECT_EQ(shared, (fp8rt_health{one.non_finite * times, one.saturated * times, one.became_zero * times,
                                  one.became_subnormal * times}));
  EXPECT_GT(one.non_finite, 0u);
}

TEST(ManyThreads, RunOnePlan) {
  for (const std::uint32_t owned : {1u, 3u}) {
    const fp8rt::Context context = context_with_threads(owned);
    LinearShape shape{40, 200, 300};
    shape.bias_dtype = FP8RT_DTYPE_F32;
    LinearProblem problem(shape);
    const fp8rt::LinearPlan plan(context, problem.desc());
    ASSERT_OK(problem.run(plan, problem.x, problem.y));
    ASSERT_TRUE(within_bounds(problem.y, problem.exact()));
    on_all_threads([&](int thread) {
      for (int round = 0; round < kRounds; ++round) {
        const std::int64_t m = thread % 2 == 0 ? 40 : 1 + thread;
        const Matrix x = rows_of(problem.x, 0, m), want = rows_of(problem.y, 0, m);
        const Matrix y(problem.y.dtype(), {m, 200});
        EXPECT_OK(problem.run(plan, x, y));
        if (m == 40) {
          EXPECT_TRUE(same_bytes(y, want));
        } else {
          EXPECT_TRUE(within_bounds(y, problem.exact()));
        }
      }
    });
  }
}

TEST(ManyThreads, FirstUseOfAContextByAll) {
  for (int round = 0; round < kRounds; ++round) {
    const fp8rt::Context context = context_with_threads(2);
    on_all_threads([&](int) { EXPECT_OK(fp8rt_context_prepare(context.get(), nullptr)); });
  }
}

TEST(ManyThreads, EachMakesItsOwnContext) {
  on_all_threads([](int thread) {
    LinearProblem problem({3, 70, 130}, static_cast<std::uint32_t>(thread));
    const fp8rt::Context context = context_with_threads(2);
    const fp8rt::LinearPlan plan(context, problem.desc());
    EXPECT_OK(problem.run(plan, problem.x, problem.y));
    EXPECT_TRUE(within_bounds(problem.y, problem.exact()));
  });
}

TEST(ManyThreads, EachHasItsOwnLastError) {
  on_all_threads([](int thread) {
    for (int round = 0; round < 200; ++round) {
      fp8rt_context_desc desc = fp8rt::context_desc();
      desc.device = -1000 - thread;
      fp8rt_context *context = nullptr;
      EXPECT_EQ(fp8rt_context_create(&desc, &context), FP8RT_STATUS_INVALID_ARGUMENT);
      std::this_thread::yield();
      const std::string message = fp8rt_last_error();
      EXPECT_NE(message.find(std::to_string(-1000 - thread)), std::string::npos) << message;
    }
  });
}

void count_line(std::uint32_t, const char *, void *user) { static_cast<std::atomic<int> *>(user)->fetch_add(1); }

// While some threads make plans, others replace the callback; a replaced one runs no more once the call has returned.
TEST(ManyThreads, ReplaceTheLogWhileOthersWriteToIt) {
  const Environment environment("FP8RT_VERBOSE", "1");
  std::atomic<int> lines{0};
  ASSERT_OK(fp8rt_set_log(count_line, &lines));
  const fp8rt::Context context = context_with_threads(1);
  LinearProblem problem({1, 64, 64});
  const fp8rt_linear_desc desc = problem.desc();
  on_all_threads([&](int thread) {
    for (int round = 0; round < 100; ++round) {
      if (thread == 0) {
        std::atomic<int> own{0};
        EXPECT_OK(fp8rt_set_log(count_line, &own));
        EXPECT_OK(fp8rt_set_log(count_line, &lines));
        lines.fetch_add(own.load());
      } else {
        const fp8rt::LinearPlan plan(context, desc);
      }
    }
  });
  EXPECT_OK(fp8rt_set_log(nullptr, nullptr));
  EXPECT_EQ(lines.load(), 100 * (kThreads - 1));
}

}  // namespace
}  // namespace fp8rt_test
