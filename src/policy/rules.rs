//! What the settings say about names: rules in order, a list of modules, keywords.

use std::collections::{HashMap, HashSet};

use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};

use crate::error::{Result, fail};

use super::formats::Forms;
use super::settings::Settings;

/// Which modules a rule is about. The text of each is about the whole name of a module.
#[derive(Clone, Debug)]
pub enum Selector {
    Name(String),
    /// Up to a dot.
    Prefix(String),
    /// `*` is any text, dots too; `?` is one character.
    Glob(String),
    Regex(String),
    /// Need not reach the end of the name.
    RegexFromBeginning(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Effect {
    Keep,
    Fp8(Forms),
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub selector: Selector,
    pub effect: Effect,
}

impl Selector {
    /// `key` is one of name, prefix, glob and regex.
    pub fn new(key: &str, text: String) -> Selector {
        // A name may be that of the parameter.
        let module = |text: String| text.strip_suffix(".weight").map(str::to_owned).unwrap_or(text);
        match key {
            "name" => Selector::Name(module(text)),
            "prefix" => Selector::Prefix(text.strip_suffix('.').map(str::to_owned).unwrap_or(text)),
            "glob" => Selector::Glob(module(text)),
            _ => Selector::Regex(text),
        }
    }

    /// The key and the text.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Selector::Name(text) => ("name", text),
            Selector::Prefix(text) => ("prefix", text),
            Selector::Glob(text) => ("glob", text),
            Selector::Regex(text) => ("regex", text),
            Selector::RegexFromBeginning(text) => ("regex_from_beginning", text),
        }
    }

    /// As a regular expression over the whole name, if it is a pattern.
    fn pattern(&self) -> Option<String> {
        match self {
            Selector::Name(_) | Selector::Prefix(_) => None,
            Selector::Glob(text) => {
                Some(format!(r"\A{}\z", regex::escape(text).replace(r"\*", "(?s:.)*").replace(r"\?", "(?s:.)")))
            }
            Selector::Regex(text) => Some(format!(r"\A(?:{text})\z")),
            Selector::RegexFromBeginning(text) => Some(format!(r"\A(?:{text})")),
        }
    }
}

pub struct Rules {
    effects: Vec<Effect>,
    /// The first rule of each name and prefix.
    names: HashMap<String, usize>,
    prefixes: HashMap<String, usize>,
    /// Where a prefix can end.
    prefix_lengths: Vec<usize>,
    patterns: RegexSet,
    /// The rule of each pattern, ascending.
    pattern_rules: Vec<usize>,
    ignored: HashSet<String>,
    /// Modules of experts that an ignored name lies in.
    ignored_experts: HashSet<String>,
    keywords: Vec<Keyword>,
}

impl Rules {
    pub fn new(settings: &Settings) -> Result<Rules> {
        let (mut names, mut prefixes) = (HashMap::new(), HashMap::new());
        let (mut patterns, mut pattern_rules) = (Vec::new(), Vec::new());
        for (index, rule) in settings.rules.iter().enumerate() {
            match &rule.selector {
                Selector::Name(text) => drop(names.entry(text.clone()).or_insert(index)),
                Selector::Prefix(text) => drop(prefixes.entry(text.clone()).or_insert(index)),
                selector => {
                    patterns.extend(selector.pattern());
                    pattern_rules.push(index);
                    check(selector)?;
                }
            }
        }
        let Ok(patterns) = RegexSetBuilder::new(&patterns).unicode(false).build() else {
            fail!(InvalidArgument, "settings: the {} patterns of the rules are too large together", patterns.len());
        };
        let mut prefix_lengths: Vec<usize> = prefixes.keys().map(String::len).collect();
        prefix_lengths.sort_unstable();
        prefix_lengths.dedup();
        Ok(Rules {
            effects: settings.rules.iter().map(|rule| rule.effect).collect(),
            names,
            prefix_lengths,
            prefixes,
            patterns,
            pattern_rules,
            ignored: settings.ignored.iter().cloned().collect(),
            ignored_experts: settings.ignored.iter().flat_map(|name| expert_modules(name)).collect(),
            keywords: settings.keywords.iter().map(|text| Keyword::new(text)).collect(),
        })
    }

