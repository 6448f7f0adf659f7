//! Fused groups and experts: one decision, or an error that names the group.

use super::*;

fn with_ignored(names: &str) -> Policy {
    ignored(names, None, None)
}

fn ignored(names: &str, packed_modules: Option<&str>, prefixes: Option<&str>) -> Policy {
    let settings = format!(
        r#"{{"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            "ignored_layers": [{names}]}}"#
    );
    Policy::new(&Source { packed_modules, prefixes, ..source(Some(&settings), None) }).unwrap()
}

fn with_keywords(words: &str) -> Policy {
    policy(&format!(r#"{{"precision": "fp8", "quantization_ignored_layer_kws": [{words}]}}"#), "")
}

fn refused(policy: &Policy, parameter: &str, texts: &[&str]) {
    let message = policy.decide(parameter, None).unwrap_err().message;
    assert!(texts.iter().all(|text| message.contains(text)), "{message}");
}

fn module_is_fp8(policy: &Policy, prefix: &str) -> bool {
    policy.decide_module(prefix).unwrap().forms.is_some()
}

#[test]
fn n2_part_of_a_fused_group_is_refused_by_the_groups_name() {
    let policy = with_ignored(r#""model.layers.3.self_attn.q_proj""#);
    let texts = ["model.layers.3.self_attn.qkv_proj", "q_proj is kept", "k_proj is FP8"];
    for member in ["q_proj", "k_proj", "v_proj"] {
        refused(&policy, &format!("model.layers.3.self_attn.{member}.weight"), &texts);
    }
    let message = policy.decide_module("model.layers.3.self_attn.qkv_proj").unwrap_err().message;
    assert!(message.contains("qkv_proj runs as one"), "{message}");
    assert!(is_fp8(&policy, "model.layers.4.self_attn.q_proj.weight"));
    refused(&with_keywords(r#""v_proj""#), Q, &["qkv_proj", "v_proj is kept", "quantization_ignored_layer_kws"]);
    refused(&with_keywords(r#""up_proj""#), UP, &["gate_up_proj"]);
}

#[test]
fn the_formats_of_a_group_must_agree_too() {
    let rules = r#"{"fp8rt": {"rules": [
        {"glob": "*.q_proj", "decision": "fp8", "activation": {"scale_format": "pow2"}}]}}"#;
    refused(&policy(rules, ""), Q, &["qkv_proj", "POW2", "FP32"]);
    assert!(is_fp8(&policy(&rules.replace("q_proj", "?_proj"), ""), Q));
}

#[test]
fn a_whole_group_may_be_ignored() {
    let names = ["q_proj", "k_proj", "v_proj"].map(|last| format!("\"model.layers.3.self_attn.{last}\"")).join(",");
    for policy in [with_ignored(&names), with_ignored(r#""model.layers.3.self_attn.qkv_proj""#)] {
        assert!(!is_fp8(&policy, Q) && !module_is_fp8(&policy, "model.layers.3.self_attn.qkv_proj"));
        assert!(is_fp8(&policy, "model.layers.3.self_attn.o_proj.weight"));
    }
    // A list has whole names: vLLM compares, and does not look inside.
    let policy = with_ignored(r#""self_attn.o_proj", "model.layers.1""#);
    assert!(is_fp8(&policy, "model.layers.1.self_attn.o_proj.weight"));
}

#[test]
fn the_engines_mapping_says_what_is_fused() {
    let deepseek = r#"{"gate_up_proj": ["gate_proj", "up_proj"],
        "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"]}"#;
    let policy = ignored(r#""model.layers.0.self_attn.q_a_proj""#, Some(deepseek), None);
    refused(&policy, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", &["fused_qkv_a_proj"]);
    assert!(is_fp8(&policy, "model.layers.0.self_attn.q_proj.weight"));
    let none = ignored(r#""model.layers.3.self_attn.q_proj""#, Some("{}"), None);
    assert!(!is_fp8(&none, Q) && is_fp8(&none, &Q.replace("q_proj", "k_proj")));
    for bad in [r#"{"qkv_proj": "q_proj"}"#, r#"{"qkv_proj": []}"#, "[]"] {
        let source = Source { packed_modules: Some(bad), ..source(None, None) };
        assert!(Policy::new(&source).err().unwrap().message.contains("packed_modules"));
    }
}

#[test]
fn an_odd_mapping_that_mixes_roles_is_refused() {
    let source = Source { packed_modules: Some(r#"{"both": ["gate", "up"]}"#), ..source(None, None) };
    let policy = Policy::new(&source).unwrap();
    refused(&policy, "model.layers.0.mlp.up.weight", &["model.layers.0.mlp.both", "router"]);
}

#[test]
fn an_engines_prefix_is_translated_at_dots() {
    let map =
        r#"{"language_model.model.": "model.language_model.", "language_model": "model", "visual": "model.visual"}"#;
    let policy = ignored(r#""model.language_model.layers.2.mlp.down_proj""#, None, Some(map));
    assert!(!module_is_fp8(&policy, "language_model.model.layers.2.mlp.down_proj"));
    assert!(module_is_fp8(&policy, "language_model.model.layers.20.mlp.down_proj"));
    assert!(!is_fp8(&policy, "model.language_model.layers.2.mlp.down_proj.weight"));
    assert!(!module_is_fp8(&policy, "visual.blocks.0.attn.qkv"));
    assert!(!module_is_fp8(&policy, "language_model.lm_head"));
    // A list may have the engine's names, as vLLM's mapper takes both.
    let policy = ignored(r#""language_model.model.layers.2.mlp.down_proj""#, None, Some(map));
    assert!(!is_fp8(&policy, "model.language_model.layers.2.mlp.down_proj.weight"));
    let bad = Source { prefixes: Some(r#"{"a": 1}"#), ..source(None, None) };
    assert!(Policy::new(&bad).err().unwrap().message.contains("prefixes: a is 1"));
}

const EXPERTS: &str = "model.layers.5.mlp.experts";

#[test]
fn one_ignored_expert_keeps_all_of_its_layer() {
    let policy = with_ignored(r#""model.layers.5.mlp.experts.7.up_proj""#);
    assert!(!is_fp8(&policy, &format!("{EXPERTS}.0.down_proj.weight")) && !module_is_fp8(&policy, EXPERTS));
    assert!(!module_is_fp8(&policy, &format!("{EXPERTS}.routed_experts")));
    assert!(!is_fp8(&policy, &format!("{EXPERTS}.gate_up_proj")));
    for other in ["model.layers.50.mlp.experts", "model.layers.5.mlp.shared_experts"] {
        assert!(is_fp8(&policy, &format!("{other}.0.down_proj.weight")), "{other}");
    }
    assert!(!module_is_fp8(&with_ignored(&format!("\"{EXPERTS}\"")), EXPERTS));
}

#[test]
fn a_keyword_in_any_experts_name_keeps_all_of_the_layer() {
    for word in ["experts.7.", "layers.5.mlp", "5.mlp.experts.12.up", ".experts.gate_up_proj", "down_proj"] {
        let policy = with_keywords(&format!("\"{word}\""));
        assert!(!is_fp8(&policy, &format!("{EXPERTS}.0.w1.weight")), "{word}");
        assert!(!module_is_fp8(&policy, EXPERTS), "{word}");
    }
    let policy = with_keywords(r#""layers.4.mlp", "shared_experts", "experts.x""#);
    assert!(is_fp8(&policy, &format!("{EXPERTS}.0.w1.weight")) && module_is_fp8(&policy, EXPERTS));
    assert!(!is_fp8(&policy, "model.layers.5.mlp.shared_experts.down_proj.weight"));
}

#[test]
fn rules_may_not_part_experts() {
    let with =
        |selector: &str| policy(&format!(r#"{{"fp8rt": {{"rules": [{{{selector}, "decision": "keep"}}]}}}}"#), "");
    // One projection of all, one expert, all projections of some experts.
    for selector in [r#""glob": "*.experts.*.up_proj""#, r#""prefix": "model.layers.5.mlp.experts.1""#] {
        let policy = with(selector);
        let all = ["0", "1", "2"].map(|expert| policy.decide(&format!("{EXPERTS}.{expert}.up_proj.weight"), None));
        let message = all.into_iter().find_map(|decided| decided.err()).unwrap().message;
        assert!(message.contains("model.layers.5.mlp.experts runs as one"), "{message}");
        assert!(policy.decide_module(EXPERTS).is_err());
    }
    refused(&with(r#""glob": "*.experts.down_proj""#), &format!("{EXPERTS}.gate_up_proj"), &["experts runs as one"]);
    for selector in [r#""name": "model.layers.5.mlp.experts""#, r#""glob": "*.layers.5.mlp.experts.*""#] {
        let policy = with(selector);
        assert!(!is_fp8(&policy, &format!("{EXPERTS}.3.w2.weight")) && !module_is_fp8(&policy, EXPERTS), "{selector}");
        assert!(!is_fp8(&policy, &format!("{EXPERTS}.down_proj")), "{selector}");
    }
}

#[test]
fn each_expert_of_the_model_is_asked_for_a_module() {
    let settings = r#"{"fp8rt": {"rules": [{"prefix": "model.layers.5.mlp.experts.127", "decision": "keep"}]}}"#;
    assert!(policy(settings, r#"{"num_experts": 128}"#).decide_module(EXPERTS).is_err());
    assert!(policy(settings, r#"{"num_experts": 127}"#).decide_module(EXPERTS).is_ok());
}
