//! The parts of a name: module, layer, tower, experts. A dot is a dot: nothing here looks inside a part.

use crate::error::{Result, ensure, fail};

use super::json;

/// Which part of the model a name belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Decoder,
    /// Multi-token prediction: layers after the decoder's.
    Mtp,
    /// A vision or audio tower, or what projects its output. Its layers are not the decoder's.
    Tower,
}

/// What the last part of a parameter's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf<'a> {
    /// "weight": the module is what comes before.
    Weight,
    /// All experts of a layer in one tensor: the name is the module's.
    Slab,
    Other(&'a str),
}

#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// The name without ".weight".
    pub module: &'a str,
    pub leaf: Leaf<'a>,
    /// The last part of the module.
    pub last: &'a str,
    pub place: Place,
    /// The number after "layers", "layer", "h", "blocks" or "block".
    pub layer: Option<u32>,
    /// Length of the module's name up to and with the part "experts".
    pub experts: Option<usize>,
    pub tower: &'a str,
}

/// Words before a layer's number.
pub const LAYER_WORDS: [&str; 5] = ["layers", "layer", "h", "blocks", "block"];
const SLABS: [&str; 8] = ["gate_up_proj", "down_proj", "gate_proj", "up_proj", "w13_weight", "w2_weight", "w13", "w2"];
const TOWERS: [&str; 6] =
    ["multi_modal_projector", "mm_projector", "img_processor", "img_projection", "vit", "aligner"];

fn is_tower(part: &str) -> bool {
    let first = part.as_bytes().first();
    let names = match first {
        Some(b'v') => part.starts_with("vision") || part.starts_with("visual"),
        Some(b'a') => part.starts_with("audio"),
        Some(b's') => part.starts_with("speech"),
        _ => false,
    };
    names || TOWERS.contains(&part)
}

/// Without its last part.
pub fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}

impl<'a> Name<'a> {
    /// A checkpoint's parameter, "model.layers.0.mlp.up_proj.weight".
    pub fn of_parameter(full: &'a str) -> Result<Name<'a>> {
        ensure!(!full.is_empty(), InvalidArgument, "name is empty");
        let (before, last) = full.rsplit_once('.').unwrap_or(("", full));
        let slab = || SLABS.contains(&last) && (before == "experts" || before.ends_with(".experts"));
        let (module, leaf) = match last {
            "weight" if !before.is_empty() => (before, Leaf::Weight),
            _ if slab() => (full, Leaf::Slab),
            _ => (full, Leaf::Other(last)),
        };
        Ok(Name { leaf, ..Name::of_module(module) })
    }

    /// A module, in a checkpoint's terms.
    pub fn of_module(module: &'a str) -> Name<'a> {
        let mut name =
            Name { module, leaf: Leaf::Weight, last: "", place: Place::Decoder, layer: None, experts: None, tower: "" };
        let mut end = 0;
        for part in module.split('.') {
            end += part.len();
            name.take(part, end);
            end += 1;
        }
        name
    }

    /// Looks at the next part, which ends at `end`.
    fn take(&mut self, part: &'a str, end: usize) {
        let number = part.as_bytes().first().is_some_and(u8::is_ascii_digit);
        if number && self.layer.is_none() && LAYER_WORDS.contains(&self.last) {
            self.layer = part.parse().ok();
        } else if part == "experts" {
            self.experts = self.experts.or(Some(end));
        } else if self.place != Place::Tower && is_tower(part) {
            self.place = Place::Tower;
            self.tower = part;
        } else if self.place == Place::Decoder && (part == "mtp" || part == "mtp_block") {
            self.place = Place::Mtp;
        }
        self.last = part;
    }

    /// Name of the module that holds all routed experts of the layer, and the rest of the name.
    pub fn experts_module(&self) -> Option<(&'a str, &'a str)> {
        self.experts.map(|end| self.module.split_at(end))
    }

    /// The same module with another last part.
    pub fn sibling(&self, last: &str) -> String {
        match parent(self.module) {
            "" => last.to_owned(),
            parent => format!("{parent}.{last}"),
        }
    }
}

/// From an engine's prefixes to the checkpoint's.
#[derive(Debug, Default)]
pub struct Prefixes {
    /// Longest first.
    pairs: Vec<(String, String)>,
}

impl Prefixes {
    pub fn read(text: Option<&str>) -> Result<Prefixes> {
        let Some(text) = text else { return Ok(Prefixes::default()) };
        let mut pairs = Vec::new();
        for (engine, checkpoint) in json::parse(text, "prefixes")? {
            let Some(checkpoint) = checkpoint.as_str() else {
                fail!(InvalidArgument, "prefixes: {engine} is {}, must be a string", json::shown(&checkpoint));
            };
            let trimmed = |prefix: &str| prefix.strip_suffix('.').unwrap_or(prefix).to_owned();
            pairs.push((trimmed(&engine), trimmed(checkpoint)));
        }
        pairs.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.0.cmp(&b.0)));
        Ok(Prefixes { pairs })
    }

    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The checkpoint's name of an engine's module, if a prefix fits.
    pub fn to_checkpoint(&self, module: &str) -> Option<String> {
        self.pairs.iter().find_map(|(engine, checkpoint)| {
            let rest = if engine.is_empty() { module } else { rest_after(module, engine)? };
            Some(match (checkpoint.is_empty(), rest.is_empty()) {
                (true, _) => rest.to_owned(),
                (false, true) => checkpoint.clone(),
                (false, false) => format!("{checkpoint}.{rest}"),
            })
        })
    }
}

/// What follows `prefix` and its dot: empty if nothing does, None if `prefix` does not end at a dot of `name`.
fn rest_after<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(prefix)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
}