    /// Whether the settings name no module at all.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty() && self.ignored.is_empty() && self.keywords.is_empty()
    }

    /// Whether there are rules of our own kind.
    pub fn has_rules(&self) -> bool {
        !self.effects.is_empty()
    }

    /// The first rule about a module.
    pub fn rule(&self, module: &str) -> Option<(usize, Effect)> {
        let name = if self.names.is_empty() { None } else { self.names.get(module).copied() };
        let prefix = if self.prefixes.is_empty() { None } else { self.prefix_rule(module) };
        let pattern = if self.pattern_rules.is_empty() { None } else { self.pattern_rule(module) };
        let first = [name, prefix, pattern].into_iter().flatten().min()?;
        Some((first, self.effects[first]))
    }

    fn prefix_rule(&self, module: &str) -> Option<usize> {
        let ends_part = |end: usize| end == module.len() || module.as_bytes().get(end) == Some(&b'.');
        let ends = self.prefix_lengths.iter().filter(|&&end| ends_part(end));
        ends.filter_map(|&end| self.prefixes.get(&module[..end]).copied()).min()
    }

    fn pattern_rule(&self, module: &str) -> Option<usize> {
        // Most names match nothing, and that is quicker to learn than which patterns match.
        if !self.patterns.is_match(module.as_bytes()) {
            return None;
        }
        self.patterns.matches(module.as_bytes()).iter().next().map(|index| self.pattern_rules[index])
    }

    pub fn ignores(&self, module: &str) -> bool {
        !self.ignored.is_empty() && self.ignored.contains(module)
    }

    /// Whether any expert of the module is in the list: then vLLM keeps them all.
    pub fn ignores_experts(&self, module: &str) -> bool {
        !self.ignored_experts.is_empty() && self.ignored_experts.contains(module)
    }

    /// The index of a keyword in the name of a module.
    pub fn keyword(&self, module: &str) -> Option<usize> {
        self.keywords.iter().position(|keyword| module.contains(&keyword.text))
    }

    /// As [`Rules::keyword`], for a module of experts: in the name of any expert.
    pub fn keyword_of_experts(&self, module: &str) -> Option<usize> {
        self.keywords.iter().position(|keyword| keyword.is_in_experts(module))
    }
}

/// A pattern alone, so that a fault names it.
fn check(selector: &Selector) -> Result<()> {
    let Some(pattern) = selector.pattern() else { return Ok(()) };
    if let Err(error) = RegexBuilder::new(&pattern).unicode(false).build() {
        let (key, text) = selector.parts();
        let error = error.to_string();
        let cause = error.lines().last().unwrap_or_default().trim().to_owned();
        fail!(InvalidArgument, "settings: {key} \"{text}\" is not a pattern: {cause}");
    }
    Ok(())
}

/// The modules of experts that a list with this name keeps: vLLM asks whether the module's name lies anywhere in it.
fn expert_modules(name: &str) -> Vec<String> {
    if !name.contains("experts") {
        return Vec::new();
    }
    let dots: Vec<usize> = name.match_indices('.').map(|(at, _)| at).collect();
    let firsts = [0].into_iter().chain(dots.iter().map(|at| at + 1));
    let ends = dots.iter().copied().chain([name.len()]);
    let ends: Vec<usize> = ends.filter(|&end| name[..end].ends_with("experts")).collect();
    firsts
        .flat_map(|first| ends.iter().filter(move |&&end| end > first).map(move |&end| name[first..end].to_owned()))
        .collect()
}

/// The names of projections inside an expert.
pub const FAMILIES: [[&str; 3]; 2] = [["gate_proj", "up_proj", "down_proj"], ["w1", "w2", "w3"]];
/// The names of slabs of experts.
pub const SLABS: [&str; 2] = ["gate_up_proj", "down_proj"];

/// A part of a name, and where in the names of experts it can lie.
struct Keyword {
    text: String,
    /// It lies in what follows the module of experts, whatever that is.
    in_every_module: bool,
    /// The module ends with one of these beginnings of the keyword, and an expert's name goes on with its rest.
    beginnings: Vec<String>,
}

impl Keyword {
    fn new(text: &str) -> Keyword {
        let tails = tails(text);
        let continues = |rest: &str| tails.iter().any(|tail| tail.starts_with(rest));
        let cuts = text.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
        Keyword {
            text: text.to_owned(),
            in_every_module: tails.iter().any(|tail| tail.contains(text)),
            beginnings: cuts.filter(|&at| continues(&text[at..])).map(|at| text[..at].to_owned()).collect(),
        }
    }

    fn is_in_experts(&self, module: &str) -> bool {
        let ends = || self.beginnings.iter().any(|beginning| module.ends_with(beginning.as_str()));
        self.in_every_module || module.contains(&self.text) || ends()
    }
}

/// What may follow a module of experts, as far as it matters for a keyword: of the numbers, those in the keyword.
fn tails(keyword: &str) -> Vec<String> {
    let numbers = keyword.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let numbers: Vec<&str> = numbers.chain(["0"]).collect();
    let one = |number: &str| FAMILIES.iter().flatten().map(|name| format!(".{number}.{name}")).collect::<Vec<_>>();
    let slabs = SLABS.iter().map(|name| format!(".{name}"));
    numbers.into_iter().flat_map(one).chain(slabs).collect()
}
