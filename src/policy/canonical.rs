//! The text that ranks compare, its fingerprint, and what differs.
//!
//! Only what decisions depend on is in the text, after reading: keys are sorted, lists whose order means nothing too, and
//! whoever's settings they were does not show.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::Result;

use super::formats::{FORMATS, Form, RECIPES, name_of};
use super::json::{self, shown};
use super::model::Stored;
use super::rules::{Effect, Rule};
use super::{Forms, Policy};

/// Version of the text's form.
const VERSION: u32 = 1;

pub fn form_text(form: Form) -> String {
    format!("{} {}", name_of(&RECIPES, form.recipe), name_of(&FORMATS, form.format))
}

fn form_value(form: Form) -> Value {
    json!({"recipe": name_of(&RECIPES, form.recipe), "scale_format": name_of(&FORMATS, form.format)})
}

fn rule_value(rule: &Rule) -> Value {
    let (key, text) = rule.selector.parts();
    let mut map = Map::new();
    map.insert(key.to_owned(), json!(text));
    match rule.effect {
        Effect::Keep => map.insert("decision".to_owned(), json!("keep")),
        Effect::Fp8(Forms { weight, activation }) => {
            map.insert("weight".to_owned(), form_value(weight));
            map.insert("activation".to_owned(), form_value(activation));
            map.insert("decision".to_owned(), json!("fp8"))
        }
    };
    Value::Object(map)
}

fn stored(stored: Stored) -> &'static str {
    match stored {
        Stored::Plain => "[out, in]",
        Stored::Transposed => "[in, out]",
        Stored::Unknown => "unknown",
    }
}

impl Policy {
    /// The text, made once.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first 128 bits of the SHA-256 of the text: two words of 8 bytes, little-endian, in the order of the bytes.
    pub fn fingerprint(&self) -> [u64; 2] {
        let hash = Sha256::digest(self.text.as_bytes());
        [0, 8].map(|first| u64::from_le_bytes(std::array::from_fn(|byte| hash[first + byte])))
    }

    pub(super) fn canonical_text(&self) -> String {
        let settings = &self.settings;
        let (first, last) = self.kept_layers();
        // Where no layer is kept for its number, their count decides nothing.
        let layers = if first > 0 || last > 0 { self.model.layers } else { None };
        let prefixes: BTreeMap<&str, &str> =
            self.prefixes.pairs().iter().map(|(engine, checkpoint)| (engine.as_str(), checkpoint.as_str())).collect();
        json!({
            "version": VERSION,
            "quantize": settings.off.is_none(),
            "weight": form_value(settings.forms.weight),
            "activation": form_value(settings.forms.activation),
            "default": if settings.keep_by_default { "keep" } else { "fp8" },
            "use_deep_gemm": self.allows_deep_gemm(),
            "kv_cache_dtype": settings.kv_cache_dtype.as_deref().unwrap_or("auto"),
            "num_first_layers_in_bf16": first,
            "num_last_layers_in_bf16": last,
            "num_hidden_layers": layers,
            "linears": stored(self.model.linears),
            "expert_slabs": stored(self.model.expert_slabs),
            "ignored": settings.ignored,
            "keywords": settings.keywords,
            "rules": settings.rules.iter().map(rule_value).collect::<Vec<_>>(),
            "packed_modules": self.packed.all(),
            "prefixes": prefixes,
        })
        .to_string()
    }

    /// A line for each setting that another policy's text has otherwise, with both values.
    pub fn difference(&self, other: &str) -> Result<Vec<String>> {
        let (mut here, mut there) = (BTreeMap::new(), BTreeMap::new());
        flatten("", &Value::Object(json::parse(&self.text, "the text")?), &mut here);
        flatten("", &Value::Object(json::parse(other, "other")?), &mut there);
        let absent = Value::Null;
        let keys: std::collections::BTreeSet<&String> = here.keys().chain(there.keys()).collect();
        let values =
            keys.into_iter().map(|key| (key, here.get(key).unwrap_or(&absent), there.get(key).unwrap_or(&absent)));
        Ok(values.filter(|(_, a, b)| a != b).map(|(key, a, b)| line(key, a, b)).collect())
    }
}

/// "weight.scale_format" and the like; lists stay whole.
fn flatten(path: &str, value: &Value, settings: &mut BTreeMap<String, Value>) {
    let Value::Object(map) = value else {
        settings.insert(path.to_owned(), value.clone());
        return;
    };
    for (key, inner) in map {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        flatten(&path, inner, settings);
    }
}

fn line(key: &str, here: &Value, there: &Value) -> String {
    let (Value::Array(a), Value::Array(b)) = (here, there) else {
        return format!("{key} is {} here, {} there", shown(here), shown(there));
    };
    let only = |list: &[Value], other: &[Value]| {
        Value::Array(list.iter().filter(|value| !other.contains(value)).cloned().collect::<Vec<_>>())
    };
    let (only_here, only_there) = (only(a, b), only(b, a));
    if only_here == only_there {
        return format!("{key} has another order: {} here, {} there", shown(here), shown(there));
    }
    format!("{key} has {} only here, {} only there", shown(&only_here), shown(&only_there))
}
