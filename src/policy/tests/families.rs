//! The decisions for the parameters of published models, spelled out: how many are FP8, and which not and why.
//!
//! Names and shapes are those of the checkpoints' safetensors, generated from the published config.json values.

use std::collections::BTreeMap;

use super::*;

/// The parameters of a model.
#[derive(Default)]
struct Parameters {
    all: Vec<(String, Vec<i64>)>,
}

impl Parameters {
    fn add(&mut self, name: &str, shape: &[i64]) {
        self.all.push((name.to_owned(), shape.to_vec()));
    }

    /// "{prefix}.{name}.weight" of each.
    fn weights(&mut self, prefix: &str, weights: &[(&str, &[i64])]) {
        for (name, shape) in weights {
            self.add(&format!("{prefix}.{name}.weight"), shape);
        }
    }

    fn biases(&mut self, prefix: &str, biases: &[(&str, i64)]) {
        for &(name, rows) in biases {
            self.add(&format!("{prefix}.{name}.bias"), &[rows]);
        }
    }

    /// How many are FP8, and how many are kept for each reason, layers' numbers left out.
    fn counts(&self, policy: &Policy) -> (usize, BTreeMap<String, usize>) {
        let (mut fp8, mut kept) = (0, BTreeMap::new());
        for (name, shape) in &self.all {
            let decision = policy.decide(name, Some(shape)).unwrap_or_else(|error| panic!("{name}: {}", error.message));
            let reason = policy.explain(decision.reason);
            let reason = reason.split(" is one of the ").last().unwrap_or_default().to_owned();
            match decision.forms {
                Some(_) => fp8 += 1,
                None => *kept.entry(reason).or_insert(0) += 1,
            }
        }
        (fp8, kept)
    }

    fn expect(&self, policy: &Policy, fp8: usize, kept: &[(&str, usize)]) {
        let want = kept.iter().map(|&(reason, count)| (reason.to_owned(), count)).collect();
        assert_eq!(self.counts(policy), (fp8, want));
    }
}

const FIRST_AND_LAST: &str = r#"{"precision": "fp8", "num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 1}"#;
const PLAIN: &str = r#"{"precision": "fp8"}"#;
const FIRST_1: &str = "first 1 (num_first_layers_in_bf16)";
const LAST_1: &str = "last 1 (num_last_layers_in_bf16)";

/// The attention and the MLP of a Llama-like layer, and its two norms.
struct Dense {
    layers: i64,
    hidden: i64,
    q: i64,
    kv: i64,
    intermediate: i64,
    vocabulary: i64,
    qkv_bias: bool,
    qk_norm: Option<i64>,
    tied: bool,
    /// q_proj has a gate too: twice the rows.
    gated: bool,
}

impl Dense {
    fn attention(&self, parameters: &mut Parameters, layer: &str) {
        let (h, q, kv) = (self.hidden, self.q, self.kv);
        let wide = if self.gated { 2 * q } else { q };
        let prefix = format!("{layer}.self_attn");
        parameters.weights(
            &prefix,
            &[("q_proj", &[wide, h]), ("k_proj", &[kv, h]), ("v_proj", &[kv, h]), ("o_proj", &[h, q])],
        );
        if self.qkv_bias {
            parameters.biases(&prefix, &[("q_proj", q), ("k_proj", kv), ("v_proj", kv)]);
        }
        if let Some(head) = self.qk_norm {
            parameters.weights(&prefix, &[("q_norm", &[head]), ("k_norm", &[head])]);
        }
        parameters.weights(layer, &[("input_layernorm", &[h]), ("post_attention_layernorm", &[h])]);
    }

    fn mlp(&self, parameters: &mut Parameters, prefix: &str, intermediate: i64) {
        let h = self.hidden;
        let (wide, narrow) = ([intermediate, h], [h, intermediate]);
        parameters.weights(prefix, &[("gate_proj", &wide), ("up_proj", &wide), ("down_proj", &narrow)]);
    }

