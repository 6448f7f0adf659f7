// Measurements of a refit against sums in double precision, and what the three forms of the report say.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "calls.hpp"
#include "parameter.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

using nlohmann::json;

// What a refit of these values must measure.
fp8rt_error_sums oracle_sums(const Rule &rule, const Matrix &values) {
  Matrix codes(FP8RT_DTYPE_E4M3, values.extents()), scales = make_scales(rule, values.extents());
  oracle_quantize(rule, values, codes, scales);
  fp8rt_error_sums sums{};
  each_block(rule, values, [&](const Block &block) {
    double squares = 0, amax = 0;
    std::uint64_t elements = 0;
    each_element(values, block, [&](std::int64_t row, std::int64_t column) {
      const double x = values.get(block.expert, row, column);
      if (!std::isfinite(x)) {
        sums.non_finite += 1;
        return;
      }
      const std::uint8_t code = codes.load<std::uint8_t>(block.expert, row, column);
      const double error = x - double{from_e4m3(code) * load_scale(rule, scales, block, row)};
      squares += x * x, amax = std::max(amax, std::fabs(x)), elements += 1;
      sums.errors += error * error;
      sums.became_zero += x != 0 && (code & 0x7F) == 0;
      sums.became_subnormal += (code & 0x7F) >= 1 && (code & 0x7F) < 8;
    });
    sums.squares += squares, sums.elements += elements, sums.blocks += 1;
    sums.outlier_blocks += amax * amax * static_cast<double>(elements) > 36 * squares;
  });
  return sums;
}

void expect_same(const fp8rt_error_sums &got, const fp8rt_error_sums &want) {
  EXPECT_NEAR(got.squares, want.squares, 1e-12 * want.squares);
  EXPECT_NEAR(got.errors, want.errors, 1e-9 * want.errors);
  EXPECT_EQ(got.elements, want.elements);
  EXPECT_EQ(got.became_zero, want.became_zero);
  EXPECT_EQ(got.became_subnormal, want.became_subnormal);
  EXPECT_EQ(got.non_finite, want.non_finite);
  EXPECT_EQ(got.blocks, want.blocks);
  EXPECT_EQ(got.outlier_blocks, want.outlier_blocks);
}

std::string report(const fp8rt::Refit &refit, const std::vector<fp8rt_error_sums> &sums, std::uint32_t format) {
  const auto count = static_cast<std::uint32_t>(sums.size());
  std::uint64_t length = 0;
  fp8rt::check(fp8rt_refit_report(refit.get(), sums.data(), count, format, nullptr, 0, &length));
  std::string text(static_cast<std::size_t>(length) + 1, '\0');
  fp8rt::check(fp8rt_refit_report(refit.get(), sums.data(), count, format, text.data(), text.size(), nullptr));
  text.resize(static_cast<std::size_t>(length));
  return text;
}

class Measure : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  fp8rt::Context context = context_with_threads(2);
};

TEST_P(Measure, SumsAreThoseOfTheOracle) {
  Rule rule;
  rule.format = GetParam();
  Rule parted = rule;
  parted.parts = {192, 66};
  Parameter plain("plain", rule, {300, 400}), merged("merged", parted, {258, 300}), slab("slab", rule, {130, 200, 2});
  Parameter kept("kept", FP8RT_DTYPE_BF16, {10, 20});
  fp8rt::Refit refit(context, {plain.destination(), merged.destination(), slab.destination(), kept.destination()});
  Matrix of_plain(FP8RT_DTYPE_BF16, {300, 400}, {411}), of_merged(FP8RT_DTYPE_F16, {258, 300});
  Matrix of_slab(FP8RT_DTYPE_F32, {130, 200, 2}), of_kept(FP8RT_DTYPE_BF16, {10, 20});
  Random(1).fill_hostile(of_plain, true), Random(2).fill_normal(of_merged, 1), Random(3).fill_hostile(of_slab, false);
  Random(4).fill_normal(of_kept, 1);
  // An outlier, and elements that FP8 makes zero beside it.
  of_merged.set(200, 7, 60000.0f), of_merged.set(201, 7, 1e-5f);
  const std::vector<fp8rt_refit_item> items = {item("slab", of_slab), item("plain", of_plain), item("kept", of_kept),
                                               item("merged", of_merged)};
  refit.begin();
  refit.run(items);
  refit.finish();
  std::vector<fp8rt_error_sums> sums(4), read(4);
  ASSERT_OK(fp8rt_refit_measure(refit.get(), items.data(), 4, sums.data(), nullptr));
  expect_same(sums[0], oracle_sums(rule, of_plain));
  expect_same(sums[1], oracle_sums(parted, of_merged));
  expect_same(sums[2], oracle_sums(rule, of_slab));
  expect_same(sums[3], {});
  EXPECT_GT(sums[1].outlier_blocks, 0u);
  EXPECT_GT(sums[0].non_finite, 0u);
  ASSERT_OK(fp8rt_error_sums_read(context.get(), sums.data(), 4, read.data(), nullptr));
  for (int i = 0; i < 4; ++i) expect_same(read[static_cast<std::size_t>(i)], sums[static_cast<std::size_t>(i)]);
}

