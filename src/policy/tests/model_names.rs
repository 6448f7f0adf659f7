//! Layers, towers, routers: what a name says, with a dot being a dot.

use super::*;

fn nemo_rl(more: &str, config: &str) -> Policy {
    policy(&format!(r#"{{"precision": "fp8", {more}}}"#), config)
}

#[test]
fn n3_the_first_layer_is_layer_0_and_no_other() {
    let policy = nemo_rl(r#""num_first_layers_in_bf16": 1"#, r#"{"num_hidden_layers": 40}"#);
    let reason = kept(&policy, "model.layers.0.mlp.up_proj.weight");
    assert_eq!(reason, "layer 0 is one of the first 1 (num_first_layers_in_bf16)");
    for layer in 1..40 {
        assert!(is_fp8(&policy, &format!("model.layers.{layer}.mlp.up_proj.weight")), "{layer}");
    }
    let policy =
        nemo_rl(r#""num_first_layers_in_bf16": 2, "num_last_layers_in_bf16": 1"#, r#"{"num_hidden_layers": 40}"#);
    let kept: Vec<u32> =
        (0..40).filter(|layer| !is_fp8(&policy, &format!("model.layers.{layer}.mlp.up_proj.weight"))).collect();
    assert_eq!(kept, [0, 1, 39]);
    assert!(super::kept(&policy, "model.layers.39.mlp.up_proj.weight").contains("layer 39 of 40 is one of the last 1"));
}

#[test]
fn layers_have_several_names() {
    let policy = nemo_rl(r#""num_first_layers_in_bf16": 1"#, r#"{"model_type": "x", "n_layer": 12}"#);
    for name in ["transformer.h.0.mlp.up.weight", "encoder.layer.0.mlp.up.weight", "backbone.layers.0.mixer.up.weight"]
    {
        assert!(kept(&policy, name).contains("layer 0"), "{name}");
        assert!(is_fp8(&policy, &name.replace(".0.", ".10.")));
    }
    // The number of an expert is not that of a layer.
    assert!(is_fp8(&policy, "model.layers.5.mlp.experts.0.up_proj.weight"));
}

#[test]
fn layers_after_the_decoders_are_outside_the_rule() {
    let config = r#"{"num_hidden_layers": 61}"#;
    let policy = nemo_rl(r#""num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 1"#, config);
    assert!(!is_fp8(&policy, "model.layers.60.mlp.experts.3.up_proj.weight"));
    assert!(is_fp8(&policy, "model.layers.61.mlp.experts.3.up_proj.weight"));
    assert!(is_fp8(&policy, "mtp.layers.0.mlp.down_proj.weight"));
}

#[test]
fn a_vision_towers_layer_is_not_the_decoders() {
    let config = r#"{"num_hidden_layers": 99, "text_config": {"num_hidden_layers": 28}}"#;
    let policy = nemo_rl(r#""num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 1"#, config);
    assert_eq!(policy.layers(), Some(28));
    assert!(kept(&policy, "visual.blocks.0.mlp.fc1.weight").contains("tower"));
    assert!(kept(&policy, "vision_tower.vision_model.encoder.layers.27.mlp.fc1.weight").contains("tower"));
    assert!(kept(&policy, "multi_modal_projector.linear_1.weight").contains("tower"));
    // Where a rule quantizes the tower, its layers are no first or last ones.
    let rules = r#""num_first_layers_in_bf16": 1, "fp8rt": {"rules": [{"prefix": "visual", "decision": "fp8"}]}"#;
    assert!(is_fp8(&nemo_rl(rules, config), "visual.blocks.0.mlp.fc1.weight"));
    let inside = r#"{"thinker_config": {"text_config": {"num_hidden_layers": 36}, "vision_config": {}}}"#;
    assert_eq!(nemo_rl(r#""use_deep_gemm": true"#, inside).layers(), Some(36));
}

#[test]
fn n1_a_router_is_not_a_gate_projection() {
    let policy = nemo_rl(r#""use_deep_gemm": true"#, "");
    assert_eq!(kept(&policy, "model.layers.3.mlp.gate.weight"), "a router of experts");
    assert!(kept(&policy, "model.layers.3.block_sparse_moe.gate.weight").contains("router"));
    assert!(kept(&policy, "model.layers.3.mlp.shared_expert_gate.weight").contains("router"));
    assert!(is_fp8(&policy, "model.layers.3.mlp.gate_proj.weight"));
    assert!(is_fp8(&policy, "model.layers.3.mlp.gate_up_proj.weight"));
}

#[test]
fn facts_stand_above_rules() {
    let policy = policy(r#"{"fp8rt": {"rules": [{"glob": "*", "decision": "fp8"}]}}"#, "");
    let with_shape = |name: &str, shape: &[i64]| {
        let decision = policy.decide(name, Some(shape)).unwrap();
        if decision.forms.is_some() { String::new() } else { policy.explain(decision.reason) }
    };
    assert_eq!(with_shape("model.norm.weight", &[4096]), "a norm");
    assert_eq!(with_shape("model.layers.0.self_attn.q_proj.bias", &[4096]), "a bias");
    assert_eq!(with_shape("model.embed_tokens.weight", &[128256, 4096]), "an embedding");
    assert_eq!(with_shape("model.layers.0.linear_attn.A_log", &[32]), "not the weight of a linear layer");
    assert!(with_shape("model.layers.0.linear_attn.conv1d.weight", &[8192, 1, 4]).starts_with("rank 3"));
    assert!(with_shape("visual.patch_conv.weight", &[1280, 3, 2, 14, 14]).starts_with("rank 5"));
    assert!(with_shape("model.layers.0.mlp.experts.gate_up_proj", &[256, 1024]).starts_with("rank 2"));
    assert_eq!(with_shape("visual.blocks.0.attn.qkv.weight", &[3840, 1280]), "");
    assert_eq!(with_shape("lm_head.weight", &[128256, 4096]), "");
    assert_eq!(with_shape("model.layers.0.mlp.up_proj.weight", &[0, 0]), "");
    assert!(policy.decide("a.weight", Some(&[4, -4])).unwrap_err().message.contains("-4"));
    assert!(policy.decide("", None).is_err());
    for odd in ["weight", ".", "..weight", "a..b.weight", "experts", "layers.99999999999.weight", "ä.ö.weight"] {
        assert!(policy.decide(odd, None).is_ok(), "{odd}");
    }
}

#[test]
fn scales_of_a_quantized_checkpoint_are_kept() {
    let policy = nemo_rl(r#""use_deep_gemm": true"#, "");
    assert!(kept(&policy, "model.layers.0.self_attn.q_proj.weight_scale_inv").contains("not the weight"));
    assert!(kept(&policy, "model.layers.0.mlp.gate.e_score_correction_bias").contains("bias"));
}
