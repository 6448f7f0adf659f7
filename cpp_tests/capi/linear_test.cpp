// The linear: plans, what they say, and outputs against float64.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "linear_problem.hpp"

namespace fp8rt_test {
namespace {

// Runs fp8rt_linear on a fresh plan and compares y with float64, and all that is not y with what was there.
::testing::AssertionResult right(const fp8rt::Context &context, LinearProblem &problem) {
  const fp8rt::LinearPlan plan(context, problem.desc());
  const Matrix fresh = problem.y, x = problem.x, weight = problem.weight, scales = problem.weight_scales;
  const ::testing::AssertionResult done = succeeded(problem.run(plan, problem.x, problem.y));
  if (!done) {
    return done;
  }
  const ::testing::AssertionResult close = within_bounds(problem.y, problem.exact());
  if (!close) {
    return close;
  }
  for (const auto &[after, before] :
       {std::make_pair(&problem.x, &x), {&problem.weight, &weight}, {&problem.weight_scales, &scales}}) {
    const ::testing::AssertionResult same = same_bytes(*after, *before);
    if (!same) {
      return ::testing::AssertionFailure() << "an input was written: " << same.message();
    }
  }
  return untouched_between_elements(problem.y, fresh);
}

::testing::AssertionResult right(const fp8rt::Context &context, const LinearShape &shape) {
  LinearProblem problem(shape);
  ::testing::AssertionResult result = right(context, problem);
  return result ? result : result << " at M = " << shape.m << ", N = " << shape.n << ", K = " << shape.k;
}

// The same bits from prequantized codes as from the linear that quantizes.
::testing::AssertionResult same_prequantized(const fp8rt::Context &context, const LinearShape &shape) {
  LinearProblem problem(shape);
  const fp8rt::LinearPlan plan(context, problem.desc());
  Matrix y = problem.y, codes = problem.x_codes, scales = problem.x_scales;
  const fp8rt_status steps[] = {problem.run(plan, problem.x, problem.y),
                                quantize(context, problem.x_rule, problem.x, codes, scales),
                                problem.run_prequantized(plan, codes, scales, y)};
  for (const fp8rt_status status : steps) {
    if (status != FP8RT_STATUS_OK) {
      return succeeded(status);
    }
  }
  return same_bytes(y, problem.y);
}

class Linear : public ::testing::Test {
 protected:
  fp8rt::Context context_ = context_with_threads(2);
};

TEST_F(Linear, AnyM) {
  for (const std::int64_t m : {1, 2, 3, 5, 7, 33, 65, 127, 129}) {
    EXPECT_TRUE(right(context_, LinearShape{m, 200, 320}));
  }
}

TEST_F(Linear, AnyNAndK) {
  const std::int64_t shapes[][2] = {{1, 1},    {1, 64},    {64, 1},    {7, 13},    {127, 64},  {128, 128}, {129, 192},
                                    {33, 129}, {257, 255}, {48, 4304}, {16, 1024}, {576, 520}, {1, 4304}};
  for (const auto &[n, k] : shapes) {
    for (const std::int64_t m : {1, 6, 37}) {
      EXPECT_TRUE(right(context_, LinearShape{m, n, k}));
    }
  }
}

TEST_F(Linear, AnyTypes) {
  const std::uint32_t types[] = {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32};
  for (const std::uint32_t input : types) {
    for (const std::uint32_t output : types) {
      for (const std::uint32_t bias : {0u, 1u, 2u, 3u}) {
        LinearShape shape{9, 150, 200};
        shape.input_dtype = input;
        shape.output_dtype = output;
        shape.bias_dtype = bias;
        EXPECT_TRUE(right(context_, shape)) << dtype_name(input) << " to " << dtype_name(output) << ", bias " << bias;
      }
    }
  }
}

TEST_F(Linear, AnyFormatsLayoutsAndStrides) {
  for (const std::uint32_t activation : {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2}) {
    for (const std::uint32_t weight : {FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2}) {
      for (const std::uint32_t layout : {FP8RT_SCALE_LAYOUT_COLUMN_MAJOR, FP8RT_SCALE_LAYOUT_ROW_MAJOR}) {
        for (const std::int64_t extra : {0, 5, 64}) {
          LinearShape shape{13, 180, 270};
          shape.activation_format = activation;
          shape.weight_format = weight;
          shape.layout = layout;
          shape.extra_stride = extra;
          EXPECT_TRUE(right(context_, shape)) << activation << weight << layout << " stride + " << extra;
          EXPECT_TRUE(same_prequantized(context_, shape)) << activation << weight << layout << " stride + " << extra;
        }
      }
    }
  }
}

// The descriptor promises FP32 and POW2. A backend that takes packed scales too must read them right.
TEST_F(Linear, PackedScalesAreRefusedOrRight) {
  for (const bool packed_weight : {false, true}) {
    LinearShape shape{13, 180, 1100};
    (packed_weight ? shape.weight_format : shape.activation_format) = FP8RT_SCALE_FORMAT_UE8M0_PACKED;
    const fp8rt_linear_desc desc = LinearProblem(shape).desc();
    fp8rt_linear_plan *plan = nullptr;
    const fp8rt_status status = fp8rt_linear_plan_create(context_.get(), &desc, &plan);
    fp8rt_linear_plan_destroy(plan);
    if (status == FP8RT_STATUS_OK) {
      EXPECT_TRUE(right(context_, shape)) << "packed weight: " << packed_weight;
      EXPECT_TRUE(same_prequantized(context_, shape)) << "packed weight: " << packed_weight;
    } else {
      EXPECT_TRUE(status == FP8RT_STATUS_INVALID_ARGUMENT || status == FP8RT_STATUS_UNSUPPORTED)
          << fp8rt_last_error();
    }
  }
}

// The stride of an extent of 1 never takes effect, so one column of scales is as well row-major as column-major.
TEST_F(Linear, OneColumnOfScalesHasNoLayout) {
  for (const std::uint32_t layout : {FP8RT_SCALE_LAYOUT_COLUMN_MAJOR, FP8RT_SCALE_LAYOUT_ROW_MAJOR}) {
    for (const std::int64_t column_stride : {1, 8}) {
      LinearShape shape{5, 64, 100};
      shape.layout = layout;
      LinearProblem problem(shape);
      Matrix scales(FP8RT_DTYPE_F32, {5, 1}, {1, column_stride});
      scales.each([&](auto, auto row, auto column) { scales.set(row, column, problem.x_scales.get(row, column)); });
      const fp8rt::LinearPlan plan(context_, problem.desc());
      EXPECT_OK(problem.run_prequantized(plan, problem.x_codes, scales, problem.y))
          << layout << ", " << column_stride;
      EXPECT_TRUE(within_bounds(problem.y, problem.exact())) << layout << ", " << column_stride;
    }
  }
}

TEST_F(Linear, AnyRecipe) {
  for (std::uint32_t recipe = 0; recipe <= 4; ++recipe) {
    LinearShape shape{6, 140, 300};
    shape.recipe = recipe;
    EXPECT_TRUE(right(context_, shape)) << recipe;
    EXPECT_TRUE(same_prequantized(context_, shape)) << recipe;
  }
}

TEST_F(Linear, PartsHaveTheirOwnScales) {
  for (const std::vector<std::int64_t> &parts : {std::vector<std::int64_t>{192, 64, 256},
                                                 {1, 510, 1},
                                                 {0, 512, 0},
                                                 {256, 128, 128},
                                                 {100, 100, 100, 100, 112}}) {
    for (const std::int64_t m : {1, 21}) {
      LinearShape shape{m, 512, 260};
      shape.parts = parts;
      shape.bias_dtype = FP8RT_DTYPE_BF16;
      EXPECT_TRUE(right(context_, shape)) << parts.size() << " parts";
      EXPECT_TRUE(same_prequantized(context_, shape)) << parts.size() << " parts";
    }
  }
}

TEST_F(Linear, EqualsQuantizeAndPrequantizedForAnyShape) {
  for (const std::int64_t m : {1, 2, 5, 33, 65}) {
    for (const std::int64_t k : {64, 192, 1000}) {
      for (const std::uint32_t output : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32}) {
        LinearShape shape{m, 77, k};
        shape.output_dtype = output;
        shape.bias_dtype = FP8RT_DTYPE_F32;
        EXPECT_TRUE(same_prequantized(context_, shape)) << m << ", " << k << ", " << dtype_name(output);
      }
    }
  }
}

TEST_F(Linear, RandomProblemsFromTheSeedOfTheDay) {
  Random random(seed_of_the_day());
  for (int round = 0; round < 12; ++round) {
    LinearShape shape{random.between(1, 70), random.between(1, 400), random.between(1, 900)};
    shape.input_dtype = static_cast<std::uint32_t>(random.between(1, 3));
    shape.output_dtype = static_cast<std::uint32_t>(random.between(1, 3));
    shape.bias_dtype = static_cast<std::uint32_t>(random.between(0, 3));
    shape.activation_format = random.bits() % 2;
    shape.weight_format = random.bits() % 2;
    shape.layout = random.bits() % 2;
    shape.extra_stride = random.between(0, 9);
    EXPECT_TRUE(right(context_, shape)) << "seed " << seed_of_the_day();
    EXPECT_TRUE(same_prequantized(context_, shape)) << "seed " << seed_of_the_day();
  }
}

TEST_F(Linear, AFloorHolds) {
  LinearShape shape{3, 64, 256};
  LinearProblem problem(shape);
  problem.x_rule.has_floor = true;
  problem.x_rule.floor = 1000.0f;
  problem.requantize_x();
  fp8rt_linear_desc desc = problem.desc();
  desc.flags = FP8RT_LINEAR_FLOOR;
  desc.floor = 1000.0f;
  const fp8rt::LinearPlan plan(context_, desc);
  Matrix y = problem.y;
  ASSERT_OK(problem.run(plan, problem.x, y));
  EXPECT_TRUE(within_bounds(y, problem.exact()));
  ASSERT_OK(problem.run_prequantized(plan, problem.x_codes, problem.x_scales, problem.y));
  EXPECT_TRUE(same_bytes(y, problem.y));
}

TEST_F(Linear, NoColumnsGiveTheBiasOrZeros) {
  for (const std::uint32_t output : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16, FP8RT_DTYPE_F32}) {
    for (const std::uint32_t bias : {0u, 1u, 3u}) {
      LinearShape shape{5, 130, 0};
      shape.output_dtype = output;
      shape.bias_dtype = bias;
      shape.extra_stride = 6;
      LinearProblem problem(shape);
      const fp8rt::LinearPlan plan(context_, problem.desc());
      Matrix want = problem.y;
      want.each([&](auto, auto row, auto column) {
        want.set(row, column, bias == 0 ? 0.0f : problem.bias.get(0, column));
      });
      ASSERT_OK(problem.run(plan, problem.x, problem.y));
      EXPECT_TRUE(same_bytes(problem.y, want)) << dtype_name(output) << ", bias " << bias;
    }
  }
}

