//! What a model's `config.json` says that decisions need.

use serde_json::Value;

use crate::error::Result;

use super::json::{self, Object};

/// Whether the model stores linears transposed, [in, out]: Conv1D of the GPT-2 family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Plain,
    Transposed,
    /// No configuration was given.
    Unknown,
}

#[derive(Debug)]
pub struct Model {
    /// Layers of the decoder.
    pub layers: Option<u32>,
    /// Routed experts of a layer.
    pub experts: Option<u32>,
    pub linears: Stored,
    pub expert_slabs: Stored,
}

/// Where a model of several towers keeps the configuration of its decoder.
const DECODERS: [&str; 4] = ["text_config", "llm_config", "language_config", "thinker_config"];
const LAYERS: [&str; 3] = ["num_hidden_layers", "n_layer", "num_layers"];
const EXPERTS: [&str; 3] = ["num_experts", "num_local_experts", "n_routed_experts"];
/// `model_type`s whose linears are Conv1D.
const CONV1D: [&str; 5] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"];
/// `model_type`s whose slabs of experts are [experts, in, out].
const TRANSPOSED_EXPERTS: [&str; 3] = ["llama4", "llama4_text", "gpt_oss"];

impl Model {
    pub fn read(config: Option<&str>) -> Result<Model> {
        let Some(text) = config else {
            let unknown = Stored::Unknown;
            return Ok(Model { layers: None, experts: None, linears: unknown, expert_slabs: unknown });
        };
        let map = json::parse(text, "config")?;
        let whole = Object::new("config", &map);
        let decoder = decoder(&whole)?;
        let first = |keys: &[&str]| keys.iter().find_map(|key| decoder.count(key).transpose()).transpose();
        let types = [whole.string("model_type")?, decoder.string("model_type")?];
        let stored = |transposed: &[&str]| {
            let found = types.iter().flatten().any(|kind| transposed.contains(kind));
            if found { Stored::Transposed } else { Stored::Plain }
        };
        Ok(Model {
            layers: first(&LAYERS)?,
            experts: first(&EXPERTS)?,
            linears: stored(&CONV1D),
            expert_slabs: stored(&TRANSPOSED_EXPERTS),
        })
    }
}

/// The object that describes the decoder, also two levels down.
fn decoder<'a>(whole: &Object<'a>) -> Result<Object<'a>> {
    for key in DECODERS {
        if whole.get(key).is_some_and(Value::is_object)
            && let Some(inner) = whole.object(key)?
        {
            return decoder(&inner);
        }
    }
    Ok(Object { name: whole.name.clone(), map: whole.map })
}
