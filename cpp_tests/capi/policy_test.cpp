// The policy through the C ABI: arguments, outputs, reasons, warnings, log. What is decided is tested in src/policy/tests.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"

namespace fp8rt_test {
namespace {

constexpr const char *kCreate = "fp8rt_policy_create";
constexpr const char *kDecide = "fp8rt_policy_decide";
constexpr const char *kName = "model.layers.3.self_attn.q_proj.weight";

fp8rt::Policy policy(const char *settings, const char *config = nullptr) {
  fp8rt_policy_desc desc = fp8rt::policy_desc();
  desc.settings = settings;
  desc.config = config;
  return fp8rt::Policy(desc);
}

::testing::AssertionResult refused(const fp8rt_policy_desc &desc, fp8rt_status status,
                                   const std::vector<std::string> &texts) {
  fp8rt_policy *const unset = reinterpret_cast<fp8rt_policy *>(std::uintptr_t{0x10});
  fp8rt_policy *made = unset;
  const fp8rt_status got = fp8rt_policy_create(&desc, &made);
  if (made != unset) {
    return ::testing::AssertionFailure() << "the handle was written";
  }
  return failed_with(got, status, kCreate, texts);
}

TEST(Policy, DecidesWithRecipesFormatsAndAReason) {
  const fp8rt::Policy made = policy(R"({"precision": "fp8", "pow2_activation_scaling_factors": true,
      "num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 2})", R"({"num_hidden_layers": 8})");
  const auto q = made.decide(kName, {4096, 4096});
  EXPECT_TRUE(q.fp8);
  EXPECT_EQ(q.values.weight_recipe, FP8RT_RECIPE_NEMO_RL);
  EXPECT_EQ(q.values.weight_scale_format, FP8RT_SCALE_FORMAT_FP32);
  EXPECT_EQ(q.values.activation_recipe, FP8RT_RECIPE_VLLM);
  EXPECT_EQ(q.values.activation_scale_format, FP8RT_SCALE_FORMAT_POW2);
  EXPECT_EQ(q.reason, "the weight of a linear layer");
  const auto norm = made.decide("model.norm.weight", {4096});
  EXPECT_FALSE(norm.fp8);
  EXPECT_EQ(norm.reason, "a norm");
  const auto last = made.decide_module("model.layers.7.mlp.gate_up_proj");
  EXPECT_EQ(last.reason, "layer 7 of 8 is one of the last 2 (num_last_layers_in_bf16)");
  EXPECT_EQ(last.values.weight_recipe + last.values.activation_recipe + last.values.activation_scale_format, 0u);
}

TEST(Policy, SaysWhatHoldsForTheWholeModel) {
  const fp8rt_policy_info info =
      policy(R"({"precision": "fp8", "use_deep_gemm": false, "num_last_layers_in_bf16": 2})",
             R"({"num_hidden_layers": 8})").query();
  EXPECT_EQ(info.quantizes, 1u);
  EXPECT_EQ(info.backends & FP8RT_BACKEND_DEEPGEMM, 0u);
  EXPECT_NE(info.backends & FP8RT_BACKEND_CPU, 0u);
  EXPECT_EQ(info.last_layers, 2u);
  EXPECT_EQ(info.num_hidden_layers, 8);
  const fp8rt_policy_info off = policy(R"({"precision": "bfloat16"})").query();
  EXPECT_EQ(off.quantizes, 0u);
  EXPECT_EQ(off.backends, 0u);
  EXPECT_EQ(off.num_hidden_layers, -1);
  EXPECT_EQ(off.num_warnings, 0u);
}

// `use_deep_gemm: false` must reach the plan of a linear.
TEST(Policy, ItsBackendsAreThoseOfAPlan) {
  const fp8rt::Context context;
  fp8rt_linear_desc desc = fp8rt::linear_desc();
  desc.max_m = 1, desc.n = 128, desc.k = 128;
  desc.backends = policy(R"({"precision": "fp8", "use_deep_gemm": false})").query().backends;
  const fp8rt::LinearPlan plan(context, desc);
  EXPECT_EQ(plan.query().backend, std::uint32_t{FP8RT_BACKEND_CPU});
}

TEST(Policy, WarnsThroughTheLogAndWhenAsked) {
  static std::vector<std::string> lines;
  lines.clear();
  ASSERT_OK(fp8rt_set_log([](std::uint32_t level, const char *line, void *) {
    if (level == FP8RT_LOG_WARNING) lines.push_back(line);
  }, nullptr));
  const fp8rt::Policy made = policy(R"({"precision": "fp8", "use_activation_pow2_scale": true})");
  ASSERT_OK(fp8rt_set_log(nullptr, nullptr));
  ASSERT_EQ(made.query().num_warnings, 1u);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0], "policy: " + made.warning(0));
  EXPECT_NE(lines[0].find("use_activation_pow2_scale"), std::string::npos);
  EXPECT_EQ(made.decide(kName).values.activation_scale_format, std::uint32_t{FP8RT_SCALE_FORMAT_POW2});
  EXPECT_TRUE(failed_with(fp8rt_policy_warning(made.get(), 1, nullptr, 0, nullptr), FP8RT_STATUS_INVALID_ARGUMENT,
                          "fp8rt_policy_warning", {"index is 1", "1 warnings"}));
}

