//! Whose settings, which keys, which errors.

use crate::recipe::{Recipe, ScaleFormat};

use super::*;

/// Every key that NeMo-RL's type of a `vllm_cfg` has: what is read and what is not.
const VLLM_CFG: &str = r#"{
    "async_engine": false, "precision": "fp8", "kv_cache_dtype": "auto", "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1, "expert_parallel_size": 1, "gpu_memory_utilization": 0.6, "max_model_len": 512,
    "enforce_eager": false, "use_deep_gemm": true, "num_last_layers_in_bf16": 0, "num_first_layers_in_bf16": 0,
    "enable_vllm_metrics_logger": true, "vllm_metrics_logger_interval": 0.5, "expose_http_server": null,
    "skip_tokenizer_init": false, "load_format": "dummy", "env_vars": {"A": "b"}, "video": null, "use_tqdm": false,
    "http_server_serving_chat_kwargs": {}, "quantization_ignored_layer_kws": [], "is_mx": false,
    "logprobs_mode": "raw_logprobs", "fp32_lm_head": "tf32", "cap_max_tokens_to_context": true,
    "quantization_ignore_patterns": [], "enable_return_routed_experts": false, "http_refit_api_key_env_var": null,
    "reset_encoder_cache_after_weight_update": false, "http_refit_server_port": null, "zmq_refit_server_port": null,
    "tool_parser_plugin": "a.py", "refit_with_reload_api": false, "reasoning_parser_plugin": "b.py",
    "refit_prequantize": false
}"#;

