// The linear on a GPU, by every backend: who takes what, and y against float64 for all that a plan may say.

#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

// No backend may refuse everything in silence.
TEST(Backends, TakeWhatIsPromised) {
  for (const std::int64_t m : {1, 16, 64, 4096}) {
    const LinearShape shape{m, 4096, 4096};
    fp8rt_linear_desc desc = LinearProblem({0, 0, 0}).desc();
    desc.max_m = m;
    desc.n = desc.k = desc.input_stride = desc.weight_stride = desc.output_stride = 4096;
    std::uint32_t first = 0;
    for (const Backend &backend : kBackends) {
      desc.backends = backend.bit;
      fp8rt_linear_plan *plan = nullptr;
      const fp8rt_status status = fp8rt_linear_plan_create(gpu().get(), &desc, &plan);
      const bool taken = status == FP8RT_STATUS_OK;
      EXPECT_TRUE(taken || !must_take(backend, shape)) << fp8rt_last_error();
      EXPECT_TRUE(taken || status == FP8RT_STATUS_UNSUPPORTED) << fp8rt_last_error();
      fp8rt_linear_plan_destroy(plan);
      first = first == 0 && taken ? backend.bit : first;
    }
    desc.backends = 0;
    const fp8rt::LinearPlan plan(gpu(), desc);
    EXPECT_EQ(plan.query().backend, first) << "the first that takes it: " << plan.describe();
    std::printf("%s\n", plan.describe().c_str());
  }
}

TEST(Backends, TheMachineHasTheOnesThatItCanHave) {
  const LinearShape shape{16, 4096, 4096};
  EXPECT_TRUE(must_take(kPlain, shape));
  EXPECT_EQ(must_take(kDeepGemm, shape), is_hopper_sxm());
  EXPECT_EQ(must_take(kCutlass, shape), is_hopper_sxm() && is_cutlass_built());
  EXPECT_EQ(must_take(kCublasLt, shape), is_hopper_sxm() && is_cublaslt_there());
}

// S4.
TEST(Linear, AnyM) {
  for (const std::int64_t m : {1, 2, 3, 5, 7, 15, 16, 17, 33, 63, 64, 65, 127, 128, 129, 191, 255, 257}) {
    EXPECT_TRUE(right_by_all({m, 200, 320}));
    EXPECT_TRUE(right_by_all({m, 384, 512}));
  }
}

TEST(Linear, AnyNAndK) {
  const std::int64_t shapes[][2] = {{1, 1},    {1, 64},    {64, 1},    {7, 13},    {127, 64},  {128, 128}, {129, 192},
                                    {33, 129}, {257, 255}, {48, 4304}, {16, 1024}, {576, 520}, {1, 4304},  {8, 16},
                                    {24, 144}, {136, 272}, {1000, 48}, {128, 127}, {264, 384}, {72, 2064}};
  for (const auto &[n, k] : shapes) {
    for (const std::int64_t m : {1, 6, 37, 150}) {
      EXPECT_TRUE(right_by_all({m, n, k}));
    }
  }
}

TEST(Linear, AnyTypes) {
  for (const std::uint32_t input : kFloats) {
    for (const std::uint32_t output : kFloats) {
      for (const std::uint32_t bias : {0u, 1u, 2u, 3u}) {
        for (const std::int64_t n : {150, 256}) {
          LinearShape shape{9, n, 208};
          shape.input_dtype = input;
          shape.output_dtype = output;
          shape.bias_dtype = bias;
          EXPECT_TRUE(right_by_all(shape));
        }
      }
    }
  }
}

// Rows 16 elements farther apart than they are long are what tensor maps take; 5 is for those that read any address.
TEST(Linear, AnyFormatsLayoutsAndStrides) {
  for (const std::uint32_t activation : kFormats) {
    for (const std::uint32_t weight : kFormats) {
      for (const std::uint32_t layout : {FP8RT_SCALE_LAYOUT_COLUMN_MAJOR, FP8RT_SCALE_LAYOUT_ROW_MAJOR}) {
        for (const std::int64_t extra : {0, 5, 16, 64}) {
          LinearShape shape{13, 184, 272};
          shape.activation_format = activation;
          shape.weight_format = weight;
          shape.layout = layout;
          shape.extra_stride = extra;
          // Packed scales are column-major whatever the layout says.
          if (activation != FP8RT_SCALE_FORMAT_UE8M0_PACKED || layout == FP8RT_SCALE_LAYOUT_COLUMN_MAJOR) {
            EXPECT_TRUE(right_by_all(shape));
          }
        }
      }
    }
  }
}

