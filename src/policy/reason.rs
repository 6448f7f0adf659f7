//! Why: in words.

use super::Policy;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is quantized.
    Off,
    Bias,
    Norm,
    Embedding,
    NotAWeight,
    Rank(usize),
    Conv1d,
    MaybeConv1d,
    TransposedExperts,
    Head,
    Router,
    LinearAttentionGate,
    MtpInput,
    Tower,
    FirstLayers(u32),
    LastLayers(u32),
    /// The list of modules names it.
    Ignored,
    /// The index of a keyword.
    Keyword(usize),
    /// The index of a rule.
    Rule(usize),
    /// The default keeps.
    Default,
    Linear,
    Experts,
}

impl Policy {
    /// A reason in words.
    pub fn explain(&self, reason: Reason) -> String {
        let settings = &self.settings;
        let fixed = match reason {
            Reason::Off => return settings.off.clone().unwrap_or_default(),
            Reason::Rank(rank) => return format!("rank {rank}: only matrices and slabs of experts are quantized"),
            Reason::FirstLayers(layer) => {
                return format!(
                    "layer {layer} is one of the first {} (num_first_layers_in_bf16)",
                    settings.first_layers()
                );
            }
            Reason::LastLayers(layer) => {
                let layers = self.model.layers.unwrap_or(0);
                let last = settings.last_layers();
                return format!("layer {layer} of {layers} is one of the last {last} (num_last_layers_in_bf16)");
            }
            Reason::Keyword(index) => {
                return format!("\"{}\" of quantization_ignored_layer_kws is in its name", settings.keywords[index]);
            }
            Reason::Rule(index) => {
                let (key, text) = settings.rules[index].selector.parts();
                return format!("rules[{index}] ({key} \"{text}\")");
            }
            Reason::Bias => "a bias",
            Reason::Norm => "a norm",
            Reason::Embedding => "an embedding",
            Reason::NotAWeight => "not the weight of a linear layer",
            Reason::Conv1d => "Conv1D: stored transposed, [in, out], so its blocks are not those of a linear",
            Reason::MaybeConv1d => {
                "may be Conv1D, stored transposed, as in GPT-2: only the model's config can tell, and none was given"
            }
            Reason::TransposedExperts => "experts stored transposed, [experts, in, out]",
            Reason::Head => "the output head",
            Reason::Router => "a router of experts",
            Reason::LinearAttentionGate => "a gate of linear attention",
            Reason::MtpInput => "the input projection of multi-token prediction",
            Reason::Tower => "part of a vision or audio tower",
            Reason::Ignored => "the list of ignored modules has it",
            Reason::Default => "the default is keep",
            Reason::Linear => "the weight of a linear layer",
            Reason::Experts => "weights of experts",
        };
        fixed.to_owned()
    }
}