#[test]
fn nemo_rls_whole_vllm_cfg_is_taken() {
    for settings in [VLLM_CFG.to_owned(), format!(r#"{{"backend": "vllm", "vllm_cfg": {VLLM_CFG}}}"#)] {
        let policy = policy(&settings, "");
        assert!(policy.warnings().is_empty() && policy.quantizes() && policy.allows_deep_gemm());
        let forms = decide(&policy, Q).forms.unwrap();
        assert_eq!((forms.weight.recipe, forms.weight.format), (Recipe::NemoRl, ScaleFormat::Fp32));
        assert_eq!((forms.activation.recipe, forms.activation.format), (Recipe::Vllm, ScaleFormat::Fp32));
    }
}

#[test]
fn without_fp8_precision_nothing_is_quantized() {
    let policy = policy(r#"{"precision": "bfloat16"}"#, "");
    assert_eq!(kept(&policy, Q), "precision is \"bfloat16\", not \"fp8\"");
    assert!(!policy.quantizes());
    assert!(kept(&super::policy(r#"{"kv_cache_dtype": "auto"}"#, ""), Q).contains("not set"));
}

#[test]
fn n7_powers_of_two_of_each_operand() {
    let policy = policy(r#"{"precision": "fp8", "pow2_activation_scaling_factors": true}"#, "");
    let forms = policy.forms();
    assert_eq!((forms.weight.format, forms.activation.format), (ScaleFormat::Fp32, ScaleFormat::Pow2));
}

#[test]
fn the_older_names_hold_and_warn() {
    let settings = r#"{"precision": "fp8", "use_weight_pow2_scale": true, "use_activation_pow2_scale": true}"#;
    let policy = policy(settings, "");
    assert_eq!(policy.forms().weight.format, ScaleFormat::Pow2);
    assert_eq!(policy.forms().activation.format, ScaleFormat::Pow2);
    let warnings = policy.warnings();
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("use_weight_pow2_scale") && warnings[0].contains("pow2_weight_scaling_factors"));
    let both = r#"{"precision": "fp8", "use_weight_pow2_scale": true, "pow2_weight_scaling_factors": false}"#;
    refuses(both, "", &["pow2_weight_scaling_factors", "use_weight_pow2_scale", "true", "false"]);
}

#[test]
fn a_typing_error_is_refused_with_the_key_that_is_meant() {
    let with = |key: &str| format!(r#"{{"precision": "fp8", "{key}": 1}}"#);
    refuses(&with("num_first_layer_in_bf16"), "", &["num_first_layer_in_bf16", "num_first_layers_in_bf16 meant"]);
    refuses(&with("use_deepgemm"), "", &["use_deep_gemm meant"]);
    refuses(&with("quantization_ignore_layers_kws"), "", &["quantization_ignored_layer_kws meant"]);
    refuses(&with("pow2_weights_scaling_factor"), "", &["pow2_weight_scaling_factors meant"]);
    refuses(&with("kv_cache_type"), "", &["kv_cache_dtype meant"]);
    assert!(made(&with("use_weight_scale_of_three_edits"), "").is_ok());
}

#[test]
fn values_of_another_type_are_refused_with_key_and_value() {
    refuses(r#"{"precision": "fp8", "num_first_layers_in_bf16": -1}"#, "", &["num_first_layers_in_bf16", "-1"]);
    refuses(r#"{"precision": "fp8", "num_first_layers_in_bf16": "two"}"#, "", &["num_first_layers_in_bf16", "two"]);
    refuses(r#"{"precision": "fp8", "use_deep_gemm": "false"}"#, "", &["use_deep_gemm", "false"]);
    refuses(r#"{"precision": 8}"#, "", &["precision", "8"]);
    refuses(r#"{"precision": "fp8", "quantization_ignored_layer_kws": ["a", 3]}"#, "", &["kws[1]", "3"]);
    refuses(r#"{"precision": "fp8", "quantization_ignored_layer_kws": [""]}"#, "", &["kws[0]", "empty"]);
    refuses("[1]", "", &["[1]", "object"]);
    refuses("{\"precision\": ", "", &["not JSON", "line 1"]);
    refuses(r#"{"temperature": 1}"#, "", &["kind"]);
    refuses("{\"precision\": \"fp8\"}", "7", &["config", "7"]);
}

#[test]
fn mxfp8_is_refused() {
    refuses(r#"{"precision": "fp8", "is_mx": true}"#, "", &["is_mx", "MXFP8"]);
}

#[test]
fn patterns_for_mxfp8_are_not_dropped_in_silence() {
    let policy = policy(r#"{"precision": "fp8", "quantization_ignore_patterns": ["*.o_proj"]}"#, "");
    assert!(policy.warnings().len() == 1 && policy.warnings()[0].contains("quantization_ignore_patterns"));
}

#[test]
fn n6_deep_gemm_switched_off_is_off() {
    assert!(!policy(r#"{"precision": "fp8", "use_deep_gemm": false}"#, "").allows_deep_gemm());
    assert!(policy(r#"{"precision": "fp8"}"#, "").allows_deep_gemm());
}

const DEEPSEEK: &str = r#"{"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [128, 128]}"#;

#[test]
fn hugging_faces_quantization_config_is_read() {
    for settings in [DEEPSEEK.to_owned(), format!(r#"{{"model_type": "x", "quantization_config": {DEEPSEEK}}}"#)] {
        assert_eq!(policy(&settings, "").forms(), Default::default());
    }
    let ue8m0 = DEEPSEEK.replace("\"fmt\"", "\"scale_fmt\": \"ue8m0\", \"fmt\"");
    let forms = policy(&ue8m0, "").forms();
    assert_eq!((forms.weight.format, forms.activation.format), (ScaleFormat::Pow2, ScaleFormat::Pow2));
}

#[test]
fn the_models_own_quantization_config_is_found() {
    for config in [
        format!(r#"{{"quantization_config": {DEEPSEEK}}}"#),
        format!(r#"{{"text_config": {{"quantization_config": {DEEPSEEK}}}}}"#),
    ] {
        let source = Source { kind: Kind::HuggingFace, ..source(None, Some(&config)) };
        assert!(Policy::new(&source).unwrap().quantizes());
    }
    let none = Source { kind: Kind::HuggingFace, ..source(None, Some("{}")) };
    assert!(Policy::new(&none).err().unwrap().message.contains("quantization_config"));
}

#[test]
fn other_quantizations_are_refused_with_both_values() {
    let with = |from: &str, to: &str| DEEPSEEK.replace(from, to);
    refuses(&with("[128, 128]", "[64, 128]"), "", &["[64,128]", "[128, 128]"]);
    refuses(&with("[128, 128]", "[128]"), "", &["[128]", "[128, 128]"]);
    refuses(&with("[128, 128]", "null"), "", &["weight_block_size", "[128, 128]"]);
    refuses(&with("dynamic", "static"), "", &["static", "dynamic"]);
    refuses(&with("\"fp8\"", "\"awq\""), "", &["awq", "fp8"]);
    refuses(&with("e4m3", "e5m2"), "", &["e5m2", "e4m3"]);
    refuses(&with("\"fmt\"", "\"scale_fmt\": \"log\", \"fmt\""), "", &["log", "ue8m0"]);
    refuses(&with("\"fmt\"", "\"ignored_layer\": [], \"fmt\""), "", &["ignored_layer", "ignored_layers meant"]);
}

#[test]
fn verls_shorthand() {
    for settings in [
        r#"{"quantization": "fp8"}"#,
        r#"{"rollout": {"name": "vllm", "quantization": "fp8"}}"#,
        r#"{"actor_rollout_ref": {"actor": {}, "rollout": {"quantization": "fp8"}}}"#,
        r#"{"rollout.quantization": "fp8"}"#,
    ] {
        assert!(is_fp8(&policy(settings, ""), Q), "{settings}");
    }
    assert!(kept(&policy(r#"{"rollout": {"quantization": null}}"#, ""), Q).contains("not set"));
    refuses(r#"{"rollout": {"quantization": "torchao"}}"#, "", &["torchao", "fp8"]);
}

#[test]
fn own_rules_by_name_prefix_glob_and_regex() {
    let policy = policy(
        r#"{"fp8rt": {"rules": [
            {"name": "model.layers.0.self_attn.o_proj.weight", "decision": "keep"},
            {"prefix": "model.layers.1", "decision": "keep"},
            {"glob": "*.layers.2?.mlp.*", "decision": "keep"},
            {"regex": "model\\.layers\\.(3|4)\\.self_attn\\..*_proj", "decision": "keep"},
            {"name": "lm_head", "decision": "fp8", "weight": {"scale_format": "pow2"}, "activation": {"recipe": "te"}}
        ]}}"#,
        "",
    );
    let kept = |name: &str| !is_fp8(&policy, name);
    assert!(kept("model.layers.0.self_attn.o_proj.weight") && !kept("model.layers.1x.self_attn.o_proj.weight"));
    assert!(kept("model.layers.1.mlp.down_proj.weight") && !kept("model.layers.10.mlp.down_proj.weight"));
    assert!(kept("model.layers.23.mlp.down_proj.weight") && !kept("model.layers.2.mlp.down_proj.weight"));
    assert!(kept("model.layers.4.self_attn.q_proj.weight") && !kept("model.layers.4.mlp.up_proj.weight"));
    // The whole name: not a part of it.
    assert!(!kept("base.model.layers.3.self_attn.q_proj.weight"));
    let head = decide(&policy, "lm_head.weight").forms.unwrap();
    assert_eq!((head.weight.format, head.activation.recipe), (ScaleFormat::Pow2, Recipe::Te));
    assert_eq!(super::kept(&policy, "model.layers.1.mlp.down_proj.weight"), "rules[1] (prefix \"model.layers.1\")");
}

#[test]
fn the_first_rule_that_fits_decides() {
    let policy = policy(
        r#"{"quant_method": "fp8rt", "default": "keep", "rules": [
            {"glob": "*.down_proj", "decision": "fp8"},
            {"prefix": ["model.layers.7", "model.layers.8"], "decision": "keep"},
            {"prefix": "model", "decision": "fp8"}]}"#,
        "",
    );
    assert!(is_fp8(&policy, "model.layers.7.mlp.down_proj.weight"));
    assert!(!is_fp8(&policy, "model.layers.8.self_attn.o_proj.weight"));
    assert!(is_fp8(&policy, "model.layers.9.self_attn.o_proj.weight"));
    assert_eq!(kept(&policy, "other.o_proj.weight"), "the default is keep");
}

#[test]
fn an_unknown_key_of_our_own_is_an_error() {
    refuses(r#"{"fp8rt": {"rule": []}}"#, "", &["rule is", "rules"]);
    refuses(r#"{"fp8rt": {"rules": [{"names": "a", "decision": "keep"}]}}"#, "", &["rules[0]", "names"]);
    refuses(r#"{"fp8rt": {"weight": {"format": "pow2"}}}"#, "", &["weight", "format", "scale_format"]);
    refuses(r#"{"fp8rt": {"weight": {"recipe": "exact"}}}"#, "", &["exact", "NEMO_RL"]);
    refuses(r#"{"fp8rt": {"rules": [{"decision": "keep"}]}}"#, "", &["rules[0]", "0 of name"]);
    refuses(r#"{"fp8rt": {"rules": [{"name": "a", "glob": "b", "decision": "keep"}]}}"#, "", &["2 of name"]);
    refuses(r#"{"fp8rt": {"rules": [{"name": "a"}]}}"#, "", &["decision"]);
    refuses(r#"{"fp8rt": {"rules": [{"name": "", "decision": "keep"}]}}"#, "", &["empty"]);
    refuses(r#"{"fp8rt": {"rules": [{"regex": "a(b", "decision": "keep"}]}}"#, "", &["a(b", "unclosed"]);
    refuses(r#"{"fp8rt": {"rules": [{"name": "a", "decision": "keep", "weight": {}}]}}"#, "", &["rules[0]", "keeps"]);
    refuses(r#"{"fp8rt": {}, "rules": []}"#, "", &["rules"]);
}

#[test]
fn n5_own_rules_beside_other_settings_are_merged() {
    let nemo_rl = r#"{"precision": "fp8", "num_first_layers_in_bf16": 1, "quantization_ignored_layer_kws": ["o_proj"],
        "fp8rt": {"activation": {"recipe": "te"}, "rules": [{"glob": "*.3.self_attn.o_proj", "decision": "fp8"}]}}"#;
    let policy = policy(nemo_rl, "");
    assert!(!is_fp8(&policy, "model.layers.0.mlp.down_proj.weight"));
    assert!(!is_fp8(&policy, "model.layers.2.self_attn.o_proj.weight"));
    assert!(is_fp8(&policy, "model.layers.3.self_attn.o_proj.weight"));
    assert_eq!(policy.forms().activation.recipe, Recipe::Te);
    let face = DEEPSEEK.replace("\"fmt\"", r#""ignored_layers": ["a.b"], "fp8rt": {"default": "keep"}, "fmt""#);
    let policy = super::policy(&face, "");
    assert!(kept(&policy, "a.b.weight").contains("list") && kept(&policy, Q).contains("default"));
    let twice = r#"{"precision": "fp8", "num_first_layers_in_bf16": 1, "fp8rt": {"num_first_layers_in_bf16": 2}}"#;
    refuses(twice, "", &["num_first_layers_in_bf16", "1", "2"]);
}

#[test]
fn vllm_takes_the_first_list_and_we_say_so() {
    let lists = r#""ignored_layers": ["a"], "modules_to_not_convert": ["b"], "ignore": ["a"], "fmt""#;
    let policy = policy(&DEEPSEEK.replace("\"fmt\"", lists), "");
    assert!(!is_fp8(&policy, "a.weight") && is_fp8(&policy, "b.weight"));
    assert_eq!(policy.warnings().len(), 1);
    assert!(policy.warnings()[0].contains("modules_to_not_convert"));
    let ignore = r#""ignored_layers": [], "ignore": ["lm_head", "re:.*shared_head.*"], "fmt""#;
    let policy = super::policy(&DEEPSEEK.replace("\"fmt\"", ignore), "");
    assert!(!is_fp8(&policy, "model.layers.61.shared_head.other.weight") && is_fp8(&policy, Q));
}

#[test]
fn n4_the_kept_layers_must_exist() {
    let with = |first: u32, last: u32| {
        format!(r#"{{"precision": "fp8", "num_first_layers_in_bf16": {first}, "num_last_layers_in_bf16": {last}}}"#)
    };
    let config = r#"{"num_hidden_layers": 40}"#;
    refuses(&with(30, 11), config, &["30 + 11 = 41", "40"]);
    refuses(&with(0, 1), "", &["num_last_layers_in_bf16", "config"]);
    let all = policy(&with(30, 10), config);
    assert!((0..40).all(|layer| !is_fp8(&all, &format!("model.layers.{layer}.mlp.up_proj.weight"))));
    refuses(&with(u32::MAX, u32::MAX), config, &["8589934590", "40"]);
    refuses(&with(1, 1), r#"{"num_hidden_layers": "forty"}"#, &["num_hidden_layers", "forty"]);
}
