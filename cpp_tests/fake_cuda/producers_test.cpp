// The fused producers and their unfused forms: one launch each, prepared or refused during capture, on one device.

#include "caller.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kRows = 130, kColumns = 1024;

// Every operand that any of the four takes.
struct Tensors {
  Tensors(int device, std::uint32_t dtype)
      : gate_up(make(device, dtype, kRows, 2 * kColumns)),
        input(make(device, dtype, kRows, kColumns)),
        residual(make(device, dtype, kRows, kColumns)),
        output(make(device, dtype, kRows, kColumns)),
        codes(make(device, FP8RT_DTYPE_E4M3, kRows, kColumns)),
        weight(make(device, dtype, 1, kColumns)) {
    weight.rank = 1;
    weight.shape[0] = kColumns;
    weight.stride[0] = 1;
    fp8rt::check(
        fp8rt_activation_scales_layout(nullptr, FP8RT_SCALE_LAYOUT_COLUMN_MAJOR, kRows, kColumns, &scales));
    memory.emplace_back(device, scales.bytes);
    scales.data = memory.back().data();
    scales.device = device;
  }

  fp8rt_tensor make(int device, std::uint32_t dtype, std::int64_t rows, std::int64_t columns) {
    memory.emplace_back(device, static_cast<std::uint64_t>(rows * columns) * element_bytes(dtype));
    fp8rt_tensor tensor = fp8rt::tensor(memory.back().data(), static_cast<fp8rt_dtype>(dtype), {rows, columns});
    tensor.device = device;
    return tensor;
  }

  std::vector<Memory> memory;
  fp8rt_tensor gate_up, input, residual, output, codes, weight, scales{};
};

struct Producer {
  const char *name;
  const char *kernel;  // what its kernel's name contains
  fp8rt_status (*run)(fp8rt_context *context, const Tensors &t, void *stream);
};

void PrintTo(const Producer &producer, std::ostream *out) { *out << producer.name; }

constexpr Producer kProducers[] = {
    {"fp8rt_silu_and_mul", "silu",
     [](fp8rt_context *context, const Tensors &t, void *stream) {
       return fp8rt_silu_and_mul(context, &t.gate_up, &t.output, stream);
     }},
    {"fp8rt_silu_and_mul_quantize", "silu",
     [](fp8rt_context *context, const Tensors &t, void *stream) {
       return fp8rt_silu_and_mul_quantize(context, nullptr, &t.gate_up, &t.codes, &t.scales, nullptr, stream);
     }},
    {"fp8rt_rms_norm", "rms",
     [](fp8rt_context *context, const Tensors &t, void *stream) {
       return fp8rt_rms_norm(context, &t.input, &t.residual, &t.weight, 1e-6f, &t.output, stream);
     }},
    {"fp8rt_rms_norm_quantize", "rms",
     [](fp8rt_context *context, const Tensors &t, void *stream) {
       return fp8rt_rms_norm_quantize(context, nullptr, &t.input, &t.residual, &t.weight, 1e-6f, &t.codes, &t.scales,
                                      nullptr, stream);
     }},
};

class Producers : public ::testing::TestWithParam<Producer> {
 protected:
  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
};

TEST_P(Producers, LaunchOnce) {
  const Current other(1);
  const CUcontext before = current_context();
  ASSERT_OK(fp8rt_context_prepare(context.get(), stream.get()));
  for (const std::uint32_t dtype : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32}) {
    const Tensors tensors(0, dtype);
    fake_cuda_reset();
    ASSERT_OK(GetParam().run(context.get(), tensors, stream.get()));
    EXPECT_TRUE(only_light_calls());
    EXPECT_EQ(current_context(), before);
    ASSERT_EQ(launches().size(), 1u);
    const fake_cuda_launch launch = launches()[0];
    const std::string kernel = launch.kernel;
    EXPECT_NE(kernel.find(GetParam().kernel), std::string::npos) << kernel;
    EXPECT_NE(kernel.find(kernel_dtype(dtype)), std::string::npos) << kernel;
    EXPECT_EQ(launch.stream, stream.get());
    EXPECT_NE(launch.programmatic, 0u);
    EXPECT_GE(launch.grid[0], 1u);
  }
}

TEST_P(Producers, UnpreparedDuringCaptureIsRefused) {
  const Tensors tensors(0, FP8RT_DTYPE_BF16);
  fake_cuda_reset();
  {
    const Capture capture(stream);
    EXPECT_TRUE(failed_with(GetParam().run(context.get(), tensors, stream.get()), FP8RT_STATUS_NOT_PREPARED,
                            GetParam().name, {"prepare"}));
    EXPECT_EQ(launches().size(), 0u);
    EXPECT_TRUE(no_violations());
  }
  ASSERT_OK(fp8rt_context_prepare(context.get(), stream.get()));
  const Capture capture(stream);
  EXPECT_OK(GetParam().run(context.get(), tensors, stream.get()));
}

TEST_P(Producers, TensorsElsewhereAreRefused) {
  const Tensors tensors(1, FP8RT_DTYPE_BF16);
  fake_cuda_reset();
  EXPECT_TRUE(failed_with(GetParam().run(context.get(), tensors, stream.get()), FP8RT_STATUS_DEVICE, GetParam().name,
                          {"1", "0"}));
  EXPECT_EQ(launches().size(), 0u);
}

TEST_P(Producers, AFailingLaunchIsReported) {
  const Tensors tensors(0, FP8RT_DTYPE_BF16);
  fake_cuda_reset();
  fake_cuda_fail("cuLaunchKernelEx", CUDA_ERROR_LAUNCH_FAILED, 0);
  EXPECT_TRUE(failed_with(GetParam().run(context.get(), tensors, stream.get()), FP8RT_STATUS_CUDA_ERROR,
                          GetParam().name, {"cuLaunchKernelEx"}));
  EXPECT_EQ(fp8rt_last_cuda_error(), CUDA_ERROR_LAUNCH_FAILED);
  EXPECT_EQ(current_context(), nullptr);
  fake_cuda_reset();
}

INSTANTIATE_TEST_SUITE_P(All, Producers, ::testing::ValuesIn(kProducers));

}  // namespace
}  // namespace fp8rt_test