TEST_F(Linear, NothingToWriteSucceeds) {
  for (const LinearShape &shape : {LinearShape{0, 64, 128}, {5, 0, 128}, {0, 0, 0}}) {
    LinearProblem problem(shape);
    const fp8rt::LinearPlan plan(context_, problem.desc());
    const Matrix before = problem.y;
    EXPECT_OK(problem.run(plan, problem.x, problem.y));
    EXPECT_OK(problem.run_prequantized(plan, problem.x_codes, problem.x_scales, problem.y));
    EXPECT_TRUE(same_bytes(problem.y, before));
  }
  LinearProblem problem({4, 64, 128});
  const fp8rt::LinearPlan plan(context_, problem.desc());
  const Matrix none_in = rows_of(problem.x, 0, 0), none_out = rows_of(problem.y, 0, 0), before = none_out;
  EXPECT_OK(problem.run(plan, none_in, none_out));
  EXPECT_TRUE(same_bytes(none_out, before));
}

TEST_F(Linear, FewerRowsThanPlanned) {
  LinearProblem problem({70, 100, 200});
  const fp8rt::LinearPlan plan(context_, problem.desc());
  const Exact exact = problem.exact();
  for (const std::int64_t m : {1, 2, 33, 69}) {
    Matrix y = rows_of(problem.y, 0, m);
    ASSERT_OK(problem.run(plan, rows_of(problem.x, 0, m), y));
    EXPECT_TRUE(within_bounds(y, exact)) << m;
  }
}

