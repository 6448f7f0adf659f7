// The library against vectors that were made without it, byte for byte, with each instruction set and thread count.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "fp8rt.h"
#include "golden_vectors.hpp"

namespace golden {
namespace {

constexpr std::uint8_t kPoison = 0xA5;

struct ContextDeleter {
  void operator()(fp8rt_context *context) const { fp8rt_context_destroy(context); }
};
using Context = std::unique_ptr<fp8rt_context, ContextDeleter>;

// Empty if this processor lacks the instruction set.
Context make_context(const std::string &isa, std::uint32_t num_threads, fp8rt_status *status) {
  setenv("FP8RT_CPU_ISA", isa.c_str(), 1);
  fp8rt_context_desc desc{};
  desc.struct_size = sizeof desc;
  desc.device = -1;
  desc.num_threads = num_threads;
  fp8rt_context *context = nullptr;
  *status = fp8rt_context_create(&desc, &context);
  return Context(context);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> found;
  for (const char *name : {"sse2", "avx2", "avx512", "neon"}) {
    fp8rt_status status = FP8RT_STATUS_OK;
    if (make_context(name, 1, &status)) {
      found.push_back(name);
    }
  }
  return found;
}

const std::vector<Case> &all_cases() {
  static const std::vector<Case> cases = read_cases(FP8RT_GOLDEN_VECTORS);
  return cases;
}

fp8rt_quantize_desc desc_of(const Case &described) {
  fp8rt_quantize_desc desc{};
  desc.struct_size = sizeof desc;
  desc.flags = described.has_floor ? FP8RT_QUANTIZE_FLOOR : 0;
  desc.recipe = described.recipe;
  desc.scale_format = described.format;
  desc.floor = described.floor;
  desc.num_parts = static_cast<std::uint32_t>(described.parts.size());
  desc.part_rows = described.parts.empty() ? nullptr : described.parts.data();
  return desc;
}

// A compact view of the case's matrix.
fp8rt_tensor matrix_view(const Case &described, Bytes &memory, std::uint32_t dtype) {
  fp8rt_tensor view{};
  view.data = memory.data();
  view.bytes = memory.size();
  view.dtype = dtype;
  view.device = -1;
  view.rank = described.experts == 0 ? 2 : 3;
  const std::int64_t rows = described.rows, columns = described.columns;
  const std::int64_t shape[3] = {described.experts, rows, columns};
  const std::int64_t stride[3] = {rows * columns, columns, 1};
  std::copy(shape + 3 - view.rank, shape + 3, view.shape);
  std::copy(stride + 3 - view.rank, stride + 3, view.stride);
  return view;
}

fp8rt_tensor scales_view(const Case &described) {
  const fp8rt_quantize_desc desc = desc_of(described);
  fp8rt_tensor view{};
  const fp8rt_status status =
      described.subject == Subject::weight
          ? fp8rt_weight_scales_layout(&desc, described.experts, described.rows, described.columns, &view)
          : fp8rt_activation_scales_layout(&desc, described.layout, described.rows, described.columns, &view);
  EXPECT_EQ(status, FP8RT_STATUS_OK) << fp8rt_last_error();
  return view;
}

std::vector<std::uint64_t> counts(const fp8rt_health &health) {
  return {health.non_finite, health.saturated, health.became_zero, health.became_subnormal};
}

void expect_health(const Case &described, const fp8rt_health &health) {
  EXPECT_EQ(counts(health), described.health) << "non_finite, saturated, became_zero, became_subnormal";
}

void expect_codes(const Case &described, const Bytes &codes) {
  EXPECT_EQ(difference(described.output, codes, described.columns), "") << "codes";
}

void run_quantize(fp8rt_context *context, const Case &described) {
  const bool weight = described.subject == Subject::weight;
  const fp8rt_quantize_desc desc = desc_of(described);
  Bytes input = described.input, codes(described.elements(), kPoison);
  fp8rt_tensor scales = scales_view(described);
  Bytes scale_bytes(scales.bytes, kPoison);
  scales.data = scale_bytes.data();
  const fp8rt_tensor source = matrix_view(described, input, described.dtype);
  const fp8rt_tensor target = matrix_view(described, codes, FP8RT_DTYPE_E4M3);
  fp8rt_health health{};
  const auto call = weight ? fp8rt_quantize_weight : fp8rt_quantize_activation;
  ASSERT_EQ(call(context, &desc, &source, &target, &scales, &health, nullptr), FP8RT_STATUS_OK) << fp8rt_last_error();
  EXPECT_EQ(difference(described.scales, scale_bytes, 64), "") << "scales";
  expect_codes(described, codes);
  expect_health(described, health);
}

void run_compute_scales(fp8rt_context *context, const Case &described) {
  const bool weight = described.subject == Subject::weight;
  const fp8rt_quantize_desc desc = desc_of(described);
  Bytes input = described.input;
  fp8rt_tensor scales = scales_view(described);
  Bytes scale_bytes(scales.bytes, kPoison);
  scales.data = scale_bytes.data();
  const fp8rt_tensor source = matrix_view(described, input, described.dtype);
  const auto call = weight ? fp8rt_compute_weight_scales : fp8rt_compute_activation_scales;
  ASSERT_EQ(call(context, &desc, &source, &scales, nullptr), FP8RT_STATUS_OK) << fp8rt_last_error();
  EXPECT_EQ(difference(described.scales, scale_bytes, 64), "") << "computed scales";
}

void run_quantize_with_scales(fp8rt_context *context, const Case &described) {
  const bool weight = described.subject == Subject::weight;
  const fp8rt_quantize_desc desc = desc_of(described);
  Bytes input = described.input, codes(described.elements(), kPoison), scale_bytes = described.scales.payload;
  fp8rt_tensor scales = scales_view(described);
  ASSERT_EQ(scales.bytes, scale_bytes.size());
  scales.data = scale_bytes.data();
  const fp8rt_tensor source = matrix_view(described, input, described.dtype);
  const fp8rt_tensor target = matrix_view(described, codes, FP8RT_DTYPE_E4M3);
  fp8rt_health health{};
  const auto call = weight ? fp8rt_quantize_weight_with_scales : fp8rt_quantize_activation_with_scales;
  ASSERT_EQ(call(context, &desc, &source, &scales, &target, &health, nullptr), FP8RT_STATUS_OK) << fp8rt_last_error();
  EXPECT_EQ(scale_bytes, described.scales.payload) << "given scales were changed";
  expect_codes(described, codes);
  expect_health(described, health);
}

// One NaN stands for all: their payload is not promised.
template <typename Word>
void make_nans_equal(Bytes &bytes, Word infinity, Word quiet) {
  const Word magnitude_bits = static_cast<Word>(~(Word{1} << (8 * sizeof(Word) - 1)));
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(Word)) {
    Word word;
    std::memcpy(&word, &bytes[at], sizeof word);
    if ((word & magnitude_bits) > infinity) {
      std::memcpy(&bytes[at], &quiet, sizeof quiet);
    }
  }
}

void make_nans_equal(Bytes &bytes, std::uint32_t dtype) {
  switch (dtype) {
    case FP8RT_DTYPE_BF16:
      return make_nans_equal<std::uint16_t>(bytes, 0x7F80, 0x7FC0);
    case FP8RT_DTYPE_F16:
      return make_nans_equal<std::uint16_t>(bytes, 0x7C00, 0x7E00);
    default:
      return make_nans_equal<std::uint32_t>(bytes, 0x7F800000u, 0x7FC00000u);
  }
}

void run_dequantize(fp8rt_context *context, const Case &described) {
  const bool weight = described.subject == Subject::weight;
  const fp8rt_quantize_desc desc = desc_of(described);
  const std::size_t size = bytes_of_dtype(described.dtype);
  Bytes codes = described.input, output(described.elements() * size, kPoison), scale_bytes = described.scales.payload;
  fp8rt_tensor scales = scales_view(described);
  ASSERT_EQ(scales.bytes, scale_bytes.size());
  scales.data = scale_bytes.data();
  const fp8rt_tensor source = matrix_view(described, codes, FP8RT_DTYPE_E4M3);
  const fp8rt_tensor target = matrix_view(described, output, described.dtype);
  const auto call = weight ? fp8rt_dequantize_weight : fp8rt_dequantize_activation;
  ASSERT_EQ(call(context, &desc, &source, &scales, &target, nullptr), FP8RT_STATUS_OK) << fp8rt_last_error();
  make_nans_equal(output, described.dtype);
  EXPECT_EQ(difference(described.output, output, described.columns * size), "") << "values";
}

void run_case(fp8rt_context *context, const Case &described) {
  switch (described.operation) {
    case Operation::quantize:
      run_quantize(context, described);
      return run_compute_scales(context, described);
    case Operation::quantize_with_scales:
      return run_quantize_with_scales(context, described);
    case Operation::dequantize:
      return run_dequantize(context, described);
  }
  FAIL() << "unknown operation";
}

class Golden : public testing::TestWithParam<std::tuple<std::string, std::uint32_t>> {
 protected:
  void run(Operation operation) {
    fp8rt_status status = FP8RT_STATUS_OK;
    const Context context = make_context(std::get<0>(GetParam()), std::get<1>(GetParam()), &status);
    ASSERT_EQ(status, FP8RT_STATUS_OK) << fp8rt_last_error();
    std::size_t ran = 0;
    for (const Case &described : all_cases()) {
      if (described.operation == operation) {
        SCOPED_TRACE(described.name);
        run_case(context.get(), described);
        ++ran;
      }
    }
    EXPECT_GT(ran, 10u);
  }
};

TEST_P(Golden, Quantize) {
  run(Operation::quantize);
}

TEST_P(Golden, QuantizeWithScales) {
  run(Operation::quantize_with_scales);
}

TEST_P(Golden, Dequantize) {
  run(Operation::dequantize);
}

std::string parameter_name(const testing::TestParamInfo<Golden::ParamType> &info) {
  return std::get<0>(info.param) + "_threads_" + std::to_string(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, Golden,
                         testing::Combine(testing::ValuesIn(instruction_sets()), testing::Values(1u, 2u)),
                         parameter_name);

TEST(InstructionSet, BaselineIsThere) {
  EXPECT_FALSE(instruction_sets().empty());
}

TEST(InstructionSet, UnknownNameIsRefused) {
  fp8rt_status status = FP8RT_STATUS_OK;
  EXPECT_EQ(make_context("mmx", 1, &status), nullptr);
  EXPECT_EQ(status, FP8RT_STATUS_INVALID_ARGUMENT);
  EXPECT_NE(std::string(fp8rt_last_error()).find("mmx"), std::string::npos) << fp8rt_last_error();
}

}  // namespace
}  // namespace golden