    fn ends(&self, parameters: &mut Parameters, model: &str) {
        parameters.weights(model, &[("embed_tokens", &[self.vocabulary, self.hidden]), ("norm", &[self.hidden])]);
        if !self.tied {
            parameters.add("lm_head.weight", &[self.vocabulary, self.hidden]);
        }
    }

    fn parameters(&self) -> Parameters {
        let mut parameters = Parameters::default();
        self.ends(&mut parameters, "model");
        for layer in 0..self.layers {
            let layer = format!("model.layers.{layer}");
            self.attention(&mut parameters, &layer);
            self.mlp(&mut parameters, &format!("{layer}.mlp"), self.intermediate);
        }
        parameters
    }
}

/// meta-llama/Llama-3.1-8B.
const LLAMA: Dense = Dense {
    layers: 32,
    hidden: 4096,
    q: 4096,
    kv: 1024,
    intermediate: 14336,
    vocabulary: 128256,
    qkv_bias: false,
    qk_norm: None,
    tied: false,
    gated: false,
};

#[test]
fn llama() {
    let parameters = LLAMA.parameters();
    assert_eq!(parameters.all.len(), 291);
    let config = r#"{"model_type": "llama", "num_hidden_layers": 32}"#;
    let kept = [("a norm", 65), ("an embedding", 1), ("the output head", 1)];
    parameters.expect(&policy(PLAIN, config), 32 * 7, &kept);
    let kept = [("a norm", 65), ("an embedding", 1), ("the output head", 1), (FIRST_1, 7), (LAST_1, 7)];
    parameters.expect(&policy(FIRST_AND_LAST, config), 30 * 7, &kept);
}

#[test]
fn qwen_dense() {
    // Qwen/Qwen2-0.5B, Qwen2.5-7B and Qwen3-8B.
    let qwen2 = Dense { layers: 24, hidden: 896, q: 896, kv: 128, intermediate: 4864, vocabulary: 151936, ..LLAMA };
    let qwen2 = Dense { qkv_bias: true, tied: true, ..qwen2 };
    let qwen25 = Dense { layers: 28, hidden: 3584, q: 3584, kv: 512, intermediate: 18944, tied: false, ..qwen2 };
    let qwen3 =
        Dense { layers: 36, qkv_bias: false, qk_norm: Some(128), intermediate: 12288, vocabulary: 151936, ..LLAMA };
    let policy = policy(PLAIN, "");
    let kept = [("a bias", 72), ("a norm", 49), ("an embedding", 1)];
    qwen2.parameters().expect(&policy, 24 * 7, &kept);
    let kept = [("a bias", 84), ("a norm", 57), ("an embedding", 1), ("the output head", 1)];
    qwen25.parameters().expect(&policy, 28 * 7, &kept);
    let kept = [("a norm", 145), ("an embedding", 1), ("the output head", 1)];
    qwen3.parameters().expect(&policy, 36 * 7, &kept);
}

