//! Modules that an engine runs as one: q, k and v; gate and up; all experts of a layer.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::error::{Result, ensure, fail};

use super::json::{self, shown};
use super::names::{Name, parent};
use super::rules::{FAMILIES, SLABS};

/// The last parts of names that are merged into one module.
pub struct PackedModules {
    fused: BTreeMap<String, Vec<String>>,
    member_of: HashMap<String, String>,
}

impl PackedModules {
    /// Reads an engine's packed_modules_mapping. NULL: what nearly every engine merges.
    pub fn read(text: Option<&str>) -> Result<PackedModules> {
        let Some(text) = text else {
            return Ok(PackedModules::new(BTreeMap::from([
                ("qkv_proj".to_owned(), ["q_proj", "k_proj", "v_proj"].map(str::to_owned).to_vec()),
                ("gate_up_proj".to_owned(), ["gate_proj", "up_proj"].map(str::to_owned).to_vec()),
            ])));
        };
        let mut fused = BTreeMap::new();
        for (name, value) in json::parse(text, "packed_modules")? {
            let members: Option<Vec<String>> = match &value {
                Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
                _ => None,
            };
            let Some(members) = members else {
                fail!(InvalidArgument, "packed_modules: {name} is {}, must be an array of strings", shown(&value));
            };
            ensure!(!members.is_empty(), InvalidArgument, "packed_modules: {name} is empty");
            fused.insert(name, members);
        }
        Ok(PackedModules::new(fused))
    }

    fn new(fused: BTreeMap<String, Vec<String>>) -> PackedModules {
        let mut member_of = HashMap::new();
        for (name, members) in &fused {
            for member in members {
                member_of.entry(member.clone()).or_insert_with(|| name.clone());
            }
        }
        PackedModules { fused, member_of }
    }

    pub fn all(&self) -> &BTreeMap<String, Vec<String>> {
        &self.fused
    }

    /// The group of a module that is fused, or a member of one: its name and its members.
    pub fn group_of(&self, last: &str) -> Option<(&str, &[String])> {
        let name = if self.fused.contains_key(last) { last } else { self.member_of.get(last)? };
        self.fused.get_key_value(name).map(|(name, members)| (name.as_str(), members.as_slice()))
    }
}

/// The names of experts whose decision must be that of `name`: with all of them asked, no expert can differ.
/// A module of experts alone has several families, of which a checkpoint has one.
pub fn expert_families(name: &Name, experts: Option<u32>) -> Vec<Vec<String>> {
    let Some((module, rest)) = name.experts_module() else { return Vec::new() };
    let slabs = || SLABS.iter().map(|last| format!("{module}.{last}")).collect();
    if rest.is_empty() {
        let count = experts.unwrap_or(2);
        let all = |family: &[&str; 3]| {
            (0..count).flat_map(|index| family.map(|last| format!("{module}.{index}.{last}"))).collect()
        };
        return FAMILIES.iter().map(all).chain([slabs()]).collect();
    }
    if SLABS.contains(&&rest[1..]) {
        return vec![slabs()];
    }
    let own = vec![name.module.to_owned()];
    let Some(family) = FAMILIES.iter().find(|family| family.contains(&name.last)) else { return vec![own] };
    let mut names: Vec<String> = family.iter().map(|last| name.sibling(last)).collect();
    // What every expert equals equals every other.
    if parent(parent(name.module)) == module {
        names.push(format!("{module}.0.{}", family[0]));
    }
    vec![names]
}
