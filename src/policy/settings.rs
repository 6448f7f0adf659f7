//! The settings as they are after reading: one form, whoever wrote them.

use serde_json::{Map, Value};

use crate::error::{Result, ensure, fail};

use super::formats::Forms;
use super::json::{self, Object};
use super::model::Model;
use super::names::Prefixes;
use super::rules::Rule;
use super::{hugging_face, nemo_rl, own, verl};

/// Whose settings a text holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Told from its keys.
    Auto,
    NemoRl,
    HuggingFace,
    Verl,
    Fp8rt,
}

/// The texts that a policy is made of.
pub struct Source<'a> {
    pub kind: Kind,
    pub settings: Option<&'a str>,
    /// The model's config.json.
    pub config: Option<&'a str>,
    /// The engine's packed_modules_mapping.
    pub packed_modules: Option<&'a str>,
    /// From the engine's prefixes to the checkpoint's.
    pub prefixes: Option<&'a str>,
}

#[derive(Debug, Default)]
pub struct Settings {
    /// Why nothing is quantized at all.
    pub off: Option<String>,
    pub forms: Forms,
    /// What nothing else decides is kept.
    pub keep_by_default: bool,
    pub use_deep_gemm: Option<bool>,
    pub first_layers: Option<u32>,
    pub last_layers: Option<u32>,
    pub kv_cache_dtype: Option<String>,
    /// Names of modules, matched as vLLM matches `ignored_layers`.
    pub ignored: Vec<String>,
    /// Parts of names, matched as NeMo-RL matches `quantization_ignored_layer_kws`.
    pub keywords: Vec<String>,
    /// The first that matches decides, before anything else.
    pub rules: Vec<Rule>,
    pub warnings: Vec<String>,
}

/// Reads the settings of whatever kind.
pub fn resolve(source: &Source) -> Result<Settings> {
    let mut settings = Settings::default();
    let map = match (source.settings, source.kind) {
        (Some(text), _) => json::parse(text, "settings")?,
        (None, Kind::HuggingFace) => hugging_face::from_config(source.config)?,
        (None, Kind::Auto | Kind::Fp8rt) => Map::new(),
        (None, _) => fail!(NullPointer, "settings is NULL"),
    };
    let kind = match (source.kind, source.settings) {
        (Kind::Auto, None) => Kind::Fp8rt,
        (Kind::Auto, Some(_)) => detect(&map)?,
        (kind, _) => kind,
    };
    let object = Object::new("settings", &map);
    match kind {
        Kind::NemoRl => nemo_rl::read(&object, &mut settings)?,
        Kind::HuggingFace => hugging_face::read(&object, &mut settings)?,
        Kind::Verl => verl::read(&object, &mut settings)?,
        Kind::Auto | Kind::Fp8rt => own::read(&object, &mut settings)?,
    }
    settings.ignored.sort();
    settings.ignored.dedup();
    settings.keywords.sort();
    settings.keywords.dedup();
    Ok(settings)
}

/// Tells whose settings these are. Our own object beside another's keys belongs to that other.
fn detect(map: &Map<String, Value>) -> Result<Kind> {
    let has = |keys: &[&str]| keys.iter().any(|key| map.contains_key(*key));
    let method = map.get("quant_method").and_then(Value::as_str);
    if method == Some("fp8rt") {
        return Ok(Kind::Fp8rt);
    }
    if has(&["quant_method", "quantization_config"]) {
        return Ok(Kind::HuggingFace);
    }
    if has(&["vllm_cfg"]) || has(&nemo_rl::KEYS) {
        return Ok(Kind::NemoRl);
    }
    if has(&verl::KEYS) {
        return Ok(Kind::Verl);
    }
    if has(&["fp8rt"]) {
        return Ok(Kind::Fp8rt);
    }
    fail!(
        InvalidArgument,
        "settings: none of the keys tells whose they are (precision: NeMo-RL; quant_method: Hugging Face; rollout: verl; \
         fp8rt: this library's); set kind"
    )
}

impl Settings {
    pub fn first_layers(&self) -> u32 {
        self.first_layers.unwrap_or(0)
    }

    pub fn last_layers(&self) -> u32 {
        self.last_layers.unwrap_or(0)
    }

    /// The kept layers must be layers that the model has.
    pub fn check_layers(&self, model: &Model) -> Result<()> {
        let (first, last) = (self.first_layers(), self.last_layers());
        let Some(layers) = model.layers else {
            ensure!(
                last == 0,
                InvalidArgument,
                "num_last_layers_in_bf16 is {last}: config is needed, with num_hidden_layers"
            );
            return Ok(());
        };
        let kept = u64::from(first) + u64::from(last);
        ensure!(
            kept <= u64::from(layers),
            InvalidArgument,
            "num_first_layers_in_bf16 + num_last_layers_in_bf16 is {first} + {last} = {kept}, the model has {layers} layers"
        );
        Ok(())
    }

    /// A list may have the engine's names: then the checkpoint's are added to it.
    pub fn translate_ignored(&mut self, prefixes: &Prefixes) {
        let more: Vec<String> = self.ignored.iter().filter_map(|name| prefixes.to_checkpoint(name)).collect();
        self.ignored.extend(more);
        self.ignored.sort();
        self.ignored.dedup();
    }

    /// Sets what two objects may say, if they say the same.
    pub fn set<T: PartialEq + std::fmt::Debug>(place: &mut Option<T>, given: Option<T>, key: &str) -> Result<()> {
        match (&*place, given) {
            (_, None) => {}
            (Some(old), Some(new)) if *old != new => {
                fail!(InvalidArgument, "{key} is given twice, as {old:?} and as {new:?}")
            }
            (_, given) => *place = given,
        }
        Ok(())
    }
}
