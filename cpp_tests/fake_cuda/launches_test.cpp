// Each function launches once, the right kernel, on the caller's stream, with a grid that covers its tiles.

#include "caller.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kSizes[][2] = {{1, 128},   {1, 7168},   {3, 64},      {127, 192},  {128, 128},
                                      {129, 300}, {130, 4304}, {4096, 7168}, {20000, 512}};
constexpr std::uint32_t kDtypes[] = {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32};

std::uint32_t ceil_div(std::uint64_t a, std::uint64_t b) { return static_cast<std::uint32_t>((a + b - 1) / b); }

std::string prefix(const Function &function) {
  if (function.kind == Kind::kDequantize) return "dequantize_";
  return function.activation ? "quantize_groups_" : "quantize_blocks_";
}

class Launches : public ::testing::TestWithParam<Function> {
 protected:
  void check_covers(const fake_cuda_launch &launch, const Operands &operands);

  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
};

// A thread block for each tile of a weight; of an activation, for four groups of one row, of 4 or of 16.
void Launches::check_covers(const fake_cuda_launch &launch, const Operands &operands) {
  const auto rows = static_cast<std::uint32_t>(operands.values.shape[0]);
  const auto columns = static_cast<std::uint32_t>(operands.values.shape[1]);
  const std::string name = launch.kernel;
  EXPECT_EQ(launch.grid[1] * launch.grid[2], 1u);
  EXPECT_GE(launch.grid[0], 1u);
  if (GetParam().kind == Kind::kDequantize) {
    EXPECT_LE(launch.grid[0], ceil_div(std::uint64_t{rows} * ceil_div(columns, 8), launch.block[0]));
  } else if (GetParam().activation) {
    const auto is = [&](const char *form) { return name.find(form) != std::string::npos; };
    const std::uint32_t stored = (rows + 3) / 4 * 4, rows_of_block = is("_small") ? 1 : is("_medium") ? 4 : 16;
    EXPECT_EQ(launch.grid[0], ceil_div(ceil_div(columns, 128), 4) * ceil_div(stored, rows_of_block)) << name;
  } else {
    const auto header = parameters<kernels::Header>(launch);
    EXPECT_EQ(header.tiles, ceil_div(rows, 128) * ceil_div(columns, 128));
    EXPECT_EQ(header.count, 1u);
    EXPECT_EQ(launch.grid[0], header.tiles);
  }
}

TEST_P(Launches, OneOfTheRightKernel) {
  for (const std::uint32_t dtype : kDtypes) {
    for (const auto &[rows, columns] : kSizes) {
      const Operands operands(0, GetParam(), dtype, rows, columns);
      fake_cuda_reset();
      ASSERT_OK(operands.run(context, stream));
      ASSERT_EQ(launches().size(), 1u) << rows << "x" << columns;
      const fake_cuda_launch launch = launches()[0];
      const std::string name = launch.kernel, begin = prefix(GetParam()) + kernel_dtype(dtype);
      EXPECT_EQ(name.compare(0, begin.size(), begin), 0) << name;
      EXPECT_EQ(launch.stream, stream.get());
      EXPECT_EQ(launch.device, 0);
      EXPECT_NE(launch.programmatic, 0u);
      check_covers(launch, operands);
      EXPECT_TRUE(no_violations());
    }
  }
}

TEST_P(Launches, PassesTheTensors) {
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 130, 300);
  fake_cuda_reset();
  ASSERT_OK(operands.run(context, stream));
  ASSERT_NE(fake_cuda_last_launch(), nullptr);
  const fake_cuda_launch launch = *fake_cuda_last_launch();
  const auto m = GetParam().kind == Kind::kDequantize ? parameters<kernels::DequantizeArguments>(launch).matrix
                                                      : matrices(launch)[0];
  EXPECT_EQ(m.source, operands.values.data);
  EXPECT_EQ(m.scales, operands.scales.data);
  EXPECT_EQ(static_cast<void *>(m.codes), GetParam().has_codes() ? operands.codes.data : nullptr);
  EXPECT_EQ(m.rows, 130u);
  EXPECT_EQ(m.columns, 300u);
  EXPECT_EQ(m.experts, 1u);
  EXPECT_EQ(m.source_stride, 300);
  EXPECT_EQ(m.scale_row, operands.scales.stride[0]);
  EXPECT_EQ(m.scale_column, operands.scales.stride[1]);
  // Rows below the last of column-major scales, which only writing them zeroes.
  if (GetParam().writes_scales()) {
    EXPECT_EQ(m.padding, GetParam().activation ? 2u : 0u);
  }
}

