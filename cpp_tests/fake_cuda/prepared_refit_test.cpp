// Many weights in a prepared call: no allocation of ours for the entries, nor for a run of a table.

#include "counted_memory.hpp"
#include "plan.hpp"

namespace fp8rt_test {
namespace {

TEST_F(Refit, EntriesAllocateNothing) {
  const Weights weights(0, 0, mixed());
  // What the driver's own functions cost when they are first looked up is no part of this.
  ASSERT_OK(fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), 1, nullptr, stream.get()));
  const std::size_t before = allocator_calls();
  const fp8rt_status status = fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), weights.count(),
                                                     nullptr, stream.get());
  const std::size_t after = allocator_calls();
  ASSERT_OK(status);
  EXPECT_EQ(after - before, 0u);
}

// After the first of its size, a run of a plan is the copies and launches alone.
TEST_F(Refit, RunsOfAPlanAllocateNothing) {
  Model model(context, 0, mixed(), {4096, 64});
  ASSERT_OK(model.run(stream));
  ASSERT_OK(fp8rt_refit_begin(model.refit[0].get()));
  fake_cuda_reset();
  const std::size_t before = allocator_calls();
  const fp8rt_status status = model.run(stream);
  const std::size_t after = allocator_calls();
  ASSERT_OK(status);
  EXPECT_EQ(after - before, 0u);
  EXPECT_EQ(fake_cuda_count("cuMemAlloc"), 0u);
  EXPECT_OK(fp8rt_refit_finish(model.refit[0].get(), 0, nullptr));
}

TEST_F(Refit, RunsOfATableAllocateNothing) {
  const Weights weights(0, 0, mixed());
  const Table table(context, weights);
  const Capture capture(stream);
  ASSERT_OK(fp8rt_weight_table_run(table.get(), nullptr, stream.get()));
  const std::size_t before = allocator_calls();
  const fp8rt_status status = fp8rt_weight_table_run(table.get(), nullptr, stream.get());
  const std::size_t after = allocator_calls();
  ASSERT_OK(status);
  EXPECT_EQ(after - before, 0u);
}

}  // namespace
}  // namespace fp8rt_test
