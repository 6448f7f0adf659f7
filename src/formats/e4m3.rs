//! FP8 E4M3FN: sign, 4 bits of exponent with bias 7, 3 bits of mantissa; no infinity, NaN is 0x7F.

/// Largest finite value.
pub const MAX: f32 = 448.0;
/// The code of NaN. Both signs of NaN give it.
pub const NAN: u8 = 0x7F;
/// Above this magnitude a value would round past [`MAX`]: halfway to the next step, ties go to even.
pub const OVERFLOW: f32 = 464.0;

/// Distance between the exponent biases of float32 and E4M3, in the place of E4M3's lowest bit.
const REBIAS: u32 = (127 - 7) << 3;
/// Adding this puts a magnitude below 2^-6 into units of 2^-9, the step of E4M3's subnormals.
const SUBNORMAL_MAGIC: f32 = 16384.0;

/// Rounds a float32 to the nearest code, ties to even, saturating at 448.
#[inline(always)]
pub fn from_f32(x: f32) -> u8 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7FFF_FFFF;
    let clamped = if magnitude > MAX.to_bits() { MAX.to_bits() } else { magnitude };
    let normal = ((clamped + 0x7_FFFF + ((clamped >> 20) & 1)) >> 20).wrapping_sub(REBIAS);
    let subnormal = (f32::from_bits(clamped) + SUBNORMAL_MAGIC).to_bits().wrapping_sub(SUBNORMAL_MAGIC.to_bits());
    let code = if clamped < 0x3C80_0000 { subnormal } else { normal };
    let signed = code | (bits >> 24 & 0x80);
    (if magnitude > 0x7F80_0000 { NAN as u32 } else { signed }) as u8
}

/// As [`from_f32`], of a number that is no NaN and does not exceed [`OVERFLOW`].
#[inline(always)]
pub fn from_f32_in_range(x: f32) -> u8 {
    let bits = x.to_bits();
    let magnitude = bits & 0x7FFF_FFFF;
    let normal = ((magnitude + 0x7_FFFF + ((magnitude >> 20) & 1)) >> 20).wrapping_sub(REBIAS);
    let subnormal = (f32::from_bits(magnitude) + SUBNORMAL_MAGIC).to_bits().wrapping_sub(SUBNORMAL_MAGIC.to_bits());
    let code = if magnitude < 0x3C80_0000 { subnormal } else { normal };
    (code | (bits >> 24 & 0x80)) as u8
}

/// The value of a code, exact.
#[inline(always)]
pub fn to_f32(code: u8) -> f32 {
    let magnitude = (code & 0x7F) as u32;
    let normal = (magnitude << 20) + ((127 - 7) << 23);
    // A subnormal m * 2^-9 is (1 + m/8) * 2^-6 less 2^-6: exact, and it never touches float32's own subnormals.
    let subnormal = (f32::from_bits((magnitude << 20) + ((127 - 6) << 23)) - 0.015625).to_bits();
    let value = if magnitude < 8 { subnormal } else { normal };
    let value = if magnitude == NAN as u32 { 0x7FC0_0000 } else { value };
    f32::from_bits(value | ((code & 0x80) as u32) << 24)
}

/// A code times its scale, rounded once. Every NaN is the same quiet NaN.
#[inline(always)]
pub fn dequantize(code: u8, scale: f32) -> f32 {
    let value = to_f32(code) * scale;
    if value.is_nan() { f32::NAN } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of a code from the definition, in float64.
    fn definition(code: u8) -> f64 {
        let (exponent, mantissa) = ((code >> 3 & 0xF) as i32, (code & 7) as f64);
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa * 2f64.powi(-9),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if code & 0x80 != 0 { -magnitude } else { magnitude }
    }

    /// Nearest code by search over all of them, ties to even, saturating.
    fn nearest(x: f32) -> u8 {
        if x.is_nan() {
            return NAN;
        }
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let magnitude = (x.abs() as f64).min(MAX as f64);
        let best = (0..0x7Fu8).min_by(|&a, &b| {
            let (da, db) = ((definition(a) - magnitude).abs(), (definition(b) - magnitude).abs());
            da.partial_cmp(&db).unwrap().then((a & 1).cmp(&(b & 1)))
        });
        best.unwrap() | sign
    }

    #[test]
    fn every_code_has_its_defined_value() {
        for code in 0..=255u8 {
            let (got, want) = (to_f32(code) as f64, definition(code));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{code:#x}: {got} for {want}");
        }
    }

    #[test]
    fn every_code_survives_a_round_trip() {
        for code in (0..=255u8).filter(|code| code & 0x7F != NAN) {
            assert_eq!(from_f32(to_f32(code)), code);
        }
    }

    #[test]
    fn halfway_values_go_to_even_and_neighbors_to_the_nearest() {
        for code in (0..0x7Eu8).step_by(if cfg!(miri) { 25 } else { 1 }) {
            let middle = ((definition(code) + definition(code + 1)) / 2.0) as f32;
            for x in
                [middle, middle.next_down(), middle.next_up(), to_f32(code).next_up(), to_f32(code + 1).next_down()]
            {
                assert_eq!(from_f32(x), nearest(x), "{x:e}");
                assert_eq!(from_f32(-x), nearest(-x), "{:e}", -x);
                assert_eq!((from_f32_in_range(x), from_f32_in_range(-x)), (nearest(x), nearest(-x)), "{x:e}");
            }
        }
    }

    #[test]
    fn edges_saturate_and_keep_their_sign() {
        for x in [448.0, 449.0, 464.0, 464.1, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!((from_f32(x), from_f32(-x)), (0x7E, 0xFE));
        }
        assert_eq!((from_f32(0.0), from_f32(-0.0), from_f32(1e-45), from_f32(-1e-45)), (0, 0x80, 0, 0x80));
        assert_eq!((from_f32(f32::NAN), from_f32(-f32::NAN), from_f32(f32::from_bits(0xFF80_0001))), (NAN, NAN, NAN));
    }

    #[test]
    fn random_bit_patterns_round_to_the_nearest() {
        let mut state = 1u32;
        for _ in 0..if cfg!(miri) { 10 } else { 20_000 } {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            let x = f32::from_bits(state.rotate_left(9));
            assert_eq!(from_f32(x), nearest(x), "{x:e}");
            if x.abs() <= OVERFLOW {
                assert_eq!(from_f32_in_range(x), nearest(x), "{x:e}");
            }
        }
    }
}
