//! The numbers that ops take, which are those of the C interface.

use crate::error::{Result, ensure, fail};
use crate::quantize::{HealthCounters, HealthPointer};
use crate::recipe::{Formula, Recipe, ScaleFormat};

use super::arguments::Arguments;

/// How a tensor is quantized.
pub struct Quantization {
    pub formula: Formula,
    pub format: ScaleFormat,
}

impl Quantization {
    /// Reads recipe, scale format and floor, which stand side by side from `first` on.
    pub fn read(arguments: &Arguments, first: usize, default: Recipe) -> Result<Quantization> {
        let (recipe, format) = (arguments.int(first), arguments.int(first + 1));
        let floor = floor(arguments.optional_float(first + 2))?;
        Quantization::new(recipe, format, floor, default)
    }

    pub fn new(number: i64, format: i64, floor: Option<f32>, default: Recipe) -> Result<Quantization> {
        let format = scale_format(format)?;
        Ok(Quantization { formula: Formula::new(recipe(number, default)?, format, floor), format })
    }
}

fn recipe(number: i64, default: Recipe) -> Result<Recipe> {
    match number {
        0 => Ok(default),
        1..=4 => Ok(Recipe::NUMBERED[number as usize - 1]),
        _ => fail!(InvalidArgument, "recipe is {number}, the recipes are 0 to 4"),
    }
}

fn scale_format(number: i64) -> Result<ScaleFormat> {
    match number {
        0..=2 => Ok(ScaleFormat::NUMBERED[number as usize]),
        _ => fail!(InvalidArgument, "scale_format is {number}, the scale formats are 0 to 2"),
    }
}

/// The least amax.
pub fn floor(given: Option<f64>) -> Result<Option<f32>> {
    let Some(floor) = given else { return Ok(None) };
    let narrow = floor as f32;
    ensure!(narrow.is_finite() && floor >= 0.0, InvalidArgument, "floor is {floor}, must be finite and at least 0");
    Ok(Some(narrow))
}

/// Counters of the caller.
pub fn health(arguments: &Arguments, index: usize, device: i32) -> Result<Option<HealthPointer>> {
    let address = arguments.health(index, device)?;
    Ok(std::ptr::NonNull::new(address.cast::<HealthCounters>()).map(HealthPointer))
}
