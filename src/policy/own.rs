//! This library's own settings. Here an unknown key is an error.

use serde_json::Value;

use crate::error::{Result, ensure, fail};

use super::formats::{FORMATS, Form, Forms, RECIPES};
use super::json::{Object, shown};
use super::rules::{Effect, Rule, Selector};
use super::settings::Settings;

const KEYS: [&str; 8] = [
    "weight",
    "activation",
    "default",
    "num_first_layers_in_bf16",
    "num_last_layers_in_bf16",
    "use_deep_gemm",
    "kv_cache_dtype",
    "rules",
];
const FORM_KEYS: [&str; 2] = ["recipe", "scale_format"];
const SELECTORS: [&str; 4] = ["name", "prefix", "glob", "regex"];
const RULE_KEYS: [&str; 7] = ["name", "prefix", "glob", "regex", "decision", "weight", "activation"];
/// Whether a rule or the default quantizes.
const DECISIONS: [(&str, bool); 2] = [("fp8", true), ("keep", false)];

/// Reads `{"fp8rt": {...}}`, `{"quant_method": "fp8rt", ...}`, or the inner object alone.
pub fn read(given: &Object, settings: &mut Settings) -> Result<()> {
    if given.map.contains_key("fp8rt") {
        given.expect_known(&["fp8rt", "quant_method"])?;
        return read_beside(given, settings);
    }
    let mut inner = given.map.clone();
    if let Some(method) = inner.remove("quant_method") {
        ensure!(method == "fp8rt", InvalidArgument, "{}: quant_method is {method}, must be fp8rt", given.name);
    }
    read_inner(&Object { name: given.name.clone(), map: &inner }, settings)
}

/// Adds what the key "fp8rt" beside other settings says: merged with them, never in place of them.
pub fn read_beside(given: &Object, settings: &mut Settings) -> Result<()> {
    match given.object("fp8rt")? {
        Some(inner) => read_inner(&inner, settings),
        None => Ok(()),
    }
}

fn read_inner(given: &Object, settings: &mut Settings) -> Result<()> {
    given.expect_known(&KEYS)?;
    settings.forms = forms(given, settings.forms)?;
    if let Some(quantizes) = given.named("default", &DECISIONS)? {
        settings.keep_by_default = !quantizes;
    }
    let (first, last) = (given.count("num_first_layers_in_bf16")?, given.count("num_last_layers_in_bf16")?);
    Settings::set(&mut settings.first_layers, first, "num_first_layers_in_bf16")?;
    Settings::set(&mut settings.last_layers, last, "num_last_layers_in_bf16")?;
    Settings::set(&mut settings.use_deep_gemm, given.boolean("use_deep_gemm")?, "use_deep_gemm")?;
    let kv_cache_dtype = given.string("kv_cache_dtype")?.map(str::to_owned);
    Settings::set(&mut settings.kv_cache_dtype, kv_cache_dtype, "kv_cache_dtype")?;
    let mut rules = Vec::new();
    for (index, value) in given.array("rules")?.into_iter().flatten().enumerate() {
        let name = format!("{}: rules[{index}]", given.name);
        let Value::Object(map) = value else {
            fail!(InvalidArgument, "{name} is {}, must be an object", shown(value));
        };
        read_rule(&Object { name, map }, settings.forms, &mut rules)?;
    }
    // The owner's rules come before those that other settings brought.
    rules.append(&mut settings.rules);
    settings.rules = rules;
    Ok(())
}

/// What "weight" and "activation" say, over what held before.
fn forms(given: &Object, before: Forms) -> Result<Forms> {
    let form = |key: &str, before: Form| {
        let Some(inner) = given.object(key)? else { return Ok(before) };
        inner.expect_known(&FORM_KEYS)?;
        Ok(Form {
            recipe: inner.named("recipe", &RECIPES)?.unwrap_or(before.recipe),
            format: inner.named("scale_format", &FORMATS)?.unwrap_or(before.format),
        })
    };
    Ok(Forms { weight: form("weight", before.weight)?, activation: form("activation", before.activation)? })
}

/// One selector, of one string or of several: a rule each.
fn read_rule(given: &Object, default: Forms, rules: &mut Vec<Rule>) -> Result<()> {
    given.expect_known(&RULE_KEYS)?;
    let keys: Vec<&str> = SELECTORS.into_iter().filter(|key| given.get(key).is_some()).collect();
    let [key] = keys[..] else {
        fail!(InvalidArgument, "{} has {} of name, prefix, glob and regex, must have 1", given.name, keys.len());
    };
    let Some(quantizes) = given.named("decision", &DECISIONS)? else {
        fail!(InvalidArgument, "{} has no decision, must be fp8 or keep", given.name);
    };
    let formats = given.get("weight").is_some() || given.get("activation").is_some();
    ensure!(quantizes || !formats, InvalidArgument, "{} keeps, and has formats of FP8", given.name);
    let effect = if quantizes { Effect::Fp8(forms(given, default)?) } else { Effect::Keep };
    let texts = match given.get(key) {
        Some(Value::String(text)) if !text.is_empty() => vec![text.clone()],
        Some(Value::String(_)) => fail!(InvalidArgument, "{}: {key} is empty", given.name),
        _ => given.strings(key)?.unwrap_or_default(),
    };
    for text in texts {
        rules.push(Rule { selector: Selector::new(key, text), effect });
    }
    Ok(())
}
