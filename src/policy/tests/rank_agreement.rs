//! The canonical text, its fingerprint, and differences.

use super::*;

const CONFIG: &str = r#"{"num_hidden_layers": 32, "model_type": "llama"}"#;

#[test]
fn the_text_does_not_depend_on_who_wrote_the_settings_or_in_which_order() {
    let texts: Vec<String> = [
        r#"{"precision": "fp8", "num_first_layers_in_bf16": 1, "quantization_ignored_layer_kws": ["b", "a", "b"]}"#,
        r#"{"quantization_ignored_layer_kws": ["a", "b"], "num_first_layers_in_bf16": 1, "precision": "fp8",
            "num_last_layers_in_bf16": 0, "use_deep_gemm": true, "tensor_parallel_size": 8, "kv_cache_dtype": "auto"}"#,
    ]
    .map(|settings| policy(settings, CONFIG).text().to_owned())
    .to_vec();
    assert_eq!(texts[0], texts[1]);
    let own = policy(r#"{"fp8rt": {"weight": {"recipe": "nemo_rl"}}}"#, CONFIG);
    assert_eq!(own.text(), policy(r#"{"quantization": "fp8"}"#, CONFIG).text());
}

#[test]
fn the_text_and_the_fingerprint_are_fixed() {
    let policy = policy(r#"{"precision": "fp8", "num_last_layers_in_bf16": 2, "use_deep_gemm": false}"#, CONFIG);
    assert_eq!(
        policy.text(),
        concat!(
            r#"{"activation":{"recipe":"VLLM","scale_format":"FP32"},"default":"fp8","expert_slabs":"[out, in]","#,
            r#""ignored":[],"keywords":[],"kv_cache_dtype":"auto","linears":"[out, in]","num_first_layers_in_bf16":0,"#,
            r#""num_hidden_layers":32,"num_last_layers_in_bf16":2,"packed_modules":{"gate_up_proj":["gate_proj","#,
            r#""up_proj"],"qkv_proj":["q_proj","k_proj","v_proj"]},"prefixes":{},"quantize":true,"rules":[],"#,
            r#""use_deep_gemm":false,"version":1,"weight":{"recipe":"NEMO_RL","scale_format":"FP32"}}"#
        )
    );
    // From Python's hashlib: the hash of this text begins with 4a2bd4f146b2614b e455ded87fa2a368.
    assert_eq!(policy.fingerprint(), [0x4B61B246F1D42B4A, 0x68A3A27FD8DE55E4]);
}

#[test]
fn n8_a_difference_names_the_setting_and_both_values() {
    let one = policy(r#"{"precision": "fp8", "num_first_layers_in_bf16": 1}"#, CONFIG);
    let other =
        policy(r#"{"precision": "fp8", "num_first_layers_in_bf16": 2, "pow2_weight_scaling_factors": true}"#, CONFIG);
    assert!(one.difference(one.text()).unwrap().is_empty());
    assert_eq!(
        one.difference(other.text()).unwrap(),
        ["num_first_layers_in_bf16 is 1 here, 2 there", "weight.scale_format is \"FP32\" here, \"POW2\" there"]
    );
    assert_ne!(one.fingerprint(), other.fingerprint());
    let keywords = policy(r#"{"precision": "fp8", "quantization_ignored_layer_kws": ["o_proj"]}"#, CONFIG);
    let lines = keywords.difference(one.text()).unwrap();
    assert!(lines.contains(&"keywords has [\"o_proj\"] only here, [] only there".to_owned()), "{lines:?}");
    assert!(one.difference("{}").unwrap().iter().any(|line| line == "version is 1 here, null there"));
    assert!(one.difference("text").unwrap_err().message.contains("other is not JSON"));
}

#[test]
fn rules_in_another_order_are_another_policy() {
    let rule = |name: &str, decision: &str| format!(r#"{{"name": "{name}", "decision": "{decision}"}}"#);
    let with = |rules: [String; 2]| policy(&format!(r#"{{"fp8rt": {{"rules": [{}]}}}}"#, rules.join(",")), CONFIG);
    let one = with([rule("a", "keep"), rule("b", "fp8")]);
    let other = with([rule("b", "fp8"), rule("a", "keep")]);
    let lines = one.difference(other.text()).unwrap();
    assert!(lines.len() == 1 && lines[0].starts_with("rules has another order"), "{lines:?}");
}
