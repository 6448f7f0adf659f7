//! UE8M0: one byte, the power of two 2^(byte - 127); 255 is NaN.

/// The byte of a power of two that is a normal float32.
#[inline(always)]
pub fn from_pow2(scale: f32) -> u8 {
    (scale.to_bits() >> 23) as u8
}

/// The value of a byte.
#[inline(always)]
pub fn to_f32(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits((byte as u32) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_powers_of_two() {
        for byte in 0..255u8 {
            assert_eq!(to_f32(byte) as f64, 2f64.powi(byte as i32 - 127));
        }
        assert!(to_f32(255).is_nan());
    }

    #[test]
    fn normal_powers_survive_a_round_trip() {
        for byte in 1..255u8 {
            assert_eq!(from_pow2(to_f32(byte)), byte);
        }
    }
}
