//! Recipes and scale formats, and their names in settings and messages.

use crate::recipe::{Recipe, ScaleFormat};

/// How one operand is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub recipe: Recipe,
    pub format: ScaleFormat,
}

/// How a linear's weight and activation are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forms {
    pub weight: Form,
    pub activation: Form,
}

impl Default for Forms {
    fn default() -> Forms {
        Forms {
            weight: Form { recipe: Recipe::NemoRl, format: ScaleFormat::Fp32 },
            activation: Form { recipe: Recipe::Vllm, format: ScaleFormat::Fp32 },
        }
    }
}

pub const RECIPES: [(&str, Recipe); 4] =
    [("VLLM", Recipe::Vllm), ("DEEPGEMM", Recipe::DeepGemm), ("NEMO_RL", Recipe::NemoRl), ("TE", Recipe::Te)];

pub const FORMATS: [(&str, ScaleFormat); 3] =
    [("FP32", ScaleFormat::Fp32), ("POW2", ScaleFormat::Pow2), ("UE8M0_PACKED", ScaleFormat::Ue8m0Packed)];

/// The name of one of a table's values.
pub fn name_of<T: PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, other)| *other == value).map_or("?", |(name, _)| name)
}