#[test]
fn qwen3_moe() {
    // Qwen/Qwen3-30B-A3B.
    let model = Dense { layers: 48, hidden: 2048, q: 4096, kv: 512, vocabulary: 151936, qk_norm: Some(128), ..LLAMA };
    let mut parameters = Parameters::default();
    model.ends(&mut parameters, "model");
    for layer in 0..48 {
        let layer = format!("model.layers.{layer}");
        model.attention(&mut parameters, &layer);
        parameters.weights(&layer, &[("mlp.gate", &[128, 2048])]);
        for expert in 0..128 {
            model.mlp(&mut parameters, &format!("{layer}.mlp.experts.{expert}"), 768);
        }
    }
    let policy = policy(FIRST_AND_LAST, r#"{"model_type": "qwen3_moe", "num_hidden_layers": 48, "num_experts": 128}"#);
    let kept = [
        ("a norm", 193),
        ("a router of experts", 48),
        ("an embedding", 1),
        ("the output head", 1),
        (FIRST_1, 388),
        (LAST_1, 388),
    ];
    parameters.expect(&policy, 46 * 388, &kept);
    assert!(policy.decide_module("model.layers.1.mlp.experts").unwrap().forms.is_some());
    assert!(policy.decide_module("model.layers.0.mlp.experts").unwrap().forms.is_none());
}

#[test]
fn qwen35_moe_with_fused_slabs() {
    // Qwen/Qwen3.5-35B-A3B: three of four layers have linear attention, a vision tower, and an MTP layer.
    let model = Dense {
        layers: 40,
        hidden: 2048,
        q: 4096,
        kv: 512,
        vocabulary: 248320,
        qk_norm: Some(256),
        gated: true,
        ..LLAMA
    };
    let mut parameters = Parameters::default();
    model.ends(&mut parameters, "model.language_model");
    let moe = |parameters: &mut Parameters, layer: &str| {
        parameters.weights(&format!("{layer}.mlp"), &[("gate", &[256, 2048]), ("shared_expert_gate", &[1, 2048])]);
        parameters.add(&format!("{layer}.mlp.experts.gate_up_proj"), &[256, 1024, 2048]);
        parameters.add(&format!("{layer}.mlp.experts.down_proj"), &[256, 2048, 512]);
        model.mlp(parameters, &format!("{layer}.mlp.shared_expert"), 512);
    };
    for index in 0..40 {
        let layer = format!("model.language_model.layers.{index}");
        if index % 4 == 3 {
            model.attention(&mut parameters, &layer);
        } else {
            let prefix = format!("{layer}.linear_attn");
            let (qkv, z, out) = ([8192, 2048], [4096, 2048], [2048, 4096]);
            let gates: [i64; 2] = [32, 2048];
            parameters.weights(&prefix, &[("in_proj_qkv", &qkv), ("in_proj_z", &z), ("out_proj", &out)]);
            parameters.weights(&prefix, &[("in_proj_b", &gates), ("in_proj_a", &gates)]);
            parameters.weights(&prefix, &[("conv1d", &[8192, 1, 4]), ("norm", &[128])]);
            parameters.add(&format!("{prefix}.A_log"), &[32]);
            parameters.add(&format!("{prefix}.dt_bias"), &[32]);
            parameters.weights(&layer, &[("input_layernorm", &[2048]), ("post_attention_layernorm", &[2048])]);
        }
        moe(&mut parameters, &layer);
    }
    for block in 0..27 {
        let block = format!("model.visual.blocks.{block}");
        let (qkv, proj, fc1, fc2) = ([3456, 1152], [1152, 1152], [4304, 1152], [1152, 4304]);
        parameters.weights(&block, &[("norm1", &[1152]), ("norm2", &[1152])]);
        parameters.weights(&block, &[("attn.qkv", &qkv), ("attn.proj", &proj)]);
        parameters.weights(&block, &[("mlp.linear_fc1", &fc1), ("mlp.linear_fc2", &fc2)]);
    }
    parameters.weights(
        "model.visual",
        &[
            ("pos_embed", &[2304, 1152]),
            ("patch_embed.proj", &[1152, 3, 2, 16, 16]),
            ("merger.linear_fc1", &[4608, 4608]),
        ],
    );
    model.attention(&mut parameters, "mtp.layers.0");
    moe(&mut parameters, "mtp.layers.0");
    parameters.weights("mtp", &[("fc", &[2048, 4096]), ("norm", &[2048]), ("pre_fc_norm_hidden", &[2048])]);

    let config = r#"{"model_type": "qwen3_5_moe", "text_config": {"model_type": "qwen3_5_moe_text",
        "num_hidden_layers": 40, "num_experts": 256}}"#;
    let policy = policy(FIRST_AND_LAST, config);
    // Of a layer with linear attention 3 + 2 slabs + 3, with full attention 4 + 2 + 3; the first is of the one kind, the last
    // of the other, and the MTP layer is outside.
    let fp8 = 29 * 8 + 9 * 9 + 9;
    let kept = [
        ("a bias", 30),
        ("a gate of linear attention", 60),
        ("a norm", 1 + 40 * 2 + 10 * 2 + 30 + 27 * 2 + 4 + 2),
        ("a router of experts", 82),
        ("an embedding", 2),
        ("not the weight of a linear layer", 30),
        ("part of a vision or audio tower", 27 * 4 + 1),
        ("rank 3: only matrices and slabs of experts are quantized", 30),
        ("rank 5: only matrices and slabs of experts are quantized", 1),
        ("the input projection of multi-token prediction", 1),
        ("the output head", 1),
        (FIRST_1, 8),
        (LAST_1, 9),
    ];
    parameters.expect(&policy, fp8, &kept);
    assert!(is_fp8(&policy, "model.language_model.layers.1.mlp.experts.down_proj"));
    assert!(is_fp8(&policy, "mtp.layers.0.mlp.experts.gate_up_proj"));
}

