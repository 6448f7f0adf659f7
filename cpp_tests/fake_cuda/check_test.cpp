// FP8RT_CHECK=1 asks for every pointer whether it is memory of the context's device.

#include "caller.hpp"

namespace fp8rt_test {
namespace {

class Checked : public ::testing::TestWithParam<Function> {
 protected:
  void expect_refused(const Pointers &pointers, const std::string &name) {
    fake_cuda_reset();
    EXPECT_TRUE(failed_with(call(GetParam(), pointers), FP8RT_STATUS_DEVICE, GetParam().name, {name}));
    EXPECT_EQ(launches().size(), 0u);
    EXPECT_EQ(current_context(), nullptr);
  }

  // Each tensor in turn becomes `memory`.
  void expect_each_refused(void *memory) {
    fp8rt_tensor *const tensors[] = {&operands.values, &operands.codes, &operands.scales};
    const char *const names[] = {GetParam().values_name(), "codes", "scales"};
    for (int i = 0; i < 3; ++i) {
      if (i == 1 && !GetParam().has_codes()) continue;
      void *const before = std::exchange(tensors[i]->data, memory);
      expect_refused(operands.pointers(context, stream), names[i]);
      tensors[i]->data = before;
    }
  }

  const Environment check{"FP8RT_CHECK", "1"};
  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
  Operands operands{0, GetParam(), FP8RT_DTYPE_BF16, 256, 256};
};

TEST_P(Checked, DeviceMemoryIsTaken) { EXPECT_OK(operands.run(context, stream)); }

TEST_P(Checked, HostMemoryIsRefused) {
  std::vector<std::uint64_t> host(256 * 256);
  expect_each_refused(host.data());
}

TEST_P(Checked, PinnedHostMemoryIsRefused) {
  const Memory pinned(-1, 256 * 256 * 4);
  expect_each_refused(pinned.data());
}

TEST_P(Checked, MemoryOfAnotherDeviceIsRefused) {
  const Memory other(1, 256 * 256 * 4);
  expect_each_refused(other.data());
}

TEST_P(Checked, HealthOnTheHostIsRefused) {
  if (!GetParam().has_health()) {
    EXPECT_FALSE(GetParam().writes_codes());
    return;
  }
  fp8rt_health health{};
  Pointers pointers = operands.pointers(context, stream);
  pointers.health = &health;
  expect_refused(pointers, "health");
}

INSTANTIATE_TEST_SUITE_P(All, Checked, ::testing::ValuesIn(kFunctions));

}  // namespace
}  // namespace fp8rt_test
