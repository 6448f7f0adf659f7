// Asks a policy about a few parameters. The part between the marks is in the README.
// [readme]
#include <cstdio>
#include <fp8rt.hpp>

int main() try {
    fp8rt_policy_desc desc = fp8rt::policy_desc();
    desc.settings = R"({"precision": "fp8", "num_first_layers_in_bf16": 1, "max_model_len": 4096,
                        "fp8rt": {"rules": [{"glob": "*.o_proj", "decision": "keep"}]}})";
    desc.config = R"({"model_type": "qwen3_moe", "num_hidden_layers": 48, "num_experts": 128})";
    const fp8rt::Policy policy(desc);

    for (const char *name : {"model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight",
                             "model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.gate.weight",
                             "model.layers.1.mlp.experts.7.up_proj.weight"}) {
        const auto decision = policy.decide(name);
        std::printf("%-44s %s: %s\n", name, decision.fp8 ? "FP8 " : "kept", decision.reason.c_str());
    }

    // Another rank's text: what differs, by name.
    desc.settings = R"({"precision": "fp8", "num_first_layers_in_bf16": 2})";
    std::printf("%s\n", policy.difference(fp8rt::Policy(desc).text()).c_str());
    return 0;
} catch (const fp8rt::Error &failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
}
// [/readme]