#[test]
fn mixtral() {
    // mistralai/Mixtral-8x7B-v0.1.
    let model = Dense { vocabulary: 32000, ..LLAMA };
    let mut parameters = Parameters::default();
    model.ends(&mut parameters, "model");
    for layer in 0..32 {
        let layer = format!("model.layers.{layer}");
        model.attention(&mut parameters, &layer);
        parameters.weights(&format!("{layer}.block_sparse_moe"), &[("gate", &[8, 4096])]);
        for expert in 0..8 {
            let (wide, narrow) = ([14336, 4096], [4096, 14336]);
            let prefix = format!("{layer}.block_sparse_moe.experts.{expert}");
            parameters.weights(&prefix, &[("w1", &wide), ("w2", &narrow), ("w3", &wide)]);
        }
    }
    assert_eq!(parameters.all.len(), 995);
    let kept = [("a norm", 65), ("a router of experts", 32), ("an embedding", 1), ("the output head", 1)];
    parameters.expect(&policy(PLAIN, ""), 32 * (4 + 24), &kept);
}

#[test]
fn deepseek_v3() {
    // deepseek-ai/DeepSeek-V3: 3 dense layers, 58 with experts, and the MTP layer 61. Four experts stand for 256.
    let model = Dense { hidden: 7168, vocabulary: 129280, ..LLAMA };
    let mut parameters = Parameters::default();
    model.ends(&mut parameters, "model");
    for index in 0..=61 {
        let layer = format!("model.layers.{index}");
        let prefix = format!("{layer}.self_attn");
        parameters.weights(
            &prefix,
            &[
                ("q_a_proj", &[1536, 7168]),
                ("q_b_proj", &[24576, 1536]),
                ("kv_a_proj_with_mqa", &[576, 7168]),
                ("kv_b_proj", &[32768, 512]),
                ("o_proj", &[7168, 16384]),
                ("q_a_layernorm", &[1536]),
                ("kv_a_layernorm", &[512]),
            ],
        );
        parameters.weights(&layer, &[("input_layernorm", &[7168]), ("post_attention_layernorm", &[7168])]);
        if index < 3 {
            model.mlp(&mut parameters, &format!("{layer}.mlp"), 18432);
            continue;
        }
        parameters.weights(&format!("{layer}.mlp"), &[("gate", &[256, 7168])]);
        parameters.add(&format!("{layer}.mlp.gate.e_score_correction_bias"), &[256]);
        model.mlp(&mut parameters, &format!("{layer}.mlp.shared_experts"), 2048);
        for expert in 0..4 {
            model.mlp(&mut parameters, &format!("{layer}.mlp.experts.{expert}"), 2048);
        }
    }
    parameters.weights(
        "model.layers.61",
        &[
            ("embed_tokens", &[129280, 7168]),
            ("enorm", &[7168]),
            ("hnorm", &[7168]),
            ("eh_proj", &[7168, 14336]),
            ("shared_head.norm", &[7168]),
            ("shared_head.head", &[129280, 7168]),
        ],
    );
    let config = r#"{"model_type": "deepseek_v3", "num_hidden_layers": 61, "n_routed_experts": 256,
        "num_nextn_predict_layers": 1}"#;
    let settings = r#"{"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [128, 128]}"#;
    let kept = |more: &[(&'static str, usize)]| {
        let kept = [
            ("a bias", 59),
            ("a norm", 1 + 62 * 4 + 3),
            ("a router of experts", 59),
            ("an embedding", 2),
            ("the input projection of multi-token prediction", 1),
            ("the output head", 2),
        ];
        [&kept[..], more].concat()
    };
    parameters.expect(&policy(settings, config), 3 * 8 + 59 * (5 + 3 + 12), &kept(&[]));
    // Layer 60 is the last; layer 61 is outside the rule.
    let both = kept(&[(FIRST_1, 8), (LAST_1, 20)]);
    parameters.expect(&policy(FIRST_AND_LAST, config), 2 * 8 + 58 * 20, &both);
    let mapping = r#"{"gate_up_proj": ["gate_proj", "up_proj"],
        "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"]}"#;
    let source = Source { packed_modules: Some(mapping), ..source(Some(settings), Some(config)) };
    let policy = Policy::new(&source).unwrap();
    assert!(policy.decide_module("model.layers.3.self_attn.fused_qkv_a_proj").unwrap().forms.is_some());
    assert!(policy.decide_module("model.layers.3.mlp.experts").unwrap().forms.is_some());
    assert!(policy.decide_module("model.layers.3.mlp.gate").unwrap().forms.is_none());
}

