// Policies and shards: settings that are nearly right, names that are nearly names, any numbers.
#include <cstring>
#include <iterator>
#include <string>

#include "calls.hpp"

namespace fuzz {

namespace {

const char *const kSettings[] = {
    R"({"precision": "fp8", "num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 1})",
    R"({"precision": "fp8", "quantization_ignored_layer_kws": ["experts.1", "o_proj", "0.up"], "use_deep_gemm": false})",
    R"({"vllm_cfg": {"precision": "fp8", "use_weight_pow2_scale": true}, "fp8rt": {"default": "keep"}})",
    R"({"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0", "ignore": ["re:.*1.*", "a.b"]})",
    R"({"quant_method": "fp8", "weight_block_size": [128, 128], "ignored_layers": ["model.layers.1.mlp.experts.0.w1"]})",
    R"({"actor_rollout_ref": {"rollout": {"quantization": "fp8"}}})",
    R"({"fp8rt": {"rules": [{"glob": "*.1.?lp.*", "decision": "keep"}, {"prefix": "model", "decision": "fp8"}]}})",
    R"({"fp8rt": {"rules": [{"regex": "(a|model)(\\.[a-z0-9_]+)*", "decision": "fp8", "weight": {"recipe": "te"}}]}})",
};

const char *const kConfigs[] = {
    R"({"num_hidden_layers": 4, "num_experts": 3, "model_type": "gpt2"})",
    R"({"text_config": {"num_hidden_layers": 2}, "vision_config": {"num_hidden_layers": 1}})",
};

const char *const kMappings[] = {
    R"({"qkv_proj": ["q_proj", "k_proj", "v_proj"], "both": ["gate", "up_proj"]})",
    R"({"language_model.model.": "model.", "": "model", "a": ""})",
};

const char *const kNames[] = {
    "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.experts.0.w1.weight",
    "model.layers.3.mlp.experts.gate_up_proj", "language_model.model.layers.1.mlp.both",
    "visual.blocks.0.attn.qkv.weight",        "transformer.h.0.attn.c_attn.weight",
    "model.layers.1.mlp.experts",             "lm_head.weight",
};

// One of the texts, with some of its bytes changed now and then; in memory that ends with its zero.
template <std::size_t Count>
std::string text(Reader &reader, const char *const (&texts)[Count]) {
  std::string made = texts[reader.byte() % Count];
  for (int changes = reader.chance(3) ? 1 + reader.byte() % 4 : 0; changes > 0; changes--) {
    static const char bytes[] = "{}[]\":,.*?()|\\019amx_ \xc3\xa4\xff";
    const std::size_t at = reader.byte() % (made.size() + 1);
    const char byte = bytes[reader.byte() % (sizeof bytes - 1)];
    if (at == made.size()) {
      made.push_back(byte);
    } else if (reader.chance(3)) {
      made.erase(at, 1 + reader.byte() % 8U);
    } else {
      made[at] = byte;
    }
  }
  return made;
}

struct Output {
  char *text;
  uint64_t capacity;
  uint64_t *length;
};

Output output(Arguments &arguments) {
  Reader &reader = arguments.reader();
  arguments.arena().reset(reader.word());
  const uint64_t capacity = reader.byte();
  auto *text = static_cast<char *>(arguments.raw_output(capacity, 1));
  auto *length = static_cast<uint64_t *>(arguments.raw_output(sizeof(uint64_t), alignof(uint64_t)));
  return {text, capacity, length};
}