// Pieces of a tensor, in two buckets, add up.
TEST_P(Measure, CutsAddUp) {
  Rule rule;
  rule.format = GetParam();
  Parameter whole("w", rule, {300, 600});
  fp8rt::Refit refit(context, {whole.destination()});
  Matrix values(FP8RT_DTYPE_BF16, {300, 600});
  Random(5).fill_normal(values, 0.1f);
  const Matrix top = box_of(values, {}, {128, 600}), bottom = box_of(values, {0, 128, 0}, {172, 600});
  refit.begin();
  fp8rt_error_sums sums{};
  for (const fp8rt_refit_item &cut : {cut_item("w", 128, 0, bottom), cut_item("w", 0, 0, top)}) {
    refit.run({cut});
    ASSERT_OK(fp8rt_refit_measure(refit.get(), &cut, 1, &sums, nullptr));
  }
  refit.finish();
  expect_same(sums, oracle_sums(rule, values));
}

INSTANTIATE_TEST_SUITE_P(Formats, Measure,
                         ::testing::Values(FP8RT_SCALE_FORMAT_FP32, FP8RT_SCALE_FORMAT_POW2,
                                           FP8RT_SCALE_FORMAT_UE8M0_PACKED));

// A model of names alone: the sums are made up.
class Report : public ::testing::Test {
 protected:
  void add(const std::string &name, double error, bool kept = false) {
    names.push_back(name);
    fp8rt_error_sums made{};
    if (!kept) {
      made.elements = 1000000, made.squares = 1000, made.errors = error * error * made.squares;
      made.became_zero = 100, made.became_subnormal = 20000, made.blocks = 64, made.outlier_blocks = 16;
    }
    sums.push_back(made);
  }

  // `errors`: of the layers.
  void add_layers(const std::vector<double> &errors) {
    for (std::size_t layer = 0; layer < errors.size(); ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      for (const char *projection : {"self_attn.qkv_proj", "mlp.down_proj"}) {
        add(prefix + projection + ".weight", errors[layer], errors[layer] == 0);
      }
    }
  }

  fp8rt::Refit refit() {
    std::vector<fp8rt_refit_destination> destinations;
    for (const std::string &name : names) {
      const fp8rt_tensor values = fp8rt::tensor(memory, FP8RT_DTYPE_BF16, {4});
      destinations.push_back(fp8rt::refit_destination(name.c_str(), values));
    }
    return fp8rt::Refit(context, destinations);
  }

  json parsed() { return json::parse(report(refit(), sums, FP8RT_REPORT_FORMAT_JSON)); }

  fp8rt::Context context;
  std::vector<std::string> names;
  std::vector<fp8rt_error_sums> sums;
  std::uint16_t memory[4] = {};
};

TEST_F(Report, JsonSaysWhatTheSumsSay) {
  add_layers({0.03, 0.026, 0.025, 0.026});
  add("lm_head.weight", 0.05), add("model.norm.weight", 0, true);
  const json said = parsed();
  EXPECT_EQ(said["tensors"].size(), 9u);
  EXPECT_EQ(said["tensors"][0]["name"], "lm_head.weight");
  EXPECT_TRUE(said["tensors"][0]["layer"].is_null());
  EXPECT_NEAR(said["tensors"][0]["relative_error"], 0.05, 1e-12);
  EXPECT_EQ(said["tensors"][1]["layer"], 0);
  EXPECT_NEAR(said["tensors"][1]["became_zero"], 1e-4, 1e-15);
  EXPECT_NEAR(said["tensors"][1]["became_subnormal"], 0.02, 1e-15);
  EXPECT_EQ(said["tensors"][1]["outlier_blocks"], 0.25);
  EXPECT_EQ(said["layers"].size(), 4u);
  EXPECT_NEAR(said["layers"][2]["relative_error"], 0.025, 1e-12);
  EXPECT_EQ(said["projections"].size(), 3u);
  EXPECT_EQ(said["not_measured"], json({"model.norm.weight"}));
  EXPECT_EQ(said["total"]["elements"], 9000000);
  EXPECT_EQ(said["definitions"].size(), 4u);
}

TEST_F(Report, SuggestsTheLayersThatStandOut) {
  add_layers({0.04, 0.031, 0.026, 0.0262, 0.0258, 0.05, 0.026, 0.0261, 0.033});
  const json said = parsed()["suggestion"];
  EXPECT_EQ(said["num_first_layers_in_bf16"], 2);
  EXPECT_EQ(said["num_last_layers_in_bf16"], 1);
  EXPECT_EQ(said["layers_that_stand_out"], json({0, 1, 5, 8}));
  EXPECT_NE(said["rule"].get<std::string>().find("2.620%"), std::string::npos);
}

