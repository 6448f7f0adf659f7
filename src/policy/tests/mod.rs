//! The policy over settings that people write and over the parameters of published models.

mod families;
mod groups;
mod model_names;
mod rank_agreement;
mod settings;
// Where it was measured; under emulation a time says nothing.
#[cfg(all(not(debug_assertions), target_arch = "x86_64"))]
mod speed;

use super::{Decision, Kind, Policy, Source};

/// A policy of these texts; empty means none.
fn policy(settings: &str, config: &str) -> Policy {
    made(settings, config).unwrap_or_else(|message| panic!("{settings}: {message}"))
}

fn made(settings: &str, config: &str) -> Result<Policy, String> {
    let given = |text| Some(text).filter(|text: &&str| !text.is_empty());
    let source = source(given(settings), given(config));
    Policy::new(&source).map_err(|error| error.message)
}

fn source<'a>(settings: Option<&'a str>, config: Option<&'a str>) -> Source<'a> {
    Source { kind: Kind::Auto, settings, config, packed_modules: None, prefixes: None }
}

/// Fails to make a policy, with all of `texts` in the message.
fn refuses(settings: &str, config: &str, texts: &[&str]) {
    let message = made(settings, config).err().unwrap_or_else(|| panic!("{settings} is taken"));
    assert!(texts.iter().all(|text| message.contains(text)), "{message}");
}

fn decide(policy: &Policy, parameter: &str) -> Decision {
    policy.decide(parameter, None).unwrap_or_else(|error| panic!("{}", error.message))
}

fn is_fp8(policy: &Policy, parameter: &str) -> bool {
    decide(policy, parameter).forms.is_some()
}

/// Why a parameter is kept; empty if it is not.
fn kept(policy: &Policy, parameter: &str) -> String {
    let decision = decide(policy, parameter);
    if decision.forms.is_some() { String::new() } else { policy.explain(decision.reason) }
}

const Q: &str = "model.layers.3.self_attn.q_proj.weight";
const UP: &str = "model.layers.3.mlp.up_proj.weight";
