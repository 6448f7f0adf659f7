// A prepared run of a linear: no allocation of ours, whatever its steps.

#include "counted_memory.hpp"
#include "linear.hpp"

namespace fp8rt_test {
namespace {

class PreparedLinear : public LinearOf {
 protected:
  void expect_no_allocation(const LinearShape &shape) {
    const LinearOperands operands(shape);
    const fp8rt::LinearPlan plan = operands.plan(context);
    SCOPED_TRACE(plan.describe());
    const Memory workspace(0, plan.query().workspace_bytes);
    ASSERT_OK(operands.prepare(plan, stream));
    for (const Form form : kForms) {
      fake_cuda_reset();
      const std::size_t before = allocator_calls();
      const fp8rt_status status = operands.run(form, plan, workspace, stream);
      const std::size_t after = allocator_calls();
      ASSERT_OK(status);
      EXPECT_EQ(after - before, 0u) << name_of(form);
      EXPECT_TRUE(only_light_calls());
    }
  }
};

TEST_P(PreparedLinear, AllocatesNothing) {
  for (const int current_device : {-1, 0, 1}) {
    const Current current(current_device);
    for (const std::int64_t m : {0, 1, 21, 500}) {
      LinearShape shape{m, 512, 1024};
      shape.backends = GetParam();
      expect_no_allocation(shape);
    }
  }
}

TEST_P(PreparedLinear, AllocatesNothingForPartsBiasAndScales) {
  for (const std::vector<std::int64_t> &parts : {std::vector<std::int64_t>{}, {192, 64, 64}, {128, 192}}) {
    LinearShape shape{21, 320, 1024};
    shape.backends = GetParam();
    shape.parts = parts;
    shape.bias_dtype = FP8RT_DTYPE_F32;
    shape.layout = FP8RT_SCALE_LAYOUT_ROW_MAJOR;
    expect_no_allocation(shape);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, PreparedLinear, ::testing::Values(FP8RT_BACKEND_DEEPGEMM, FP8RT_BACKEND_PLAIN),
                         LinearOf::name);

}  // namespace
}  // namespace fp8rt_test