TEST_F(Report, SuggestsNothingWhereAllAreAlike) {
  add_layers({0.026, 0.0261, 0.0262, 0.026, 0.0261, 0.0262});
  const json said = parsed()["suggestion"];
  EXPECT_EQ(said["num_first_layers_in_bf16"], 0);
  EXPECT_EQ(said["num_last_layers_in_bf16"], 0);
}

// A vision tower's layers are no layers of the decoder, and layers that are kept stay so.
TEST_F(Report, LayersOfOtherStacksAreOthers) {
  add_layers({0, 0.026, 0.026, 0.026});
  add("visual.blocks.30.mlp.fc1.weight", 0.5), sums.back().elements = 10;
  const json said = parsed();
  EXPECT_EQ(said["stack"], "model.layers");
  EXPECT_EQ(said["layers"].size(), 4u);
  EXPECT_EQ(said["layers"][0]["kept"], true);
  EXPECT_EQ(said["suggestion"]["num_first_layers_in_bf16"], 1);
}

TEST_F(Report, TextHasEveryLayerAndTheSuggestion) {
  add_layers({0.04, 0.026, 0.026, 0});
  add("evil\x1b[31m.weight", 0.02);
  const std::string text = report(refit(), sums, FP8RT_REPORT_FORMAT_TEXT);
  for (const char *part : {"num_first_layers_in_bf16=1 num_last_layers_in_bf16=1", "4.000%", "kept", "mlp.down_proj",
                           "self_attn.qkv_proj", "relative_error:", "outlier_blocks:"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

TEST_F(Report, ThePageNeedsNothingAndEscapesNames) {
  add_layers({0.04, 0.026, 0.026});
  add("<script>alert('x')</script>&\"weight\"", 0.2);
  const std::string page = report(refit(), sums, FP8RT_REPORT_FORMAT_HTML);
  EXPECT_EQ(page.rfind("<!DOCTYPE html>", 0), 0u);
  for (const char *never : {"<script", "http:", "https:", "@import", "url(", "src=", "href="}) {
    EXPECT_EQ(page.find(never), std::string::npos) << never;
  }
  for (const char *part : {"&lt;script&gt;alert(&#39;x&#39;)", "prefers-color-scheme: dark", "<svg", "</svg>",
                           "<title>layer 0", "num_first_layers_in_bf16: 1", "relative error</text>", "layer</text>"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
}

TEST_F(Report, NothingMeasuredIsAReportToo) {
  add("model.norm.weight", 0, true);
  EXPECT_EQ(parsed()["tensors"].size(), 0u);
  EXPECT_EQ(parsed()["total"]["relative_error"], 0.0);
  for (const std::uint32_t format : {FP8RT_REPORT_FORMAT_TEXT, FP8RT_REPORT_FORMAT_HTML}) {
    const std::string said = report(refit(), sums, format);
    EXPECT_EQ(said.find("NaN"), std::string::npos);
    EXPECT_EQ(said.find("inf"), std::string::npos);
  }
}

TEST_F(Report, ArgumentsAreChecked) {
  add_layers({0.026, 0.026});
  const fp8rt::Refit plan = refit();
  const auto call = [&](std::uint32_t count, std::uint32_t format, const fp8rt_error_sums *given) {
    return fp8rt_refit_report(plan.get(), given, count, format, nullptr, 0, nullptr);
  };
  const std::string function = "fp8rt_refit_report";
  EXPECT_OK(call(4, FP8RT_REPORT_FORMAT_JSON, sums.data()));
  EXPECT_TRUE(failed_with(call(3, 0, sums.data()), FP8RT_STATUS_INVALID_ARGUMENT, function, {"count", "3", "4"}));
  EXPECT_TRUE(failed_with(call(4, 3, sums.data()), FP8RT_STATUS_INVALID_ARGUMENT, function, {"format", "3"}));
  EXPECT_TRUE(failed_with(call(4, 0, nullptr), FP8RT_STATUS_NULL_POINTER, function, {"sums", "4"}));
  EXPECT_TRUE(failed_with(fp8rt_refit_measure(plan.get(), nullptr, 0, nullptr, nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_refit_measure", {"sums"}));
  Matrix values(FP8RT_DTYPE_BF16, {2, 2});
  fp8rt_refit_item unknown = item("nobody", values);
  EXPECT_TRUE(failed_with(fp8rt_refit_measure(plan.get(), &unknown, 1, sums.data(), nullptr),
                          FP8RT_STATUS_INVALID_ARGUMENT, "fp8rt_refit_measure", {"items[0]", "nobody"}));
  EXPECT_TRUE(failed_with(fp8rt_error_sums_read(context.get(), nullptr, 2, sums.data(), nullptr),
                          FP8RT_STATUS_NULL_POINTER, "fp8rt_error_sums_read", {"device", "2"}));
}

}  // namespace
}  // namespace fp8rt_test
