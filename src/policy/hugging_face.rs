//! Hugging Face's `quantization_config`, read as vLLM reads it.

use serde_json::{Map, Value};

use crate::error::{Result, ensure, fail};
use crate::recipe::ScaleFormat;

use super::formats::Forms;
use super::json::{self, Object, shown};
use super::own;
use super::rules::{Effect, Rule, Selector};
use super::settings::Settings;

const KEYS: [&str; 9] = [
    "quant_method",
    "fmt",
    "scale_fmt",
    "activation_scheme",
    "weight_block_size",
    "ignored_layers",
    "modules_to_not_convert",
    "ignore",
    "store_dtype",
];

/// The settings that the model's own configuration holds, also that of its decoder.
pub fn from_config(config: Option<&str>) -> Result<Map<String, Value>> {
    let Some(text) = config else { fail!(NullPointer, "settings and config are NULL") };
    let map = json::parse(text, "config")?;
    let whole = Object::new("config", &map);
    let decoder = whole.object("text_config")?;
    let found = match whole.object("quantization_config")? {
        Some(found) => Some(found),
        None => decoder.map(|decoder| decoder.object("quantization_config")).transpose()?.flatten(),
    };
    match found {
        Some(found) => Ok(found.map.clone()),
        None => fail!(InvalidArgument, "settings is NULL, and config has no quantization_config"),
    }
}

/// Reads a `quantization_config`, or an object that holds one.
pub fn read(given: &Object, settings: &mut Settings) -> Result<()> {
    if let Some(inner) = given.object("quantization_config")? {
        read(&inner, settings)?;
        return own::read_beside(given, settings);
    }
    given.expect_no_typos(&KEYS)?;
    check(given)?;
    let format = match given.string("scale_fmt")? {
        None | Some("float") | Some("float32") => ScaleFormat::Fp32,
        Some("ue8m0") => ScaleFormat::Pow2,
        Some(other) => fail!(Unsupported, "{}: scale_fmt is \"{other}\", known are float and ue8m0", given.name),
    };
    let mut forms = Forms::default();
    (forms.weight.format, forms.activation.format) = (format, format);
    settings.forms = forms;
    read_ignored(given, settings)?;
    own::read_beside(given, settings)
}

/// What has one value that this library can do.
fn check(given: &Object) -> Result<()> {
    let name = &given.name;
    let method = given.string("quant_method")?.unwrap_or("not set");
    ensure!(method == "fp8", Unsupported, "{name}: quant_method is {method}, must be fp8");
    let fmt = given.string("fmt")?.unwrap_or("e4m3");
    ensure!(fmt == "e4m3" || fmt == "float8_e4m3fn", Unsupported, "{name}: fmt is {fmt}, must be e4m3");
    let scheme = given.string("activation_scheme")?.unwrap_or("dynamic");
    ensure!(scheme == "dynamic", Unsupported, "{name}: activation_scheme is {scheme}, must be dynamic");
    if let Some(stored) = given.string("store_dtype")? {
        fail!(Unsupported, "{name}: store_dtype is {stored}: only FP8 is known");
    }
    let Some(size) = given.array("weight_block_size")? else {
        fail!(Unsupported, "{name}: weight_block_size is not set (a scale per tensor), must be [128, 128]");
    };
    let fits = size.len() == 2 && size.iter().all(|extent| extent.as_u64() == Some(128));
    let size = Value::Array(size.clone());
    ensure!(fits, Unsupported, "{name}: weight_block_size is {}, must be [128, 128]", shown(&size));
    Ok(())
}

/// vLLM takes the first of the lists that is not empty. Where another says something else, that is worth a warning.
fn read_ignored(given: &Object, settings: &mut Settings) -> Result<()> {
    let mut taken: Option<(&str, Vec<String>)> = None;
    for key in ["ignored_layers", "modules_to_not_convert", "ignore"] {
        let list = given.strings(key)?.unwrap_or_default();
        match &taken {
            _ if list.is_empty() => {}
            None => taken = Some((key, list)),
            Some((first, other)) if *other != list => settings
                .warnings
                .push(format!("{key} is not read, because {first} is not empty: so does vLLM, and the two differ")),
            Some(_) => {}
        }
    }
    let Some((key, list)) = taken else { return Ok(()) };
    // As compressed-tensors' list of this name: a regular expression from the beginning of a name on.
    let pattern = |entry: &str| if key == "ignore" { entry.strip_prefix("re:").map(str::to_owned) } else { None };
    for entry in list {
        match pattern(&entry) {
            Some(pattern) => {
                settings.rules.push(Rule { selector: Selector::RegexFromBeginning(pattern), effect: Effect::Keep })
            }
            None => settings.ignored.push(entry),
        }
    }
    Ok(())
}
