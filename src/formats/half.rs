//! bfloat16 and binary16 to and from float32. Written without branches, so that loops over them vectorize.

/// bfloat16 to float32, exact.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// float32 to bfloat16, nearest even. A NaN stays a NaN.
#[inline(always)]
pub fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    (if bits & 0x7FFF_FFFF > 0x7F80_0000 { bits | 0x0040_0000 } else { rounded } >> 16) as u16
}

/// binary16 to float32, exact.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = ((bits & 0x7FFF) as u32) << 13;
    // Moves the exponent from bias 15 to bias 127; exact for subnormals too.
    let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let value = if magnitude >= 0x0F80_0000 { magnitude | 0x7F80_0000 } else { finite };
    f32::from_bits(value | ((bits & 0x8000) as u32) << 16)
}

/// float32 to binary16, nearest even, infinity beyond 65504.
#[inline(always)]
pub fn f16_from_f32(x: f32) -> u16 {
    half::f16::from_f32_const(x).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pattern natively; a spread of them under an interpreter.
    fn patterns() -> impl Iterator<Item = u16> {
        (0..=u16::MAX).step_by(if cfg!(miri) { 4099 } else { 1 })
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
    }

    #[test]
    fn widening_agrees_with_the_half_crate() {
        for bits in patterns() {
            assert!(same(bf16_to_f32(bits), half::bf16::from_bits(bits).to_f32_const()), "bf16 {bits:#x}");
            assert!(same(f16_to_f32(bits), half::f16::from_bits(bits).to_f32_const()), "f16 {bits:#x}");
        }
    }

    #[test]
    fn narrowing_agrees_with_the_half_crate() {
        for bits in patterns() {
            for low in [0u32, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
                let x = f32::from_bits((bits as u32) << 16 | low);
                let (got, want) = (bf16_from_f32(x), half::bf16::from_f32_const(x));
                assert!(got == want.to_bits() || x.is_nan() && half::bf16::from_bits(got).is_nan(), "{x:e}");
            }
        }
    }
}
