//! Layer and projection, from a parameter's name.

use crate::policy::LAYER_WORDS;

/// What a name says: `model.layers.7.mlp.experts.3.up_proj.weight` is layer 7 of the stack `model.layers`, projection
/// `mlp.experts.*.up_proj`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What stands before the layer's number; `None`: it is in no layer.
    pub stack: Option<String>,
    pub layer: u32,
    pub projection: String,
}

/// Reads a name.
pub fn parse(name: &str) -> Place {
    let words: Vec<&str> = name.split('.').collect();
    let is_layer = |at: &usize| LAYER_WORDS.contains(&words[at - 1]) && number(words[*at]).is_some();
    match (1..words.len()).find(is_layer) {
        Some(at) => Place {
            stack: Some(words[..at].join(".")),
            layer: number(words[at]).expect("found above"),
            projection: projection(&words[at + 1..]),
        },
        None => Place { stack: None, layer: 0, projection: projection(&words) },
    }
}

fn number(word: &str) -> Option<u32> {
    // A sign is none of a layer's number.
    word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok()).flatten()
}

/// The rest of a name: without `weight`, and alike for all experts.
fn projection(words: &[&str]) -> String {
    let words = match words {
        [before @ .., "weight"] if !before.is_empty() => before,
        all => all,
    };
    let alike = |word: &&str| if number(word).is_some() { "*".to_owned() } else { (*word).to_owned() };
    words.iter().map(alike).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_layer(name: &str) -> (Option<String>, u32, String) {
        let Place { stack, layer, projection } = parse(name);
        (stack, layer, projection)
    }

    #[test]
    fn layers_and_projections_are_found() {
        let place = |stack: &str, layer, projection: &str| (Some(stack.to_owned()), layer, projection.to_owned());
        assert_eq!(in_layer("model.layers.10.mlp.up_proj.weight"), place("model.layers", 10, "mlp.up_proj"));
        assert_eq!(in_layer("transformer.h.0.attn.c_attn.weight"), place("transformer.h", 0, "attn.c_attn"));
        assert_eq!(in_layer("visual.blocks.3.mlp.fc1.weight"), place("visual.blocks", 3, "mlp.fc1"));
        let expert = "model.layers.7.mlp.experts.31.up_proj.weight";
        assert_eq!(in_layer(expert), place("model.layers", 7, "mlp.experts.*.up_proj"));
        assert_eq!(in_layer("layers.2.w13_weight"), place("layers", 2, "w13_weight"));
    }

    #[test]
    fn other_names_are_in_no_layer() {
        for (name, projection) in [("lm_head.weight", "lm_head"), ("weight", "weight"), ("layers.x.w", "layers.x.w")] {
            assert_eq!(in_layer(name), (None, 0, projection.to_owned()));
        }
        assert_eq!(parse("layers.+1.w").stack, None);
        assert_eq!(parse("").projection, "");
    }
}