// N and K of no whole vectors in rows that are: kernels that copy by tensor maps may take these too.
TEST(Linear, RaggedExtentsInAlignedRows) {
  const std::int64_t shapes[][3] = {{34, 130, 14}, {100, 180, 12}, {255, 391, 9}, {4, 4, 12}, {137, 1033, 7}};
  for (const auto &[n, k, extra] : shapes) {
    for (const std::int64_t m : {1, 19, 150}) {
      LinearShape shape{m, n, k};
      shape.extra_stride = extra;
      EXPECT_TRUE(right_by_all(shape));
    }
  }
}

TEST(Linear, AnyRecipe) {
  for (std::uint32_t recipe = 0; recipe <= 4; ++recipe) {
    LinearShape shape{6, 136, 304};
    shape.recipe = recipe;
    EXPECT_TRUE(right_by_all(shape));
  }
}

// S8: a slice of a wider tensor whose first column lies anywhere. x is quantized from anywhere by every backend; codes
// and y that are not aligned to 16 bytes are for `plain`.
TEST(Linear, MisalignedX) {
  for (const std::uint32_t input : kFloats) {
    LinearShape shape{21, 256, 384};
    shape.input_dtype = input;
    shape.extra_stride = 16;
    const LinearProblem problem = make_problem(shape);
    Offsets offsets;
    offsets.x = element_bytes(input) * 3;
    EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 2, 21}, offsets));
  }
}

TEST(Linear, MisalignedCodesAndOutput) {
  for (const std::uint32_t output : kFloats) {
    for (const std::int64_t extra : {0, 7}) {
      LinearShape shape{21, 200, 390};
      shape.output_dtype = output;
      shape.extra_stride = extra;
      const LinearProblem problem = make_problem(shape);
      DeviceLinear device(problem, {2, 1, 3, element_bytes(output)});
      const auto plan = plan_by(kPlain, problem);
      ASSERT_TRUE(plan);
      EXPECT_TRUE(is_right(*plan, device, reference_of(problem), 21)) << describe(shape);
    }
  }
}

// Every code but NaN: zeros of both signs and subnormals too.
TEST(Linear, AnyCode) {
  for (const std::uint32_t output : {FP8RT_DTYPE_BF16, FP8RT_DTYPE_F32}) {
    LinearShape shape{40, 256, 640};
    shape.output_dtype = output;
    LinearProblem problem = make_problem(shape);
    Bits bits(next_seed());
    for (Matrix *codes : {&problem.weight, &problem.x_codes}) {
      codes->each([&](auto expert, auto row, auto column) {
        const auto code = static_cast<std::uint8_t>(bits.next());
        codes->store(expert, row, column, static_cast<std::uint8_t>((code & 0x7F) == 0x7F ? code - 1 : code));
      });
    }
    const Reference want = reference_of(problem);
    DeviceLinear device(problem);
    for (const Backend &backend : kBackends) {
      if (const auto plan = plan_by(backend, problem)) {
        Matrix y = device.blank;
        EXPECT_TRUE(run_once(Form::kQuantized, *plan, device, shape.m, y)) << plan->describe();
        EXPECT_TRUE(is_close(y, want, shape.m)) << plan->describe();
      }
    }
  }
}

// Scales with gaps between their columns or rows, whose first element is aligned to 4 bytes alone.
class ScalesOfAnyStride : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  // The same scales at other strides, the gaps full of NaN.
  static Matrix spread(const Matrix &scales, bool column_major, std::int64_t gap, std::size_t offset) {
    const Extents extents = scales.extents();
    const std::int64_t rows = ceil_div(extents.rows, 4) * 4;
    const Strides strides = column_major ? Strides{1, rows + gap} : Strides{extents.columns + gap, 1};
    const std::size_t extra = column_major ? static_cast<std::size_t>(rows - extents.rows) * 4 : 0;
    Matrix result(FP8RT_DTYPE_F32, extents, strides, extra, offset);
    std::memset(result.data(), 0xFF, result.bytes());
    scales.each([&](auto, auto row, auto column) { result.set(row, column, scales.get(row, column)); });
    return result;
  }
};