#[test]
fn gemma() {
    // google/gemma-2-2b: four norms a layer, lm_head tied to the embedding and so not in the checkpoint.
    let model = Dense {
        layers: 26,
        hidden: 2304,
        q: 2048,
        kv: 1024,
        intermediate: 9216,
        vocabulary: 256000,
        tied: true,
        ..LLAMA
    };
    let mut parameters = model.parameters();
    for layer in 0..26 {
        let norms = [("pre_feedforward_layernorm", &[2304][..]), ("post_feedforward_layernorm", &[2304][..])];
        parameters.weights(&format!("model.layers.{layer}"), &norms);
    }
    let policy = policy(PLAIN, r#"{"model_type": "gemma2", "num_hidden_layers": 26, "tie_word_embeddings": true}"#);
    parameters.expect(&policy, 26 * 7, &[("a norm", 105), ("an embedding", 1)]);
    // The engine has the module all the same.
    assert_eq!(kept(&policy, "lm_head.weight"), "the output head");
    assert!(policy.decide_module("lm_head").unwrap().forms.is_none());
}

#[test]
fn phi3() {
    // microsoft/Phi-3-mini-4k-instruct: q, k and v are one tensor in the checkpoint, gate and up too.
    let mut parameters = Parameters::default();
    parameters.weights("model", &[("embed_tokens", &[32064, 3072]), ("norm", &[3072])]);
    parameters.add("lm_head.weight", &[32064, 3072]);
    for layer in 0..32 {
        let layer = format!("model.layers.{layer}");
        parameters.weights(&layer, &[("self_attn.qkv_proj", &[9216, 3072]), ("self_attn.o_proj", &[3072, 3072])]);
        parameters.weights(&layer, &[("mlp.gate_up_proj", &[16384, 3072]), ("mlp.down_proj", &[3072, 8192])]);
        parameters.weights(&layer, &[("input_layernorm", &[3072]), ("post_attention_layernorm", &[3072])]);
    }
    let mapping = r#"{"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}"#;
    for packed_modules in [None, Some(mapping)] {
        let source = Source { packed_modules, ..source(Some(PLAIN), None) };
        let policy = Policy::new(&source).unwrap();
        parameters.expect(&policy, 32 * 4, &[("a norm", 65), ("an embedding", 1), ("the output head", 1)]);
        assert!(policy.decide_module("model.layers.0.self_attn.qkv_proj").unwrap().forms.is_some());
    }
    // A keyword in the name of a tensor that is merged already splits nothing.
    let words = r#"{"precision": "fp8", "quantization_ignored_layer_kws": ["up_proj"]}"#;
    let source = Source { packed_modules: Some(mapping), ..source(Some(words), None) };
    let policy = Policy::new(&source).unwrap();
    assert!(!is_fp8(&policy, "model.layers.0.mlp.gate_up_proj.weight"));
    assert!(policy.decide_module("model.layers.0.mlp.gate_up_proj").unwrap().forms.is_none());
}

#[test]
fn gpt2() {
    // openai-community/gpt2: Conv1D weights are [in, out].
    let mut parameters = Parameters::default();
    parameters.weights("transformer", &[("wte", &[50257, 768]), ("wpe", &[1024, 768]), ("ln_f", &[768])]);
    parameters.biases("transformer", &[("ln_f", 768)]);
    for layer in 0..12 {
        let layer = format!("transformer.h.{layer}");
        let (attn, proj, fc, down) = ([768, 2304], [768, 768], [768, 3072], [3072, 768]);
        parameters.weights(&layer, &[("attn.c_attn", &attn), ("attn.c_proj", &proj)]);
        parameters.weights(&layer, &[("mlp.c_fc", &fc), ("mlp.c_proj", &down), ("ln_1", &[768]), ("ln_2", &[768])]);
        let biases = [
            ("attn.c_attn", 2304),
            ("attn.c_proj", 768),
            ("mlp.c_fc", 3072),
            ("mlp.c_proj", 768),
            ("ln_1", 768),
            ("ln_2", 768),
        ];
        parameters.biases(&layer, &biases);
    }
    let conv1d = "Conv1D: stored transposed, [in, out], so its blocks are not those of a linear";
    assert_eq!(parameters.all.len(), 148);
    let gpt2 = policy(PLAIN, r#"{"model_type": "gpt2", "n_layer": 12}"#);
    parameters.expect(&gpt2, 0, &[(conv1d, 48), ("a bias", 73), ("a norm", 25), ("an embedding", 2)]);
    // Without a configuration nobody can tell; StarCoder has the same names for plain linears.
    assert!(kept(&policy(PLAIN, ""), "transformer.h.0.attn.c_attn.weight").starts_with("may be Conv1D"));
    let starcoder = policy(PLAIN, r#"{"model_type": "gpt_bigcode", "n_layer": 40}"#);
    assert!(is_fp8(&starcoder, "transformer.h.0.attn.c_attn.weight"));
}

#[test]
fn qwen2_vl() {
    // Qwen/Qwen2-VL-7B-Instruct.
    let model = Dense {
        layers: 28,
        hidden: 3584,
        q: 3584,
        kv: 512,
        intermediate: 18944,
        vocabulary: 152064,
        qkv_bias: true,
        ..LLAMA
    };
    let mut parameters = model.parameters();
    for block in 0..32 {
        let block = format!("visual.blocks.{block}");
        let (qkv, proj, fc1, fc2) = ([3840, 1280], [1280, 1280], [5120, 1280], [1280, 5120]);
        parameters.weights(&block, &[("attn.qkv", &qkv), ("attn.proj", &proj), ("mlp.fc1", &fc1), ("mlp.fc2", &fc2)]);
        parameters.weights(&block, &[("norm1", &[1280]), ("norm2", &[1280])]);
        parameters.biases(&block, &[("attn.qkv", 3840), ("attn.proj", 1280), ("mlp.fc1", 5120), ("mlp.fc2", 1280)]);
    }
    parameters.weights("visual", &[("patch_embed.proj", &[1280, 3, 2, 14, 14]), ("merger.ln_q", &[1280])]);
    parameters.weights("visual.merger", &[("mlp.0", &[5120, 5120]), ("mlp.2", &[3584, 5120])]);
    let policy = policy(FIRST_AND_LAST, r#"{"model_type": "qwen2_vl", "num_hidden_layers": 28, "vision_config": {}}"#);
    let kept = [
        ("a bias", 28 * 3 + 32 * 4),
        ("a norm", 57 + 65),
        ("an embedding", 1),
        ("part of a vision or audio tower", 32 * 4 + 2),
        ("rank 5: only matrices and slabs of experts are quantized", 1),
        ("the output head", 1),
        (FIRST_1, 7),
        (LAST_1, 7),
    ];
    parameters.expect(&policy, 26 * 7, &kept);
}

#[test]
fn transposed_slabs_of_experts_are_kept() {
    for kind in ["llama4", "gpt_oss"] {
        let policy = policy(PLAIN, &format!(r#"{{"model_type": "{kind}"}}"#));
        assert!(kept(&policy, "model.layers.0.feed_forward.experts.gate_up_proj").contains("[experts, in, out]"));
    }
}