TEST_F(Linear, ThreadsAndInstructionSetsGiveTheSameBits) {
  LinearShape shape{37, 300, 700};
  shape.output_dtype = FP8RT_DTYPE_F32;
  LinearProblem problem(shape);
  const fp8rt::LinearPlan plan(context_, problem.desc());
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  for (const std::uint32_t threads : {1u, 2u, 3u, 5u}) {
    const fp8rt::Context other = context_with_threads(threads);
    const fp8rt::LinearPlan other_plan(other, problem.desc());
    Matrix y(shape.output_dtype, problem.y.extents());
    ASSERT_OK(problem.run(other_plan, problem.x, y));
    EXPECT_TRUE(same_bytes(y, problem.y)) << threads << " threads";
  }
#if defined(__x86_64__)
  for (const char *name : {"sse2", "avx2", "avx512"}) {
    const Environment environment("FP8RT_CPU_ISA", name);
    fp8rt_context *handle = nullptr;
    if (fp8rt_context_create(nullptr, &handle) != FP8RT_STATUS_OK) {
      EXPECT_STRNE(name, "sse2") << "every processor has it";
      continue;
    }
    fp8rt_context_destroy(handle);
    const fp8rt::Context other;
    const fp8rt::LinearPlan other_plan(other, problem.desc());
    Matrix y(shape.output_dtype, problem.y.extents());
    ASSERT_OK(problem.run(other_plan, problem.x, y));
    EXPECT_TRUE(same_bytes(y, problem.y)) << name;
  }
#endif
}

