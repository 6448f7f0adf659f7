//! NeMo-RL's `vllm_cfg`, as it is: keys for other things are nobody's business here.

use crate::error::{Result, ensure};
use crate::recipe::ScaleFormat;

use super::json::Object;
use super::own;
use super::settings::Settings;

/// The keys that are read.
pub const KEYS: [&str; 11] = [
    "precision",
    "use_deep_gemm",
    "num_first_layers_in_bf16",
    "num_last_layers_in_bf16",
    WEIGHT,
    ACTIVATION,
    "quantization_ignored_layer_kws",
    "is_mx",
    "kv_cache_dtype",
    OLD_WEIGHT,
    OLD_ACTIVATION,
];

const WEIGHT: &str = "pow2_weight_scaling_factors";
const ACTIVATION: &str = "pow2_activation_scaling_factors";
/// The names that NeMo-RL's documentation had once and that its code never read.
const OLD_WEIGHT: &str = "use_weight_pow2_scale";
const OLD_ACTIVATION: &str = "use_activation_pow2_scale";

/// Newer, and for MXFP8 alone; but whoever sets it means to keep something.
const MX_PATTERNS: &str = "quantization_ignore_patterns";

/// Reads a `vllm_cfg`, or an object that holds one.
pub fn read(given: &Object, settings: &mut Settings) -> Result<()> {
    if let Some(inner) = given.object("vllm_cfg")? {
        read(&inner, settings)?;
        return own::read_beside(given, settings);
    }
    given.expect_no_typos(&KEYS)?;
    ensure!(
        given.boolean("is_mx")? != Some(true),
        Unsupported,
        "{}: is_mx is true: that is MXFP8 of Blackwell, with groups of 32; this library has blocks of 128",
        given.name
    );
    let precision = given.string("precision")?;
    if precision != Some("fp8") {
        let shown = precision.map_or("not set".to_owned(), |value| format!("\"{value}\""));
        settings.off = Some(format!("precision is {shown}, not \"fp8\""));
    }
    let pow2 = |on: bool| if on { ScaleFormat::Pow2 } else { ScaleFormat::Fp32 };
    settings.forms.weight.format = pow2(switch(given, WEIGHT, OLD_WEIGHT, settings)?);
    settings.forms.activation.format = pow2(switch(given, ACTIVATION, OLD_ACTIVATION, settings)?);
    settings.use_deep_gemm = given.boolean("use_deep_gemm")?;
    settings.first_layers = given.count("num_first_layers_in_bf16")?;
    settings.last_layers = given.count("num_last_layers_in_bf16")?;
    settings.kv_cache_dtype = given.string("kv_cache_dtype")?.map(str::to_owned);
    settings.keywords = given.strings("quantization_ignored_layer_kws")?.unwrap_or_default();
    if given.array(MX_PATTERNS)?.is_some_and(|patterns| !patterns.is_empty()) {
        settings
            .warnings
            .push(format!("{MX_PATTERNS} is not read: NeMo-RL has it for MXFP8; the key fp8rt takes rules"));
    }
    own::read_beside(given, settings)
}

/// A switch, by its name or by its older one.
fn switch(given: &Object, key: &str, older: &str, settings: &mut Settings) -> Result<bool> {
    let (new, old) = (given.boolean(key)?, given.boolean(older)?);
    if let Some(value) = old {
        settings.warnings.push(format!(
            "{older} = {value} is taken as {key}: it is the name in older documentation of NeMo-RL, whose code never reads it"
        ));
    }
    let mut value = new;
    Settings::set(&mut value, old, &format!("{key} (and {older})"))?;
    Ok(value.unwrap_or(false))
}