TEST_P(Launches, PassesHealth) {
  if (!GetParam().has_health()) {
    EXPECT_FALSE(GetParam().writes_codes());
    return;
  }
  const Operands operands(0, GetParam(), FP8RT_DTYPE_F32, 256, 256);
  Pointers pointers = operands.pointers(context, stream);
  pointers.health = operands.health();
  fake_cuda_reset();
  ASSERT_OK(call(GetParam(), pointers));
  ASSERT_NE(fake_cuda_last_launch(), nullptr);
  EXPECT_EQ(static_cast<void *>(parameters<kernels::Header>(*fake_cuda_last_launch()).health), operands.health());
}

TEST_P(Launches, NothingForNothing) {
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 0, 256);
  fake_cuda_reset();
  EXPECT_OK(operands.run(context, stream));
  EXPECT_EQ(launches().size(), 0u);
}

TEST_P(Launches, TheLegacyStreamIsAStream) {
  const Operands operands(0, GetParam(), FP8RT_DTYPE_BF16, 128, 256);
  Pointers pointers = operands.pointers(context, stream);
  pointers.stream = nullptr;
  fake_cuda_reset();
  ASSERT_OK(call(GetParam(), pointers));
  ASSERT_NE(fake_cuda_last_launch(), nullptr);
  EXPECT_EQ(fake_cuda_last_launch()->stream, nullptr);
}

INSTANTIATE_TEST_SUITE_P(All, Launches, ::testing::ValuesIn(kFunctions));

// Each part has its own blocks: its matrix begins at its first row, and its scales after those of the parts before.
TEST(LaunchOfParts, HasAMatrixForEach) {
  const fp8rt::Context context = gpu_context(0);
  const Stream stream(0);
  const std::int64_t part_rows[] = {192, 64, 300};
  fp8rt_quantize_desc desc = fp8rt::quantize_desc();
  desc.num_parts = 3;
  desc.part_rows = part_rows;
  const Function &quantize = kFunctions[0];
  Operands operands(0, quantize, FP8RT_DTYPE_BF16, 556, 512);
  const Memory scales(0, 6 * 4 * 4);
  ASSERT_OK(fp8rt_weight_scales_layout(&desc, 0, 556, 512, &operands.scales));
  operands.scales.data = scales.data();
  operands.scales.device = 0;
  Pointers pointers = operands.pointers(context, stream);
  pointers.desc = &desc;
  fake_cuda_reset();
  ASSERT_OK(call(quantize, pointers));
  ASSERT_EQ(launches().size(), 1u);
  const auto parts = matrices(launches()[0]);
  ASSERT_EQ(parts.size(), 3u);
  std::uint32_t tile = 0, row = 0, band = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const auto rows = static_cast<std::uint32_t>(part_rows[i]);
    EXPECT_EQ(parts[i].rows, rows);
    EXPECT_EQ(parts[i].first_tile, tile);
    EXPECT_EQ(parts[i].source, static_cast<std::uint16_t *>(operands.values.data) + std::size_t{row} * 512);
    EXPECT_EQ(parts[i].codes, static_cast<std::uint8_t *>(operands.codes.data) + std::size_t{row} * 512);
    EXPECT_EQ(parts[i].scales, static_cast<float *>(scales.data()) + std::size_t{band} * 4);
    row += rows;
    band += (rows + 127) / 128;
    tile += (rows + 127) / 128 * 4;
  }
  EXPECT_EQ(parameters<kernels::Header>(launches()[0]).tiles, tile);
}

// Programmatic launches came with Hopper; before it the driver refuses the attribute.
TEST(LaunchBeforeHopper, HasNoProgrammaticAttribute) {
  fake_cuda_reset();
  fake_cuda_set_attribute(1, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 8);
  const fp8rt::Context context = gpu_context(1);
  const Stream stream(1);
  for (const Function &function : kFunctions) {
    const Operands operands(1, function, FP8RT_DTYPE_BF16, 128, 256);
    EXPECT_OK(operands.run(context, stream)) << function.name;
    ASSERT_NE(fake_cuda_last_launch(), nullptr);
    EXPECT_EQ(fake_cuda_last_launch()->num_attributes, 0u);
  }
  fake_cuda_reset();
}

}  // namespace
}  // namespace fp8rt_test