TEST_F(Linear, ExtremeScalesStayFinite) {
  const float largest = std::numeric_limits<float>::max();
  const std::pair<float, float> pairs[] = {
      {1e30f, 1e30f}, {largest, 2.0f}, {1e-30f, 1e-30f}, {1e-45f, 1e-45f}, {1e-45f, 1.0f}};
  for (const auto &[x_scale, w_scale] : pairs) {
    for (const std::uint32_t output : {FP8RT_DTYPE_F32, FP8RT_DTYPE_BF16, FP8RT_DTYPE_F16}) {
      for (const std::int64_t m : {1, 9}) {
        LinearShape shape{m, 70, 200};
        shape.output_dtype = output;
        LinearProblem problem(shape);
        problem.x_scales.fill(x_scale);
        problem.weight_scales.fill(w_scale);
        // A row of zeros: nothing times too much is nothing.
        for (std::int64_t k = 0; k < 200; ++k) {
          problem.weight.store<std::uint8_t>(0, 3, k, 0);
        }
        const fp8rt::LinearPlan plan(context_, problem.desc());
        ASSERT_OK(problem.run_prequantized(plan, problem.x_codes, problem.x_scales, problem.y));
        bool finite = true;
        problem.y.each([&](auto expert, auto row, auto column) {
          finite = finite && std::isfinite(problem.y.get(expert, row, column));
        });
        EXPECT_TRUE(finite) << x_scale << " * " << w_scale << " in " << dtype_name(output) << ", M = " << m;
      }
    }
  }
}

TEST(LinearPlan, SaysWhatItDecided) {
  const fp8rt::Context context;
  LinearProblem problem({17, 192, 320});
  const fp8rt::LinearPlan plan(context, problem.desc());
  const fp8rt_linear_plan_info info = plan.query();
  EXPECT_EQ(info.struct_size, sizeof info);
  EXPECT_EQ(info.backend, std::uint32_t{FP8RT_BACKEND_CPU});
  EXPECT_EQ(info.max_m, 17);
  EXPECT_EQ(info.workspace_bytes, plan.workspace(17));
}

TEST(LinearPlan, WorkspaceGrowsWithM) {
  const fp8rt::Context context;
  LinearProblem problem({300, 64, 4304});
  const fp8rt::LinearPlan plan(context, problem.desc());
  std::uint64_t before = 0;
  for (std::int64_t m = 0; m <= 300; ++m) {
    const std::uint64_t bytes = plan.workspace(m);
    EXPECT_GE(bytes, before) << m;
    EXPECT_EQ(bytes % FP8RT_WORKSPACE_ALIGNMENT, 0u) << m;
    before = bytes;
  }
}

