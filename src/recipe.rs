//! From amax to scale, and from value to the number that is rounded to a code. The table of the README, in code.
//!
//! Every operation is one IEEE float32 rounding to nearest even. The callers make sure of the mode.

use crate::formats::e4m3;

/// Which peer's formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    Vllm,
    DeepGemm,
    NemoRl,
    Te,
}

impl Recipe {
    /// By their numbers in every interface, from 1 on; 0 is whatever the default is there.
    pub const NUMBERED: [Recipe; 4] = [Recipe::Vllm, Recipe::DeepGemm, Recipe::NemoRl, Recipe::Te];
}

/// How a scale is stored. `Ue8m0Packed` holds the exponents of `Pow2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleFormat {
    Fp32,
    Pow2,
    Ue8m0Packed,
}

impl ScaleFormat {
    /// By their numbers in every interface, from 0 on.
    pub const NUMBERED: [ScaleFormat; 3] = [ScaleFormat::Fp32, ScaleFormat::Pow2, ScaleFormat::Ue8m0Packed];
}

/// What a value is combined with before it is rounded to a code.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Factor {
    /// The number is x / s.
    Divide(f32),
    /// The number is x * r.
    Multiply(f32),
}

impl Factor {
    /// The float32 that is rounded to a code.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Factor::Divide(s) => x / s,
            Factor::Multiply(r) => x * r,
        }
    }
}

/// A recipe with its format and floor: all that maps an amax to a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formula {
    recipe: Recipe,
    pow2: bool,
    floor: f32,
}

/// Smallest scale of the two recipes that divide by 448: the smallest normal float32.
const LEAST_SCALE: f32 = f32::MIN_POSITIVE;

impl Formula {
    /// `floor` is the caller's; `None` means the recipe's own.
    pub fn new(recipe: Recipe, format: ScaleFormat, floor: Option<f32>) -> Formula {
        let own = match recipe {
            Recipe::Vllm => 1e-10,
            Recipe::DeepGemm => 1e-4,
            Recipe::NemoRl | Recipe::Te => 0.0,
        };
        Formula { recipe, pow2: format != ScaleFormat::Fp32, floor: floor.unwrap_or(own) }
    }

    pub fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// The least amax.
    pub fn floor(&self) -> f32 {
        self.floor
    }

    /// The scale of a block or group, and how its values become codes. `amax` is finite and >= 0.
    #[inline]
    pub fn scale(&self, amax: f32) -> (f32, Factor) {
        let amax = amax.max(self.floor);
        if self.pow2 { self.power_of_two(amax) } else { self.exact(amax) }
    }

    fn exact(&self, amax: f32) -> (f32, Factor) {
        match self.recipe {
            Recipe::Vllm => {
                let scale = (amax / e4m3::MAX).max(LEAST_SCALE);
                (scale, Factor::Multiply(1.0 / scale))
            }
            Recipe::DeepGemm => {
                let scale = (amax * (1.0 / e4m3::MAX)).max(LEAST_SCALE);
                (scale, Factor::Multiply(1.0 / scale))
            }
            Recipe::NemoRl => inverted(amax, (1.0 / amax) * e4m3::MAX),
            Recipe::Te => inverted(amax, e4m3::MAX / amax),
        }
    }

    fn power_of_two(&self, amax: f32) -> (f32, Factor) {
        let scale = match self.recipe {
            Recipe::NemoRl | Recipe::Te if amax == 0.0 => 1.0,
            // vLLM floors the scale itself at 1e-10, and then rounds it up to a power of two.
            Recipe::Vllm => least_pow2(amax).max(f32::from_bits((127 - 33) << 23)),
            _ => least_pow2(amax),
        };
        // The inverse of a power of two is exact, so this equals the rounding of x / scale.
        (scale, Factor::Multiply(1.0 / scale))
    }
}

/// The recipes that compute the inverse first; `inverse` is not yet held below infinity.
fn inverted(amax: f32, inverse: f32) -> (f32, Factor) {
    let inverse = if amax == 0.0 { 1.0 } else { inverse.min(f32::MAX) };
    (1.0 / inverse, Factor::Multiply(inverse))
}