void ask_policy(Arguments &arguments, const fp8rt_policy *policy) {
  Reader &reader = arguments.reader();
  const std::string name = text(reader, kNames);
  const int64_t shape[] = {reader.extent(), reader.hostile(), 3};
  {
    const Output to = output(arguments);
    fp8rt_policy_decision *decision = arguments.descriptor(fp8rt_policy_decision{});
    const uint32_t rank = reader.byte() % 4U;
    run(arguments, [&] {
      return fp8rt_policy_decide(policy, name.c_str(), rank, shape, decision, to.text, to.capacity, to.length);
    });
  }
  {
    const Output to = output(arguments);
    fp8rt_policy_decision *decision = arguments.descriptor(fp8rt_policy_decision{});
    run(arguments, [&] {
      return fp8rt_policy_decide_module(policy, name.c_str(), decision, to.text, to.capacity, to.length);
    });
  }
  {
    const Output to = output(arguments);
    run(arguments, [&] { return fp8rt_policy_text(policy, to.text, to.capacity, to.length); });
  }
  {
    const Output to = output(arguments);
    run(arguments, [&] { return fp8rt_policy_warning(policy, reader.byte() % 3U, to.text, to.capacity, to.length); });
  }
  {
    const Output to = output(arguments);
    auto *count = static_cast<uint32_t *>(arguments.raw_output(sizeof(uint32_t), alignof(uint32_t)));
    const std::string other = text(reader, kSettings);
    run(arguments, [&] {
      return fp8rt_policy_difference(policy, other.c_str(), count, to.text, to.capacity, to.length);
    });
  }
  fp8rt_policy_info *info = arguments.descriptor(fp8rt_policy_info{});
  run(arguments, [&] { return fp8rt_policy_query(policy, info); });
  auto *place = arguments.raw_output(sizeof(fp8rt_fingerprint), alignof(fp8rt_fingerprint));
  run(arguments, [&] { return fp8rt_policy_fingerprint(policy, static_cast<fp8rt_fingerprint *>(place)); });
}

}  // namespace

void call_policy(Arguments &arguments, fp8rt_context *) {
  Reader &reader = arguments.reader();
  const std::string settings = text(reader, kSettings), config = text(reader, kConfigs);
  const std::string packed = text(reader, kMappings), prefixes = text(reader, kMappings);
  fp8rt_policy_desc desc = {};
  desc.kind = reader.chance(4) ? reader.byte() : 0;
  desc.settings = reader.chance(16) ? nullptr : settings.c_str();
  desc.config = reader.chance(4) ? nullptr : config.c_str();
  desc.packed_modules = reader.chance(2) ? nullptr : packed.c_str();
  desc.prefixes = reader.chance(2) ? nullptr : prefixes.c_str();
  const fp8rt_policy_desc *given = arguments.descriptor(desc);
  void *place = arguments.raw_output(sizeof(fp8rt_policy *), alignof(fp8rt_policy *));
  const fp8rt_status status =
      run(arguments, [&] { return fp8rt_policy_create(given, static_cast<fp8rt_policy **>(place)); });
  if (status != FP8RT_STATUS_OK) {
    return;
  }
  fp8rt_policy *policy = nullptr;
  std::memcpy(&policy, place, sizeof policy);
  ask_policy(arguments, policy);
  check_status(fp8rt_policy_destroy(policy));
}

void call_shard(Arguments &arguments, fp8rt_context *) {
  Reader &reader = arguments.reader();
  const auto number = [&reader] { return reader.chance(8) ? reader.hostile() : reader.extent(); };
  const int64_t rows[] = {number(), number(), number()}, heads[] = {number(), number(), number()};
  fp8rt_shard_desc desc = {};
  desc.split = reader.byte() % 4U;
  desc.ranks = reader.chance(16) ? reader.word() : reader.byte() % 5U;
  desc.rank = reader.byte() % 4U;
  desc.num_parts = reader.byte() % 4U;
  desc.part_rows = reader.chance(32) ? nullptr : rows;
  desc.part_heads = reader.chance(2) ? nullptr : heads;
  desc.k = number();
  const fp8rt_shard_desc *given = arguments.descriptor(desc);
  fp8rt_shard_info *info = arguments.descriptor(fp8rt_shard_info{});
  auto *parts = static_cast<fp8rt_shard_part *>(
      arguments.raw_output(desc.num_parts * sizeof(fp8rt_shard_part), alignof(fp8rt_shard_part)));
  auto *part_rows = static_cast<int64_t *>(arguments.raw_output(desc.num_parts * sizeof(int64_t), alignof(int64_t)));
  run(arguments, [&] { return fp8rt_shard_layout(given, info, parts, part_rows); });
}

}  // namespace fuzz
