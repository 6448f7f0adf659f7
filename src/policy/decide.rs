//! From a name and a shape to a decision.
//!
//! In this order: what no setting can change (a bias, a norm, a shape); whether anything is quantized; the settings' rules,
//! lists and keywords; what is kept unless a rule says otherwise (heads, routers, towers); first and last layers; the
//! default.

use crate::error::{Result, ensure, fail};

use super::formats::Forms;
use super::groups::expert_families;
use super::model::Stored;
use super::names::{Leaf, Name, Place, parent};
use super::reason::Reason;
use super::rules::Effect;
use super::{Form, Policy};

/// FP8 in these forms, or kept as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub forms: Option<Forms>,
    pub reason: Reason,
}

/// What the last parts of a module's name say that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Linear,
    Norm,
    Embedding,
    Head,
    Router,
    LinearAttentionGate,
    MtpInput,
}

impl Role {
    fn of(last: &str, parent: &str) -> Role {
        match last {
            "lm_head" | "embed_out" | "score" | "v_head" | "value_head" | "reward_head" => Role::Head,
            "head" if parent == "shared_head" => Role::Head,
            "gate" | "router" | "shared_expert_gate" | "shared_experts_gate" => Role::Router,
            "in_proj_a" | "in_proj_b" | "in_proj_ba" => Role::LinearAttentionGate,
            "eh_proj" => Role::MtpInput,
            "fc" if parent == "mtp" => Role::MtpInput,
            "wte" | "wpe" | "relative_attention_bias" => Role::Embedding,
            _ if last.contains("norm") || last.starts_with("ln_") => Role::Norm,
            _ if last.contains("embed") => Role::Embedding,
            _ => Role::Linear,
        }
    }
}

impl Decision {
    fn keep(reason: Reason) -> Decision {
        Decision { forms: None, reason }
    }

    /// The same treatment, for whatever reason.
    fn agrees(&self, other: &Decision) -> bool {
        self.forms == other.forms
    }
}

