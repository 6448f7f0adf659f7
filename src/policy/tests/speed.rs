//! Ten thousand names in less than ten milliseconds.

use std::time::Duration;

use super::*;

const NAMES: usize = 10_000;
const LIMIT: Duration = Duration::from_millis(10);

fn names() -> Vec<(String, [i64; 2])> {
    let layer = |index: usize| {
        let expert = (index * 7) % 128;
        let place = format!("model.layers.{}", index % 48);
        match index % 4 {
            0 => (format!("{place}.self_attn.q_proj.weight"), [4096, 2048]),
            1 => (format!("{place}.mlp.experts.{expert}.up_proj.weight"), [768, 2048]),
            2 => (format!("{place}.mlp.experts.{expert}.down_proj.weight"), [2048, 768]),
            _ => (format!("{place}.mlp.gate.weight"), [128, 2048]),
        }
    };
    (0..NAMES).map(layer).collect()
}

/// What this thread has had of a processor: others may use the machine.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the time.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(code, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The best of several runs.
fn best_time(policy: &Policy, names: &[(String, [i64; 2])]) -> Duration {
    let run = |_| {
        let start = thread_time();
        let quantized = names.iter().filter(|(name, shape)| {
            let decision = policy.decide(name, Some(shape)).unwrap_or_else(|error| panic!("{}", error.message));
            decision.forms.is_some()
        });
        assert!(quantized.count() > NAMES / 2);
        thread_time() - start
    };
    (0..20).map(run).min().unwrap()
}

#[test]
fn ten_thousand_names_take_less_than_ten_milliseconds() {
    let config = r#"{"num_hidden_layers": 48, "num_experts": 128}"#;
    let gates = (0..48).map(|layer| format!("\"model.layers.{layer}.mlp.gate\"")).collect::<Vec<_>>().join(",");
    let face = format!(
        r#"{{"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", {gates}]}}"#
    );
    let plain = r#"{"precision": "fp8", "num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 1}"#;
    let words = r#"{"precision": "fp8", "quantization_ignored_layer_kws": ["o_proj", "layers.7.", "shared"]}"#;
    let rules = r#"{"fp8rt": {"rules": [{"glob": "*.layers.3.*", "decision": "keep"},
        {"prefix": "model.layers.4", "decision": "keep"},
        {"regex": ".*\\.layers\\.(5|6)\\.self_attn\\..*", "decision": "keep"}]}}"#;
    let names = names();
    for settings in [plain, words, &face, rules] {
        let time = best_time(&policy(settings, config), &names);
        println!("{} names in {time:?}: {}", NAMES, &settings[..40]);
        assert!(time < LIMIT, "{time:?}: {settings}");
    }
}
