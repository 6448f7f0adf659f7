//! Which parameters of a model are FP8, and how: from settings that people already have (NeMo-RL's, Hugging Face's,
//! verl's, or our own) to a decision for each name, with its reason.
//!
//! Pure: no pointers, no devices, no files. A policy does not change once it is made.

mod canonical;
mod decide;
mod formats;
mod groups;
mod hugging_face;
mod json;
mod model;
mod names;
mod nemo_rl;
mod own;
mod reason;
mod rules;
mod settings;
// Nothing here is unsafe, and whole models are too many names for Miri.
#[cfg(all(test, not(miri)))]
mod tests;
mod verl;

pub use decide::Decision;
pub use formats::{Form, Forms};
pub use names::LAYER_WORDS;
pub use reason::Reason;
pub use settings::{Kind, Source};

use crate::error::Result;

use groups::PackedModules;
use model::Model;
use names::Prefixes;
use rules::Rules;
use settings::Settings;

/// The settings, resolved, and what makes them quick to ask.
pub struct Policy {
    settings: Settings,
    model: Model,
    packed: PackedModules,
    prefixes: Prefixes,
    rules: Rules,
    text: String,
}

impl Policy {
    pub fn new(source: &Source) -> Result<Policy> {
        let model = Model::read(source.config)?;
        let prefixes = Prefixes::read(source.prefixes)?;
        let packed = PackedModules::read(source.packed_modules)?;
        let mut settings = settings::resolve(source)?;
        settings.check_layers(&model)?;
        settings.translate_ignored(&prefixes);
        let rules = Rules::new(&settings)?;
        let mut policy = Policy { settings, model, packed, prefixes, rules, text: String::new() };
        policy.text = policy.canonical_text();
        Ok(policy)
    }

    /// What the settings said that a person should look at.
    pub fn warnings(&self) -> &[String] {
        &self.settings.warnings
    }

    /// Whether anything is quantized.
    pub fn quantizes(&self) -> bool {
        self.settings.off.is_none()
    }

    /// Whether DeepGEMM may run linears.
    pub fn allows_deep_gemm(&self) -> bool {
        self.settings.use_deep_gemm.unwrap_or(true)
    }

    /// The formats of what no rule says otherwise about.
    pub fn forms(&self) -> Forms {
        self.settings.forms
    }

    /// First and last layers of the decoder that are kept.
    pub fn kept_layers(&self) -> (u32, u32) {
        (self.settings.first_layers(), self.settings.last_layers())
    }

    /// Layers of the decoder, if the model's configuration was given.
    pub fn layers(&self) -> Option<u32> {
        self.model.layers
    }
}