TEST(Policy, BadSettingsAreNamed) {
  fp8rt_policy_desc desc = fp8rt::policy_desc();
  desc.settings = R"({"precision": "fp8", "num_first_layer_in_bf16": 1})";
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"num_first_layer_in_bf16", "num_first_layers_in_bf16"}));
  desc.settings = R"({"precision": "fp8", "is_mx": true})";
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_UNSUPPORTED, {"is_mx", "MXFP8"}));
  desc.settings = R"({"precision": "fp8", "num_first_layers_in_bf16": 9})";
  desc.config = R"({"num_hidden_layers": 8})";
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"9", "8"}));
  desc.settings = "\xff";
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"settings", "UTF-8"}));
  desc.settings = "";
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"settings is empty"}));
  desc.settings = R"({"precision": "fp8"})";
  desc.kind = 5;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"kind is 5", "4"}));
  desc.kind = FP8RT_POLICY_KIND_HUGGING_FACE;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_UNSUPPORTED, {"quant_method"}));
  desc.kind = FP8RT_POLICY_KIND_NEMO_RL;
  desc.reserved = 3;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"reserved is 3"}));
  desc.reserved = 0, desc.flags = 1;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_INVALID_ARGUMENT, {"flags"}));
  desc.flags = 0, desc.struct_size = 3;
  EXPECT_TRUE(refused(desc, FP8RT_STATUS_STRUCT_SIZE, {"3"}));
}

