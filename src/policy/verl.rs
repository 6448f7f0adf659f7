//! verl's shorthand: `rollout.quantization = fp8`.

use crate::error::{Result, fail};

use super::json::Object;
use super::own;
use super::settings::Settings;

pub const KEYS: [&str; 5] =
    ["actor_rollout_ref", "rollout", "quantization", "rollout.quantization", "actor_rollout_ref.rollout.quantization"];

/// Reads the shorthand, at whatever depth of verl's configuration the object begins.
pub fn read(given: &Object, settings: &mut Settings) -> Result<()> {
    for key in ["actor_rollout_ref", "rollout"] {
        if let Some(inner) = given.object(key)? {
            read(&inner, settings)?;
            return own::read_beside(given, settings);
        }
    }
    let mut quantization = None;
    for key in &KEYS[2..] {
        Settings::set(&mut quantization, given.string(key)?, "quantization")?;
    }
    match quantization {
        Some("fp8") => {}
        None => settings.off = Some("rollout.quantization is not set".to_owned()),
        Some(other) => fail!(
            Unsupported,
            "{}: quantization is \"{other}\"; \"fp8\", with blocks of 128x128, is what this library has",
            given.name
        ),
    }
    own::read_beside(given, settings)
}