fn last_of(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

impl Policy {
    /// For a parameter of the checkpoint. `shape`: None if it is not known.
    pub fn decide(&self, parameter: &str, shape: Option<&[i64]>) -> Result<Decision> {
        let name = Name::of_parameter(parameter)?;
        if let Some(&extent) = shape.unwrap_or_default().iter().find(|&&extent| extent < 0) {
            fail!(Shape, "{parameter}: shape has {extent}, must be at least 0");
        }
        match self.fact(&name, shape) {
            Some(reason) => Ok(Decision::keep(reason)),
            None => self.decide_linear(&name, true),
        }
    }

    /// For a module of an engine, which may be a fused one.
    pub fn decide_module(&self, prefix: &str) -> Result<Decision> {
        ensure!(!prefix.is_empty(), InvalidArgument, "prefix is empty");
        // How vLLM calls what holds the weights of experts.
        let prefix = prefix.strip_suffix(".routed_experts").unwrap_or(prefix);
        let mapped = self.prefixes.to_checkpoint(prefix);
        let name = Name::of_module(mapped.as_deref().unwrap_or(prefix));
        match self.fact(&name, None) {
            Some(reason) => Ok(Decision::keep(reason)),
            None => self.decide_linear(&name, false),
        }
    }

    /// Why no setting can make it FP8.
    fn fact(&self, name: &Name, shape: Option<&[i64]>) -> Option<Reason> {
        match name.leaf {
            Leaf::Other(leaf) if leaf.ends_with("bias") => return Some(Reason::Bias),
            Leaf::Other(_) => return Some(Reason::NotAWeight),
            Leaf::Slab if self.model.expert_slabs == Stored::Transposed => return Some(Reason::TransposedExperts),
            Leaf::Slab | Leaf::Weight => {}
        }
        match Role::of(name.last, last_of(parent(name.module))) {
            Role::Norm => return Some(Reason::Norm),
            Role::Embedding => return Some(Reason::Embedding),
            _ => {}
        }
        if let Some(shape) = shape {
            let fits = match name.leaf {
                Leaf::Slab => shape.len() == 3,
                _ => shape.len() == 2 || (shape.len() == 3 && name.experts.is_some()),
            };
            if !fits {
                return Some(Reason::Rank(shape.len()));
            }
        }
        self.conv1d(name)
    }

    fn conv1d(&self, name: &Name) -> Option<Reason> {
        if !matches!(name.last, "c_attn" | "c_proj" | "c_fc" | "q_attn") {
            return None;
        }
        match self.model.linears {
            Stored::Plain => None,
            Stored::Transposed => Some(Reason::Conv1d),
            Stored::Unknown => Some(Reason::MaybeConv1d),
        }
    }

    fn decide_linear(&self, name: &Name, is_parameter: bool) -> Result<Decision> {
        if self.settings.off.is_some() {
            return Ok(Decision::keep(Reason::Off));
        }
        if name.experts.is_some() {
            return self.decide_experts(name);
        }
        match self.packed.group_of(name.last) {
            // One tensor in the checkpoint already.
            Some((fused, _)) if is_parameter && fused == name.last => Ok(self.settle(name)),
            Some((fused, members)) if !self.treats_alike(members) => self.decide_fused(name, fused, members),
            _ => Ok(self.settle(name)),
        }
    }

    /// Whether nothing can tell the members of a group apart.
    fn treats_alike(&self, members: &[String]) -> bool {
        self.rules.is_empty() && members.iter().all(|member| Role::of(member, "") == Role::of(&members[0], ""))
    }

    /// All members as one, or an error. A list may name the fused module itself.
    fn decide_fused(&self, name: &Name, fused: &str, members: &[String]) -> Result<Decision> {
        let whole = name.sibling(fused);
        if let Some(decision) = self.listed(&whole) {
            return Ok(decision);
        }
        let decisions: Vec<Decision> =
            members.iter().map(|member| self.settle(&Name::of_module(&name.sibling(member)))).collect();
        for (member, decision) in members.iter().zip(&decisions) {
            if !decision.agrees(&decisions[0]) {
                return self.refuse(&whole, (&members[0], decisions[0]), (member, *decision));
            }
        }
        let own = members.iter().position(|member| member == name.last).unwrap_or(0);
        Ok(decisions[own])
    }

    /// All experts of a layer as one, or an error.
    fn decide_experts(&self, name: &Name) -> Result<Decision> {
        let Some((module, _)) = name.experts_module() else { return Ok(self.settle(name)) };
        let base = self.experts_without_rules(module, name);
        if !self.rules.has_rules() {
            return Ok(base);
        }
        if let Some(decision) = self.ruled(module) {
            return Ok(decision);
        }
        let mut found: Option<(String, Decision)> = None;
        for family in expert_families(name, self.model.experts) {
            let decide = |name: String| (self.ruled(&name).unwrap_or(base), name);
            let mut decisions = family.into_iter().map(decide);
            let Some((first, first_name)) = decisions.next() else { continue };
            if let Some((other, other_name)) = decisions.find(|(other, _)| !other.agrees(&first)) {
                return self.refuse(module, (&first_name, first), (&other_name, other));
            }
            match &found {
                // A family that no rule names is not the checkpoint's.
                _ if first == base => {}
                Some((name, decision)) if !decision.agrees(&first) => {
                    return self.refuse(module, (name, *decision), (&first_name, first));
                }
                _ => found = Some((first_name, first)),
            }
        }
        Ok(found.map_or(base, |(_, decision)| decision))
    }

    fn experts_without_rules(&self, module: &str, name: &Name) -> Decision {
        if self.rules.ignores_experts(module) {
            return Decision::keep(Reason::Ignored);
        }
        if let Some(index) = self.rules.keyword_of_experts(module) {
            return Decision::keep(Reason::Keyword(index));
        }
        self.by_place(name)
    }

    /// What a rule says.
    fn ruled(&self, module: &str) -> Option<Decision> {
        let (index, effect) = self.rules.rule(module)?;
        let forms = match effect {
            Effect::Keep => None,
            Effect::Fp8(forms) => Some(forms),
        };
        Some(Decision { forms, reason: Reason::Rule(index) })
    }

    /// What rules and the list say about one module.
    fn listed(&self, module: &str) -> Option<Decision> {
        let ignored = || self.rules.ignores(module).then(|| Decision::keep(Reason::Ignored));
        self.ruled(module).or_else(ignored)
    }

    /// As [`Policy::listed`], and what keywords say. They are about names in checkpoints, not those of fused modules.
    fn selected(&self, module: &str) -> Option<Decision> {
        if self.rules.is_empty() {
            return None;
        }
        let keyword = || self.rules.keyword(module).map(|index| Decision::keep(Reason::Keyword(index)));
        self.listed(module).or_else(keyword)
    }

    /// One module by itself.
    fn settle(&self, name: &Name) -> Decision {
        if let Some(decision) = self.selected(name.module) {
            return decision;
        }
        let reason = match Role::of(name.last, last_of(parent(name.module))) {
            Role::Linear => return self.by_place(name),
            Role::Norm => Reason::Norm,
            Role::Embedding => Reason::Embedding,
            Role::Head => Reason::Head,
            Role::Router => Reason::Router,
            Role::LinearAttentionGate => Reason::LinearAttentionGate,
            Role::MtpInput => Reason::MtpInput,
        };
        Decision::keep(reason)
    }

    /// By tower, layer and default.
    fn by_place(&self, name: &Name) -> Decision {
        let settings = &self.settings;
        if name.place == Place::Tower {
            return Decision::keep(Reason::Tower);
        }
        if let (Place::Decoder, Some(layer)) = (name.place, name.layer) {
            let layers = self.model.layers.unwrap_or(u32::MAX);
            if layer < layers && layer < settings.first_layers() {
                return Decision::keep(Reason::FirstLayers(layer));
            }
            if layer < layers && layer >= layers - settings.last_layers() {
                return Decision::keep(Reason::LastLayers(layer));
            }
        }
        if settings.keep_by_default {
            return Decision::keep(Reason::Default);
        }
        let reason = if name.experts.is_some() { Reason::Experts } else { Reason::Linear };
        Decision { forms: Some(settings.forms), reason }
    }

    /// A group would be FP8 in part.
    fn refuse(&self, group: &str, one: (&str, Decision), other: (&str, Decision)) -> Result<Decision> {
        let [one, other] = [one, other].map(|(name, decision)| {
            let treatment = if decision.forms.is_some() { "FP8" } else { "kept" };
            let form = |form: Form| super::canonical::form_text(form);
            let forms = decision
                .forms
                .map_or(String::new(), |forms| format!(" {} x {}", form(forms.weight), form(forms.activation)));
            format!("{name} is {treatment}{forms} ({})", self.explain(decision.reason))
        });
        fail!(InvalidArgument, "{group} runs as one, and its members differ: {one}, but {other}")
    }
}