TEST(Policy, ArgumentsAreCheckedAndNothingIsWritten) {
  const fp8rt::Policy made = policy(R"({"precision": "fp8"})");
  fp8rt_policy_decision decision{};
  decision.struct_size = sizeof decision;
  std::array<char, 8> text{};
  const std::int64_t shape[] = {128, -1};
  const auto decide = [&](const char *name, std::uint32_t rank, const std::int64_t *extents, char *to) {
    return fp8rt_policy_decide(made.get(), name, rank, extents, &decision, to, text.size(), nullptr);
  };
  EXPECT_TRUE(failed_with(decide(nullptr, 0, nullptr, text.data()), FP8RT_STATUS_NULL_POINTER, kDecide, {"name"}));
  EXPECT_TRUE(failed_with(decide("", 0, nullptr, text.data()), FP8RT_STATUS_INVALID_ARGUMENT, kDecide, {"name"}));
  EXPECT_TRUE(failed_with(decide(kName, 2, nullptr, text.data()), FP8RT_STATUS_NULL_POINTER, kDecide, {"shape", "2"}));
  EXPECT_TRUE(failed_with(decide(kName, 17, shape, text.data()), FP8RT_STATUS_INVALID_ARGUMENT, kDecide, {"17", "16"}));
  EXPECT_TRUE(failed_with(decide(kName, 2, shape, text.data()), FP8RT_STATUS_SHAPE, kDecide, {kName, "-1"}));
  EXPECT_TRUE(failed_with(decide(kName, 0, nullptr, nullptr), FP8RT_STATUS_NULL_POINTER, kDecide, {"text", "8"}));
  EXPECT_TRUE(failed_with(fp8rt_policy_decide(nullptr, kName, 0, nullptr, &decision, nullptr, 0, nullptr),
                          FP8RT_STATUS_NULL_POINTER, kDecide, {"policy"}));
  EXPECT_TRUE(failed_with(fp8rt_policy_decide(made.get(), kName, 0, nullptr, nullptr, nullptr, 0, nullptr),
                          FP8RT_STATUS_NULL_POINTER, kDecide, {"decision"}));
  EXPECT_EQ(decision.action, 0u);
  EXPECT_EQ(text[0], '\0');
  EXPECT_OK(decide(kName, 0, nullptr, text.data()));
  EXPECT_EQ(decision.action, std::uint32_t{FP8RT_POLICY_ACTION_FP8});
  EXPECT_STREQ(text.data(), "the wei");
  EXPECT_TRUE(failed_with(fp8rt_policy_fingerprint(made.get(), nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_policy_fingerprint", {"fingerprint"}));
  EXPECT_OK(fp8rt_policy_destroy(nullptr));
}

TEST(Policy, AGroupInPartIsRefusedByName) {
  const fp8rt::Policy made = policy(R"({"quant_method": "fp8", "activation_scheme": "dynamic",
      "weight_block_size": [128, 128], "ignored_layers": ["model.layers.3.self_attn.q_proj"]})");
  fp8rt_policy_decision decision{};
  decision.struct_size = sizeof decision;
  EXPECT_TRUE(failed_with(fp8rt_policy_decide_module(made.get(), "model.layers.3.self_attn.qkv_proj", &decision,
                                                     nullptr, 0, nullptr),
                          FP8RT_STATUS_INVALID_ARGUMENT, "fp8rt_policy_decide_module",
                          {"model.layers.3.self_attn.qkv_proj", "q_proj is kept", "k_proj is FP8"}));
}

TEST(Policy, AnEnginesMappingAndPrefixes) {
  fp8rt_policy_desc desc = fp8rt::policy_desc();
  desc.packed_modules = R"({"fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"]})";
  desc.prefixes = R"({"language_model.model.": "model."})";
  desc.settings = R"({"fp8rt": {"rules": [{"prefix": "model.layers.0", "decision": "keep"}]}})";
  const fp8rt::Policy made(desc);
  EXPECT_FALSE(made.decide_module("language_model.model.layers.0.self_attn.fused_qkv_a_proj").fp8);
  EXPECT_TRUE(made.decide_module("language_model.model.layers.1.self_attn.fused_qkv_a_proj").fp8);
}

#if defined(__has_feature)
#define FP8RT_TEST_SANITIZED __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FP8RT_TEST_SANITIZED 1
#else
#define FP8RT_TEST_SANITIZED 0
#endif

// What is measured is the library as it is shipped.
#if !(FP8RT_TEST_SANITIZED)
TEST(Policy, TenThousandNamesTakeLessThanTenMilliseconds) {
  const fp8rt::Policy made = policy(R"({"precision": "fp8", "num_first_layers_in_bf16": 1,
      "num_last_layers_in_bf16": 1, "quantization_ignored_layer_kws": ["shared_experts", "layers.7."]})",
                                    R"({"num_hidden_layers": 48, "num_experts": 128})");
  std::vector<std::string> names;
  for (int index = 0; index < 10000; ++index) {
    const std::string layer = "model.layers." + std::to_string(index % 48);
    names.push_back(index % 4 == 0 ? layer + ".self_attn.o_proj.weight"
                                   : layer + ".mlp.experts." + std::to_string(index % 128) + ".up_proj.weight");
  }
  const std::int64_t shape[] = {768, 2048};
  double best = 1;
  // The best of several runs: others may use the machine.
  for (int run = 0; run < 20; ++run) {
    const auto start = std::chrono::steady_clock::now();
    std::size_t quantized = 0;
    for (const std::string &name : names) {
      fp8rt_policy_decision decision{};
      decision.struct_size = sizeof decision;
      ASSERT_OK(fp8rt_policy_decide(made.get(), name.c_str(), 2, shape, &decision, nullptr, 0, nullptr));
      quantized += decision.action;
    }
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    EXPECT_GT(quantized, names.size() * 9 / 10);
  }
  std::printf("10,000 names in %.2f ms\n", best * 1e3);
  EXPECT_LT(best, 0.010);
}
#endif

TEST(Policy, ManyThreadsMayAskOne) {
  const fp8rt::Policy made = policy(R"({"fp8rt": {"rules": [{"regex": ".*\\.layers\\.[0-9]\\..*", "decision": "keep"}]}})");
  std::vector<std::thread> threads;
  std::array<int, 4> kept{};
  for (int &count : kept) {
    threads.emplace_back([&made, &count] {
      for (int layer = 0; layer < 40; ++layer) {
        count += !made.decide("model.layers." + std::to_string(layer) + ".mlp.down_proj.weight").fp8;
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
  EXPECT_EQ(kept, (std::array<int, 4>{10, 10, 10, 10}));
}

}  // namespace
}  // namespace fp8rt_test