// What a backend for a GPU says of a context on the host, in this build.
std::string refusal_of(const char *backend) {
  const bool built = std::strstr(fp8rt_build_info(), "cuda: not built") == nullptr;
  return std::string(backend) + (built ? ": the context is on the host" : ": not in this build");
}

TEST(LinearPlan, DescribesItselfAndEachRefusal) {
  const fp8rt::Context context;
  LinearProblem problem({17, 192, 320});
  const fp8rt::LinearPlan plan(context, problem.desc());
  const std::string text = plan.describe();
  for (const std::string &part : {std::string("17"), std::string("192"), std::string("320"), std::string("cpu"),
                                  refusal_of("deepgemm"), refusal_of("cutlass"), refusal_of("cublaslt"),
                                  refusal_of("plain")}) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  }
  EXPECT_EQ(text.find('\n'), std::string::npos);
  std::vector<char> cut(12, 'z');
  std::uint64_t length = 0;
  ASSERT_OK(fp8rt_linear_plan_describe(plan.get(), cut.data(), 10, &length));
  EXPECT_EQ(length, text.size());
  EXPECT_EQ(std::string(cut.data()), text.substr(0, 9));
  EXPECT_EQ(cut[10], 'z');
  cut.assign(12, 'z');
  ASSERT_OK(fp8rt_linear_plan_describe(plan.get(), cut.data(), 1, nullptr));
  EXPECT_EQ(cut[0], '\0');
  EXPECT_EQ(cut[1], 'z');
  ASSERT_OK(fp8rt_linear_plan_describe(plan.get(), nullptr, 0, nullptr));
}

TEST(LinearPlan, QueryFillsAShorterStructOnlyAsFarAsItGoes) {
  const fp8rt::Context context;
  LinearProblem problem({17, 192, 320});
  const fp8rt::LinearPlan plan(context, problem.desc());
  fp8rt_linear_plan_info info;
  std::memset(&info, kPoison, sizeof info);
  info.struct_size = offsetof(fp8rt_linear_plan_info, max_m);
  const std::int64_t poison = info.max_m;
  ASSERT_OK(fp8rt_linear_plan_query(plan.get(), &info));
  EXPECT_EQ(info.struct_size, offsetof(fp8rt_linear_plan_info, max_m));
  EXPECT_EQ(info.backend, std::uint32_t{FP8RT_BACKEND_CPU});
  EXPECT_EQ(info.max_m, poison);
}

TEST(LinearPlan, AnOlderDescriptorWorks) {
  const fp8rt::Context context;
  LinearProblem problem({3, 64, 128});
  fp8rt_linear_desc desc = problem.desc();
  desc.struct_size = offsetof(fp8rt_linear_desc, floor);
  desc.num_parts = UINT32_MAX;
  desc.input_stride = -1;
  const fp8rt::LinearPlan plan(context, desc);
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  EXPECT_TRUE(within_bounds(problem.y, problem.exact()));
}

TEST(LinearPlan, PartsAreCopied) {
  const fp8rt::Context context;
  LinearShape shape{3, 256, 128};
  shape.parts = {100, 156};
  LinearProblem problem(shape);
  std::vector<std::int64_t> parts = shape.parts;
  fp8rt_linear_desc desc = problem.desc();
  desc.part_rows = parts.data();
  const fp8rt::LinearPlan plan(context, desc);
  parts.assign(2, -7);
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  EXPECT_TRUE(within_bounds(problem.y, problem.exact()));
}

TEST(LinearPlan, PrepareTakesWhatRunsBring) {
  const fp8rt::Context context;
  LinearProblem problem({3, 64, 128});
  const fp8rt::LinearPlan plan(context, problem.desc());
  const fp8rt_tensor weight = problem.weight.tensor(), scales = problem.weight_scales.tensor();
  const Matrix before[] = {problem.weight, problem.weight_scales};
  EXPECT_OK(fp8rt_linear_plan_prepare(plan.get(), &weight, &scales, nullptr, nullptr));
  EXPECT_TRUE(same_bytes(problem.weight, before[0]) && same_bytes(problem.weight_scales, before[1]));
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  EXPECT_TRUE(within_bounds(problem.y, problem.exact()));
}

