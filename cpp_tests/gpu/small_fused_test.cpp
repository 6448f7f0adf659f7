// The fused producers at small sizes in tight buffers, for compute-sanitizer.

#include <gtest/gtest.h>

#include "fused.hpp"

namespace fp8rt_test {
namespace {

struct Shape {
  Extents extents;
  std::int64_t gap;
};

const Shape kActivationShapes[] = {{{1, 512}, 0}, {{5, 300}, 1}, {{70, 256}, 0}};

class SmallFused : public ::testing::Test {
 protected:
  void SetUp() override { DeviceMatrix::tight_buffers() = true; }
  void TearDown() override { DeviceMatrix::tight_buffers() = false; }
};

TEST_F(SmallFused, Producers) {
  const Rule rule = rule_of(FP8RT_RECIPE_VLLM, FP8RT_SCALE_FORMAT_FP32, true);
  for (const Producer producer : {Producer::kSilu, Producer::kNorm, Producer::kNormWithResidual}) {
    for (const std::uint32_t dtype : kFloats) {
      for (const Shape &shape : kActivationShapes) {
        const Inputs inputs = make_inputs(producer, dtype, shape.extents, Fill::kPlain, shape.gap);
        const Produced empty{make_codes(shape.extents), make_scales(rule, shape.extents, true), inputs.residual, {}};
        Produced fused = empty, unfused = empty;
        Matrix output(dtype, shape.extents);
        ASSERT_TRUE(run_fused(rule, inputs, fused)) << name_of(producer);
        ASSERT_TRUE(run_unfused(rule, inputs, unfused, output)) << name_of(producer);
        ASSERT_TRUE(same_product(fused, unfused)) << name_of(producer);
      }
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
