// The linear as the driver sees it: which kernels in which order, and what DeepGEMM's gets: tensor maps, grid, shared
// memory, attributes. Whether the numbers come out right is for a GPU.

#include <algorithm>
#include <set>
#include <tuple>

#include "deepgemm_tiles.hpp"
#include "linear.hpp"

namespace fp8rt_test {
namespace {

// Of a block, and of the blocks of a multiprocessor with what the driver keeps for each.
constexpr std::uint32_t kMostShared = 232448, kSharedOfAll = 233472, kReserved = 1024;

std::uint32_t align(std::uint32_t value, std::uint32_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

std::uint32_t ceil_div(std::int64_t a, std::int64_t b) { return static_cast<std::uint32_t>((a + b - 1) / b); }

// Shared memory as the kernel divides it: the tile of y, the barriers, the scales of the weight, and the stages.
std::uint32_t shared_bytes(const DeepGemmKernel &kernel, std::int64_t k) {
  const std::uint32_t blocks = 128 % kernel.columns == 0 ? 1 : 2;
  const std::uint32_t stage = (kernel.rows + kernel.columns) * 128 + align(4 * kernel.rows, 128);
  return align(2 * kernel.rows * kernel.columns, 1024) + 256 + align(4 * ceil_div(k, 128) * blocks, 8) +
         kernel.stages * stage;
}

// A matrix of `inner` by `outer` elements that is copied in boxes.
struct Map {
  const void *address;
  CUtensorMapDataType type;
  std::int64_t inner, outer, stride_bytes;
  std::uint32_t box_inner, box_outer, swizzle_bytes;
};

void check_map(const fake_cuda_tensor_map &map, const Map &want, const char *name) {
  SCOPED_TRACE(name);
  const auto swizzle = want.swizzle_bytes == 0    ? CU_TENSOR_MAP_SWIZZLE_NONE
                       : want.swizzle_bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                       : want.swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                  : CU_TENSOR_MAP_SWIZZLE_128B;
  EXPECT_EQ(map.address, reinterpret_cast<std::uintptr_t>(want.address));
  EXPECT_EQ(map.data_type, want.type);
  EXPECT_EQ(map.rank, 2);
  EXPECT_EQ(map.extent[0], static_cast<std::uint64_t>(want.inner));
  EXPECT_EQ(map.extent[1], static_cast<std::uint64_t>(want.outer));
  EXPECT_EQ(map.stride[0], static_cast<std::uint64_t>(want.stride_bytes));
  EXPECT_EQ(map.box[0], want.box_inner);
  EXPECT_EQ(map.box[1], want.box_outer);
  EXPECT_EQ(map.interleave, CU_TENSOR_MAP_INTERLEAVE_NONE);
  EXPECT_EQ(map.fill, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  EXPECT_EQ(map.swizzle, swizzle);
}

// Codes and scales of x, wherever they lie, and how many rows of them are memory that may be read.
struct Activation {
  const void *codes;
  std::int64_t stride;
  const void *scales;
  std::int64_t scales_stride;
  std::int64_t rows;
};

// One product: rows of the weight from `first` on, `bands` rows of scales after the first.
struct Part {
  std::int64_t first, rows, bands;
};

void check_product(const fake_cuda_launch &launch, const LinearOperands &operands, const Activation &x,
                   const Part &part) {
  const auto kernel = DeepGemmKernel::of(launch);
  ASSERT_TRUE(kernel) << launch.kernel;
  const auto p = DeepGemmParameters::of(launch);
  const auto &[m, k] = std::tie(operands.shape.m, operands.shape.k);
  const auto *codes = static_cast<const std::uint8_t *>(operands.weight.data) + part.first * operands.weight.stride[0];
  const auto *scales = static_cast<const float *>(operands.weight_scales.data) + part.bands * ceil_div(k, 128);
  const auto *y = static_cast<const std::uint16_t *>(operands.y.data) + part.first;
  EXPECT_EQ(p.scalars.weight_scales, scales);
  EXPECT_EQ(p.scalars.layout, nullptr);
  EXPECT_EQ(p.scalars.m, static_cast<std::uint32_t>(m));
  EXPECT_EQ(p.scalars.n, align(static_cast<std::uint32_t>(part.rows), 8));
  EXPECT_EQ(p.scalars.k, static_cast<std::uint32_t>(k));
  // Compiled-in extents are those of this product.
  const std::pair<std::uint32_t, std::uint32_t> extents[] = {
      {kernel->m, p.scalars.m}, {kernel->n, p.scalars.n}, {kernel->k, p.scalars.k}};
  for (const auto &[compiled, extent] : extents) {
    EXPECT_TRUE(compiled == 0 || compiled == extent) << compiled << ", " << extent;
  }
  constexpr auto kBytes = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  // Rows beyond M may be read where there are some. None of them is written to y.
  const auto rows = static_cast<std::int64_t>(p.x.extent[1]);
  EXPECT_GE(rows, m);
  EXPECT_LE(rows, x.rows);
  check_map(p.x, {x.codes, kBytes, k, rows, x.stride, 128, kernel->rows, 128}, "x");
  check_map(p.weight, {codes, kBytes, k, part.rows, operands.weight.stride[0], 128, kernel->columns, 128}, "weight");
  check_map(p.y,
            {y, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, part.rows, m, 2 * operands.y.stride[0], kernel->y_swizzle / 2,
             kernel->rows, kernel->y_swizzle},
            "y");
  // Not the padding of a caller's columns, which the memory of the last may lack.
  constexpr auto kFloats = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  check_map(p.x_scales, {x.scales, kFloats, rows, ceil_div(k, 128), 4 * x.scales_stride, kernel->rows, 1, 0},
            "scales of x");
}

void check_launch(const fake_cuda_launch &launch, const LinearOperands &operands, std::int64_t n) {
  const auto kernel = DeepGemmKernel::of(launch);
  ASSERT_TRUE(kernel) << launch.kernel;
  const std::uint32_t tiles = ceil_div(operands.shape.m, kernel->rows) * ceil_div(n, kernel->columns);
  EXPECT_EQ(launch.block[0], kernel->load_threads + kernel->math_threads);
  EXPECT_EQ(launch.block[1] * launch.block[2] * launch.grid[1] * launch.grid[2], 1u);
  // The kernel strides over its tiles by the number that was compiled in, so fewer blocks must have one each.
  EXPECT_GE(launch.grid[0], std::min(tiles, kernel->thread_blocks));
  EXPECT_LE(launch.grid[0], kernel->thread_blocks);
  EXPECT_EQ(launch.grid[0] % kernel->cluster, 0u);
  EXPECT_EQ(kernel->thread_blocks % 132, 0u) << "whole waves of an H100's multiprocessors";
  EXPECT_EQ(launch.cluster[0], kernel->cluster);
  EXPECT_EQ(launch.cluster[1] * launch.cluster[2], 1u);
  EXPECT_EQ(launch.num_attributes, kernel->cluster > 1 ? 2u : 1u);
  EXPECT_EQ(launch.shared_bytes, shared_bytes(*kernel, operands.shape.k));
  EXPECT_LE((launch.shared_bytes + kReserved) * (kernel->thread_blocks / 132), kSharedOfAll);
  EXPECT_GE(kernel->stages, 2u);
}

void check_stream(const std::vector<fake_cuda_launch> &launched, const Stream &stream) {
  for (const fake_cuda_launch &launch : launched) {
    EXPECT_EQ(launch.stream, stream.get()) << launch.kernel;
    EXPECT_EQ(launch.device, 0) << launch.kernel;
    EXPECT_NE(launch.programmatic, 0u) << launch.kernel;
  }
}

// Where a quantizing launch puts codes and scales. The workspace has room for as many rows as its scales are apart.
Activation quantized_by(const fake_cuda_launch &launch) {
  const kernels::Matrix m = matrices(launch)[0];
  return {m.codes, m.codes_stride, m.scales, m.scale_column, m.scale_column};
}

Activation given_by(const LinearOperands &operands) {
  return {operands.x_codes.data, operands.x_codes.stride[0], operands.x_scales.data, operands.x_scales.stride[1],
          operands.shape.m};
}

TEST_F(LinearLaunches, DeepGemmGetsItsTensorMaps) {
  std::set<std::uint32_t> clusters, tiles;
  const std::int64_t shapes[][3] = {{1, 4096, 4096},     {16, 6144, 4096},    {64, 28672, 4096}, {100, 576, 7168},
                                    {130, 2112, 7168},   {300, 4096, 304},    {5, 8, 16},        {1024, 4096, 14336},
                                    {8192, 28672, 4096}, {4097, 7168, 16384}, {77, 1000, 64},    {4096, 6144, 4096}};
  for (const auto &[m, n, k] : shapes) {
    for (const std::int64_t extra : {0, 16}) {
      LinearShape shape = by_deepgemm({m, n, k});
      shape.extra_stride = extra;
      const LinearOperands operands(shape);
      const fp8rt::LinearPlan plan = operands.plan(context);
      SCOPED_TRACE(plan.describe());
      const auto launched = launches_of(Form::kValues, operands, plan);
      ASSERT_EQ(launched.size(), 2u);
      EXPECT_TRUE(begins_with(launched[0], "quantize_groups_bf16")) << launched[0].kernel;
      EXPECT_EQ(fake_cuda_count("cuTensorMapEncodeTiled"), 4u);
      check_stream(launched, stream);
      check_product(launched[1], operands, quantized_by(launched[0]), {0, n, 0});
      check_launch(launched[1], operands, n);
      if (const auto kernel = DeepGemmKernel::of(launched[1])) {
        clusters.insert(kernel->cluster);
        tiles.insert(kernel->rows);
      }
    }
  }
  EXPECT_EQ(clusters, (std::set<std::uint32_t>{1, 2})) << "shapes of both kinds are among these";
  EXPECT_GE(tiles.size(), 3u);
}

// Those that no plan would choose too.
TEST_F(LinearLaunches, EveryTileIsLaunchedAsItWasCompiled) {
  const LinearOperands operands(by_deepgemm({300, 1000, 28672}));
  const std::vector<std::string> names = tile_names(context, operands.desc());
  EXPECT_GE(names.size(), 16u);
  for (const std::string &name : names) {
    const Environment environment(kTileVariable, name.c_str());
    const fp8rt::LinearPlan plan = operands.plan(context);
    SCOPED_TRACE(plan.describe());
    const auto launched = launches_of(Form::kQuantized, operands, plan);
    ASSERT_EQ(launched.size(), 1u);
    check_product(launched[0], operands, given_by(operands), {0, 1000, 0});
    check_launch(launched[0], operands, 1000);
    const auto kernel = DeepGemmKernel::of(launched[0]);
    ASSERT_TRUE(kernel);
    EXPECT_EQ(name.rfind(std::to_string(kernel->rows) + "x" + std::to_string(kernel->columns), 0), 0u) << name;
  }
}

// The codes and scales of the workspace lie within it, and do not overlap.
TEST_F(LinearLaunches, TheWorkspaceHoldsWhatIsQuantized) {
  for (const std::int64_t m : {1, 3, 130, 1000}) {
    for (const std::int64_t k : {16, 64, 304, 4096}) {
      const LinearOperands operands(by_deepgemm({m, 256, k}));
      const fp8rt::LinearPlan plan = operands.plan(context);
      ASSERT_OK(operands.prepare(plan, stream));
      const Memory workspace(0, plan.workspace(m));
      fake_cuda_reset();
      ASSERT_OK(operands.run(Form::kValues, plan, workspace, stream));
      const Activation x = quantized_by(launches()[0]);
      const auto codes = reinterpret_cast<std::uintptr_t>(x.codes), scales = reinterpret_cast<std::uintptr_t>(x.scales);
      const auto codes_end = codes + static_cast<std::uint64_t>((x.rows - 1) * x.stride + k);
      const auto scales_end = scales + 4 * static_cast<std::uint64_t>(ceil_div(k, 128) * x.scales_stride);
      EXPECT_GE(x.rows, m);
      EXPECT_GE(std::min(codes, scales), workspace.address());
      EXPECT_LE(std::max(codes_end, scales_end), workspace.address() + workspace.bytes());
      EXPECT_TRUE(codes_end <= scales || scales_end <= codes) << "M = " << m << ", K = " << k;
      EXPECT_EQ(codes % 16 + scales % 16 + static_cast<std::uint64_t>(x.stride % 16 + x.scales_stride % 4), 0u);
    }
  }
}

TEST_F(LinearLaunches, PrequantizedIsOneLaunch) {
  for (const std::int64_t m : {1, 6, 200}) {
    const LinearOperands operands(by_deepgemm({m, 512, 1024}));
    const fp8rt::LinearPlan plan = operands.plan(context);
    const auto launched = launches_of(Form::kQuantized, operands, plan);
    ASSERT_EQ(launched.size(), 1u);
    check_stream(launched, stream);
    check_product(launched[0], operands, given_by(operands), {0, 512, 0});
    check_launch(launched[0], operands, 512);
  }
}

TEST_F(LinearLaunches, RowMajorScalesAreTransposedFirst) {
  LinearShape shape = by_deepgemm({21, 512, 1024});
  shape.layout = FP8RT_SCALE_LAYOUT_ROW_MAJOR;
  const LinearOperands operands(shape);
  const auto launched = launches_of(Form::kQuantized, operands, operands.plan(context));
  ASSERT_EQ(launched.size(), 2u);
  EXPECT_TRUE(begins_with(launched[0], "copy_scales")) << launched[0].kernel;
  EXPECT_TRUE(passes(launched[0], operands.x_scales.data));
  check_stream(launched, stream);
  const auto p = DeepGemmParameters::of(launched[1]);
  EXPECT_NE(p.x_scales.address, reinterpret_cast<std::uintptr_t>(operands.x_scales.data));
  EXPECT_TRUE(passes(launched[0], reinterpret_cast<const void *>(p.x_scales.address)));
  EXPECT_EQ(p.x_scales.extent[0], 21u);
}

// One product a part where a part ends within a block; one for all where none does.
TEST_F(LinearLaunches, PartsHaveTheirOwnScales) {
  LinearShape shape = by_deepgemm({21, 0, 512});
  const auto run = [&](const std::vector<std::int64_t> &parts) {
    shape.parts = parts;
    shape.n = std::accumulate(parts.begin(), parts.end(), std::int64_t{0});
    const LinearOperands operands(shape);
    const auto launched = launches_of(Form::kValues, operands, operands.plan(context));
    std::vector<Part> products;
    std::int64_t first = 0, bands = 0;
    for (const std::int64_t rows : parts) {
      if (products.empty() || products.back().rows % 128 != 0) {
        products.push_back({first, rows, bands});
      } else {
        products.back().rows += rows;
      }
      first += rows;
      bands += ceil_div(rows, 128);
    }
    ASSERT_EQ(launched.size(), 1 + products.size());
    check_stream(launched, stream);
    for (std::size_t i = 0; i < products.size(); ++i) {
      check_product(launched[i + 1], operands, quantized_by(launched[0]), products[i]);
      check_launch(launched[i + 1], operands, products[i].rows);
    }
  };
  run({192, 64, 64});
  run({4096, 1024, 1024});
  run({64, 128, 136, 72});
}

TEST_F(LinearLaunches, TheBiasIsAddedLast) {
  for (const std::uint32_t bias : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32}) {
    LinearShape shape = by_deepgemm({21, 512, 1024});
    shape.bias_dtype = bias;
    const LinearOperands operands(shape);
    const auto launched = launches_of(Form::kValues, operands, operands.plan(context));
    ASSERT_EQ(launched.size(), 3u);
    EXPECT_TRUE(DeepGemmKernel::of(launched[1])) << launched[1].kernel;
    EXPECT_TRUE(begins_with(launched[2], "add_bias_bf16")) << launched[2].kernel;
    EXPECT_TRUE(passes(launched[2], operands.bias.data) && passes(launched[2], operands.y.data));
    check_stream(launched, stream);
  }
}

TEST_F(LinearLaunches, PlainTakesTheOperandsAsTheyAre) {
  for (const std::uint32_t output : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32}) {
    for (const std::int64_t m : {1, 21, 500}) {
      LinearShape shape{m, 100, 333};
      shape.backends = FP8RT_BACKEND_PLAIN;
      shape.output_dtype = output;
      shape.extra_stride = 5;
      const LinearOperands operands(shape);
      const fp8rt::LinearPlan plan = operands.plan(context);
      SCOPED_TRACE(plan.describe());
      const auto launched = launches_of(Form::kQuantized, operands, plan);
      ASSERT_EQ(launched.size(), 1u);
      EXPECT_TRUE(begins_with(launched[0], std::string("plain_") + kernel_dtype(output))) << launched[0].kernel;
      for (const fp8rt_tensor *tensor :
           {&operands.x_codes, &operands.x_scales, &operands.weight, &operands.weight_scales, &operands.y}) {
        EXPECT_TRUE(passes(launched[0], tensor->data));
      }
      check_stream(launched, stream);
    }
  }
}

TEST_F(LinearLaunches, NothingForNoRows) {
  const LinearOperands operands(by_deepgemm({0, 256, 256}));
  const fp8rt::LinearPlan plan = operands.plan(context);
  for (const Form form : kForms) {
    EXPECT_EQ(launches_of(form, operands, plan).size(), 0u);
  }
}

// Loading is what a fresh process waits for: the tiles of a plan, not all of them.
TEST_F(LinearLaunches, PrepareLoadsWhatThePlanNeeds) {
  const LinearOperands operands(by_deepgemm({64, 4096, 4096}));
  const fp8rt::LinearPlan plan = operands.plan(context);
  ASSERT_OK(operands.prepare(plan, stream));
  const std::size_t first = fake_cuda_count("cuModuleLoadData");
  EXPECT_LE(first, 16u);
  ASSERT_OK(operands.prepare(plan, stream));
  EXPECT_EQ(fake_cuda_count("cuModuleLoadData"), first) << "a second time";
  for (const fake_cuda_call &call : recorded()) {
    if (std::string(call.function) == "cuFuncSetAttribute") {
      EXPECT_EQ(call.arguments[1], std::uint64_t{CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES});
      EXPECT_LE(call.arguments[2], kMostShared);
    }
  }
}

TEST_F(LinearLaunches, DevicesOfOtherKindsAreRefused) {
  const LinearOperands operands(by_deepgemm({21, 512, 1024}));
  const fp8rt_linear_desc desc = operands.desc();
  const auto expect_refused = [&](int attribute, int value, const std::vector<std::string> &texts) {
    fake_cuda_set_attribute(1, attribute, value);
    const fp8rt::Context other = gpu_context(1);
    fp8rt_linear_plan *plan = nullptr;
    EXPECT_TRUE(failed_with(fp8rt_linear_plan_create(other.get(), &desc, &plan), FP8RT_STATUS_UNSUPPORTED,
                            "fp8rt_linear_plan_create", texts));
    EXPECT_EQ(plan, nullptr);
    fake_cuda_reset();
  };
  expect_refused(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 114, {"deepgemm: ", "132", "114"});
  expect_refused(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, 8, {"deepgemm: ", "9.0", "8.0"});
}

}  // namespace
}  // namespace fp8rt_test