TEST(LinearPlan, TwoAtOnceDoNotMix) {
  const fp8rt::Context context;
  LinearShape second_shape{9, 200, 300};
  second_shape.output_dtype = FP8RT_DTYPE_F32;
  LinearProblem first({4, 64, 128}, 1), second(second_shape, 2);
  const fp8rt::LinearPlan first_plan(context, first.desc()), second_plan(context, second.desc());
  ASSERT_OK(first.run(first_plan, first.x, first.y));
  ASSERT_OK(second.run(second_plan, second.x, second.y));
  EXPECT_TRUE(within_bounds(first.y, first.exact()));
  EXPECT_TRUE(within_bounds(second.y, second.exact()));
}

fp8rt_status create(const fp8rt::Context &context, const fp8rt_linear_desc &desc) {
  fp8rt_linear_plan *plan = nullptr;
  const fp8rt_status status = fp8rt_linear_plan_create(context.get(), &desc, &plan);
  EXPECT_EQ(plan == nullptr, status != FP8RT_STATUS_OK);
  fp8rt_linear_plan_destroy(plan);
  return status;
}

TEST(Backends, OnlyThoseAskedForAreTaken) {
  constexpr const char *kCreate = "fp8rt_linear_plan_create";
  const fp8rt::Context context;
  fp8rt_linear_desc desc = LinearProblem({3, 64, 128}).desc();
  desc.backends = FP8RT_BACKEND_DEEPGEMM;
  EXPECT_TRUE(failed_with(create(context, desc), FP8RT_STATUS_UNSUPPORTED, kCreate,
                          {refusal_of("deepgemm"), "cpu: not among", "N = 64", "K = 128"}));
  desc.backends = FP8RT_BACKEND_DEEPGEMM | FP8RT_BACKEND_CUTLASS | FP8RT_BACKEND_CUBLASLT | FP8RT_BACKEND_PLAIN;
  EXPECT_TRUE(failed_with(create(context, desc), FP8RT_STATUS_UNSUPPORTED, kCreate, {refusal_of("plain")}));
  desc.backends = FP8RT_BACKEND_DEEPGEMM | FP8RT_BACKEND_CPU;
  EXPECT_OK(create(context, desc));
  for (const std::uint32_t unknown : {64u, 0x80000000u, UINT32_MAX}) {
    desc.backends = unknown;
    EXPECT_TRUE(failed_with(create(context, desc), FP8RT_STATUS_INVALID_ARGUMENT, kCreate, {"backends is"}));
  }
}

TEST(Backends, TheEnvironmentRestrictsThemToo) {
  constexpr const char *kCreate = "fp8rt_linear_plan_create";
  const fp8rt::Context context;
  fp8rt_linear_desc desc = LinearProblem({3, 64, 128}).desc();
  {
    const Environment environment("FP8RT_BACKEND", "deepgemm");
    EXPECT_TRUE(failed_with(create(context, desc), FP8RT_STATUS_UNSUPPORTED, kCreate,
                            {refusal_of("deepgemm"), "cpu: not named in FP8RT_BACKEND"}));
  }
  {
    const Environment environment("FP8RT_BACKEND", "deepgemm, cpu");
    EXPECT_OK(create(context, desc));
    desc.backends = FP8RT_BACKEND_PLAIN;
    EXPECT_TRUE(failed_with(create(context, desc), FP8RT_STATUS_UNSUPPORTED, kCreate, {"plain: not named"}));
    desc.backends = 0;
  }
  {
    const Environment environment("FP8RT_BACKEND", "cuda");
    EXPECT_TRUE(
        failed_with(create(context, desc), FP8RT_STATUS_INVALID_ARGUMENT, kCreate, {"FP8RT_BACKEND", "cuda", "cpu"}));
  }
  {
    const Environment environment("FP8RT_BACKEND", "");
    EXPECT_OK(create(context, desc));
  }
}

}  // namespace
}  // namespace fp8rt_test
