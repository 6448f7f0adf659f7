// A prepared call: one launch, nothing heavy in the driver, and no allocation of ours.

#include "caller.hpp"
#include "counted_memory.hpp"

namespace fp8rt_test {
namespace {

TEST(CountedMemory, Counts) {
  const std::size_t before = allocator_calls();
  { const std::vector<int> some(100); }
  EXPECT_EQ(allocator_calls() - before, 2u);
}

class Prepared : public ::testing::TestWithParam<Function> {
 protected:
  void SetUp() override { ASSERT_OK(fp8rt_context_prepare(context.get(), stream.get())); }

  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
};

TEST_P(Prepared, OnlyLaunches) {
  for (const int current_device : {-1, 0, 1}) {
    const Current current(current_device);
    for (const std::int64_t rows : {1, 130, 5000}) {
      const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, rows, 1024);
      Pointers pointers = operands.pointers(context, stream);
      pointers.health = GetParam().has_health() ? operands.health() : nullptr;
      fake_cuda_reset();
      const std::size_t before = allocator_calls();
      const fp8rt_status status = call(GetParam(), pointers);
      const std::size_t after = allocator_calls();
      ASSERT_OK(status);
      EXPECT_EQ(after - before, 0u);
      EXPECT_EQ(launches().size(), 1u);
      EXPECT_TRUE(only_light_calls());
    }
  }
}

// Parts are read and checked without a list of them on the heap.
TEST_P(Prepared, AllocatesNothingForParts) {
  if (GetParam().activation) {
    EXPECT_EQ(std::string(GetParam().name).find("weight"), std::string::npos);
    return;
  }
  const std::int64_t part_rows[] = {128, 64, 64};
  fp8rt_quantize_desc desc = fp8rt::quantize_desc();
  desc.num_parts = 3;
  desc.part_rows = part_rows;
  Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 256, 512);
  const Memory scales(0, 3 * 4 * 4);
  ASSERT_OK(fp8rt_weight_scales_layout(&desc, 0, 256, 512, &operands.scales));
  operands.scales.data = scales.data();
  operands.scales.device = 0;
  Pointers pointers = operands.pointers(context, stream);
  pointers.desc = &desc;
  fake_cuda_reset();
  const std::size_t before = allocator_calls();
  const fp8rt_status status = call(GetParam(), pointers);
  const std::size_t after = allocator_calls();
  ASSERT_OK(status);
  EXPECT_EQ(after - before, 0u);
  EXPECT_TRUE(only_light_calls());
}

INSTANTIATE_TEST_SUITE_P(All, Prepared, ::testing::ValuesIn(kFunctions));

}  // namespace
}  // namespace fp8rt_test