TEST_P(ScalesOfAnyStride, GiveTheSameBits) {
  LinearShape shape{21, 264, 400};
  shape.layout = GetParam();
  const LinearProblem problem = make_problem(shape);
  DeviceLinear device(problem);
  const Stream stream;
  for (const Backend &backend : kBackends) {
    const auto plan = plan_by(backend, problem);
    if (!plan) {
      continue;
    }
    Matrix want = device.blank;
    ASSERT_TRUE(run_once(Form::kQuantized, *plan, device, shape.m, want)) << plan->describe();
    for (const std::int64_t gap : {0, 4, 12}) {
      for (const std::size_t offset : {std::size_t{0}, std::size_t{4}}) {
        for (const bool weight_column_major : {false, true}) {
          const bool column_major = shape.layout == FP8RT_SCALE_LAYOUT_COLUMN_MAJOR;
          const DeviceMatrix x_scales(spread(problem.x_scales, column_major, gap, offset)),
              weight_scales(spread(problem.weight_scales, weight_column_major, gap, offset));
          LinearViews views = device.views();
          views.x_scales = x_scales.tensor();
          views.weight_scales = weight_scales.tensor();
          const DeviceWorkspace workspace(plan->workspace(shape.m));
          device.blank_y();
          ASSERT_OK(views.run(Form::kQuantized, *plan, workspace, stream)) << plan->describe();
          stream.synchronize();
          EXPECT_TRUE(same_bytes(device.y.download(), want))
              << plan->describe() << ", gap " << gap << ", offset " << offset << ", " << weight_column_major;
          EXPECT_TRUE(workspace.guards());
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, ScalesOfAnyStride,
                         ::testing::Values(FP8RT_SCALE_LAYOUT_COLUMN_MAJOR, FP8RT_SCALE_LAYOUT_ROW_MAJOR));

TEST(Linear, AFloorHolds) {
  LinearProblem problem = make_problem({5, 256, 256});
  problem.x_rule.has_floor = true;
  problem.x_rule.floor = 1000.0f;
  problem.requantize_x();
  const Reference want = reference_of(problem);
  DeviceLinear device(problem);
  for (const Backend &backend : kBackends) {
    fp8rt_linear_desc desc = problem.desc();
    desc.flags = FP8RT_LINEAR_FLOOR;
    desc.floor = 1000.0f;
    desc.backends = backend.bit;
    if (plan_by(backend, problem)) {
      EXPECT_TRUE(is_right(fp8rt::LinearPlan(gpu(), desc), device, want, 5)) << backend.name;
    }
  }
}

// S6.
TEST(Linear, NoColumnsGiveTheBiasOrZeros) {
  for (const std::uint32_t output : kFloats) {
    for (const std::uint32_t bias : {0u, 1u, 2u, 3u}) {
      LinearShape shape{5, 136, 0};
      shape.output_dtype = output;
      shape.bias_dtype = bias;
      shape.extra_stride = 16;
      EXPECT_TRUE(right_by_all(shape));
    }
  }
}

TEST(Linear, NothingToWriteWritesNothing) {
  for (const LinearShape &shape : {LinearShape{0, 64, 128}, {5, 0, 128}, {0, 0, 0}}) {
    EXPECT_TRUE(right_by_all(shape));
  }
  const LinearProblem problem = make_problem({4, 64, 128});
  EXPECT_TRUE(right_by_all(problem, reference_of(problem), {0, 4, 0}));
}

TEST(Linear, FewerRowsThanPlanned) {
  const LinearProblem problem = make_problem({300, 256, 256});
  EXPECT_TRUE(right_by_all(problem, reference_of(problem), {1, 2, 3, 16, 33, 64, 100, 129, 299, 300}));
}

TEST(Linear, WorkspaceGrowsWithM) {
  for (const std::int64_t k : {64, 4304}) {
    const LinearProblem problem({300, 128, k});
    for (const Backend &backend : kBackends) {
      if (const auto plan = plan_by(backend, problem)) {
        std::uint64_t before = 0;
        for (std::int64_t m = 0; m <= 300; ++m) {
          const std::uint64_t bytes = plan->workspace(m);
          EXPECT_GE(bytes, before) << plan->describe() << ", M = " << m;
          EXPECT_EQ(bytes % FP8RT_WORKSPACE_ALIGNMENT, 0u) << plan->describe() << ", M = " << m;
          before = bytes;
        }
        EXPECT_EQ(plan->query().workspace_bytes, before);
      }
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