/// The smallest power of two s >= 2^-126 with amax <= 448 * s, from the bits: 448 is 1.75 * 2^8.
fn least_pow2(amax: f32) -> f32 {
    let bits = amax.to_bits();
    let (exponent, mantissa) = ((bits >> 23) as i32, bits & 0x7F_FFFF);
    let least = exponent - 8 + (mantissa > 0x60_0000) as i32;
    f32::from_bits((least.max(1) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPES: [Recipe; 4] = [Recipe::Vllm, Recipe::DeepGemm, Recipe::NemoRl, Recipe::Te];

    /// Every exponent with the mantissas where something changes, zero and denormals included.
    fn sweep() -> impl Iterator<Item = f32> {
        let mantissas = [0u32, 1, 0x5F_FFFF, 0x60_0000, 0x60_0001, 0x7F_FFFF];
        // An interpreter takes a few exponents, both ends among them.
        (0..255u32)
            .step_by(if cfg!(miri) { 127 } else { 1 })
            .flat_map(move |e| mantissas.into_iter().map(move |m| f32::from_bits(e << 23 | m)))
    }

    #[test]
    fn every_amax_gives_a_finite_positive_scale() {
        for recipe in RECIPES {
            for format in [ScaleFormat::Fp32, ScaleFormat::Pow2] {
                for floor in [None, Some(0.0), Some(1e-40), Some(3.0)] {
                    let formula = Formula::new(recipe, format, floor);
                    for amax in sweep() {
                        let (scale, factor) = formula.scale(amax);
                        assert!(scale > 0.0 && scale.is_finite(), "{recipe:?} {format:?} {floor:?} {amax:e}: {scale}");
                        let largest = factor.apply(amax);
                        assert!((0.0..e4m3::OVERFLOW).contains(&largest), "{recipe:?} {format:?} {amax:e}: {largest}");
                    }
                }
            }
        }
    }

    #[test]
    fn power_of_two_is_the_smallest_that_holds_amax() {
        for recipe in RECIPES {
            let formula = Formula::new(recipe, ScaleFormat::Pow2, Some(0.0));
            let least = if recipe == Recipe::Vllm { 2f64.powi(-33) } else { f32::MIN_POSITIVE as f64 };
            for amax in sweep().filter(|&amax| amax > 0.0) {
                let scale = formula.scale(amax).0 as f64;
                assert_eq!(scale.log2().fract(), 0.0);
                assert!(amax as f64 <= 448.0 * scale, "{recipe:?} {amax:e}");
                assert!(scale == least || amax as f64 > 448.0 * scale / 2.0, "{recipe:?} {amax:e}");
            }
        }
    }

    #[test]
    fn power_of_two_steps_one_ulp_above_the_boundary() {
        let formula = Formula::new(Recipe::NemoRl, ScaleFormat::Pow2, None);
        let boundary = 448.0 * 2f32.powi(-10);
        assert_eq!(formula.scale(boundary).0, 2f32.powi(-10));
        assert_eq!(formula.scale(boundary.next_up()).0, 2f32.powi(-9));
    }

    #[test]
    fn zero_blocks_have_the_scale_of_their_recipe() {
        let zero = |recipe, format| Formula::new(recipe, format, None).scale(0.0).0;
        assert_eq!(zero(Recipe::Vllm, ScaleFormat::Fp32), 1e-10 / 448.0);
        assert_eq!(zero(Recipe::DeepGemm, ScaleFormat::Fp32), 1e-4 * (1.0 / 448.0));
        assert_eq!(zero(Recipe::NemoRl, ScaleFormat::Fp32), 1.0);
        assert_eq!(zero(Recipe::Te, ScaleFormat::Pow2), 1.0);
        assert_eq!(zero(Recipe::Vllm, ScaleFormat::Pow2), 2f32.powi(-33));
    }

    #[test]
    fn formulas_round_where_the_table_says() {
        for amax in sweep().filter(|amax| (1e-3..1e30).contains(amax)) {
            let s = |recipe| Formula::new(recipe, ScaleFormat::Fp32, None).scale(amax);
            assert_eq!(s(Recipe::Vllm).0, (amax as f64 / 448.0) as f32);
            let c = (1.0f64 / 448.0) as f32;
            assert_eq!(s(Recipe::DeepGemm).0, (amax as f64 * c as f64) as f32);
            let r = ((1.0f64 / amax as f64) as f32 as f64 * 448.0) as f32;
            assert_eq!(s(Recipe::NemoRl), ((1.0f64 / r as f64) as f32, Factor::Multiply(r)));
            let r = (448.0f64 / amax as f64) as f32;
            assert_eq!(s(Recipe::Te), ((1.0f64 / r as f64) as f32, Factor::Multiply(r)));
        }
    }
}
