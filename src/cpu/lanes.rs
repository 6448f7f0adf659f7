//! Sixteen float32 side by side, in the registers of each instruction set. Only the linear needs them by name: its sums
//! must stay in registers, which plain loops do not ensure. Every set gives the same bits.

// One comment at each implementation speaks for its blocks, which are one call each.
#![allow(clippy::undocumented_unsafe_blocks)]

use crate::formats::e4m3;

/// How many.
pub const LANES: usize = 16;

/// The lanes of one instruction set. Its functions may be called only where that set is enabled, and are inlined there.
pub trait Lanes: Copy {
    /// Whether the registers hold 4 x 4 sums at once; if not, 2 x 2.
    const MANY: bool;

    fn zero() -> Self;

    /// # Safety
    /// LANES floats are readable.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// LANES floats are writable.
    unsafe fn store(self, to: *mut f32);

    /// self + a * b. The products here are exact, so fused or not is the same.
    fn add_product(self, a: Self, b: Self) -> Self;

    /// self + a * b with the product rounded.
    fn add_rounded_product(self, a: Self, b: f32) -> Self;

    /// Values of LANES codes.
    ///
    /// # Safety
    /// LANES codes are readable.
    #[inline(always)]
    unsafe fn decode(codes: *const u8) -> Self {
        let mut values = [0f32; LANES];
        // SAFETY: the caller's promise; then a local.
        unsafe {
            let codes = *codes.cast::<[u8; LANES]>();
            for lane in 0..LANES {
                values[lane] = e4m3::to_f32(codes[lane]);
            }
            Self::load(values.as_ptr())
        }
    }

    /// Values of LANES codes that are all normal numbers: see [`all_normal`].
    ///
    /// # Safety
    /// LANES codes are readable.
    #[inline(always)]
    unsafe fn decode_normal(codes: *const u8) -> Self {
        let mut values = [0f32; LANES];
        // SAFETY: the caller's promise; then a local.
        unsafe {
            let codes = *codes.cast::<[i8; LANES]>();
            for lane in 0..LANES {
                let bits = (codes[lane] as i32 as u32) << 20 & 0x87F0_0000;
                values[lane] = f32::from_bits(bits + ((127 - 7) << 23));
            }
            Self::load(values.as_ptr())
        }
    }
}

/// Whether no code is zero, subnormal or NaN, as nearly all groups of a trained weight are.
#[inline(always)]
pub fn all_normal<const N: usize>(codes: &[u8; N]) -> bool {
    let mut special = 0u8;
    for code in codes {
        special |= (code & 0x78 == 0) as u8 | (code & 0x7F == e4m3::NAN) as u8;
    }
    special == 0
}

/// The sum of the lanes, by halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline(always)]
pub fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// What [`super::isa::Isa`] compiles kernels for.
pub trait Instructions {
    type Lanes: Lanes;
}

pub struct Baseline;

impl Instructions for Baseline {
    type Lanes = baseline::Four;
}

#[cfg(target_arch = "x86_64")]
pub struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Instructions for Avx2 {
    type Lanes = avx2::Two;
}

#[cfg(target_arch = "x86_64")]
pub struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Instructions for Avx512 {
    type Lanes = avx512::One;
}

/// Four registers of four.
#[cfg(target_arch = "x86_64")]
mod baseline {
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Four([__m128; 4]);

    // SAFETY of each block: SSE2 is part of the architecture; memory as the trait asks.
    impl super::Lanes for Four {
        const MANY: bool = false;

        #[inline(always)]
        fn zero() -> Self {
            Four([unsafe { _mm_setzero_ps() }; 4])
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Four(std::array::from_fn(|i| _mm_loadu_ps(from.add(4 * i)))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            for i in 0..4 {
                unsafe { _mm_storeu_ps(to.add(4 * i), self.0[i]) };
            }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Four(std::array::from_fn(|i| _mm_add_ps(self.0[i], _mm_mul_ps(a.0[i], b.0[i])))) }
        }

        #[inline(always)]
        fn add_rounded_product(self, a: Self, b: f32) -> Self {
            unsafe { self.add_product(a, Four([_mm_set1_ps(b); 4])) }
        }
    }
}

/// Four registers of four.
#[cfg(target_arch = "aarch64")]
mod baseline {
    use std::arch::aarch64::*;

    #[derive(Clone, Copy)]
    pub struct Four([float32x4_t; 4]);

    // SAFETY of each block: NEON is part of the architecture; memory as the trait asks.
    impl super::Lanes for Four {
        const MANY: bool = false;

        #[inline(always)]
        fn zero() -> Self {
            Four([unsafe { vdupq_n_f32(0.0) }; 4])
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Four(std::array::from_fn(|i| vld1q_f32(from.add(4 * i)))) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            for i in 0..4 {
                unsafe { vst1q_f32(to.add(4 * i), self.0[i]) };
            }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            unsafe { Four(std::array::from_fn(|i| vfmaq_f32(self.0[i], a.0[i], b.0[i]))) }
        }

        #[inline(always)]
        fn add_rounded_product(self, a: Self, b: f32) -> Self {
            unsafe {
                let b = vdupq_n_f32(b);
                Four(std::array::from_fn(|i| vaddq_f32(self.0[i], vmulq_f32(a.0[i], b))))
            }
        }
    }
}

/// Two registers of eight.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct Two([__m256; 2]);

    // SAFETY of each block: called only where AVX2 and FMA are enabled; memory as the trait asks.
    impl super::Lanes for Two {
        const MANY: bool = false;

        #[inline(always)]
        fn zero() -> Self {
            Two([unsafe { _mm256_setzero_ps() }; 2])
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Two([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0[0]);
                _mm256_storeu_ps(to.add(8), self.0[1]);
            }
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            let [low, high] = self.0;
            unsafe { Two([_mm256_fmadd_ps(a.0[0], b.0[0], low), _mm256_fmadd_ps(a.0[1], b.0[1], high)]) }
        }

        #[inline(always)]
        fn add_rounded_product(self, a: Self, b: f32) -> Self {
            unsafe {
                let b = _mm256_set1_ps(b);
                let product = |i: usize| _mm256_add_ps(self.0[i], _mm256_mul_ps(a.0[i], b));
                Two([product(0), product(1)])
            }
        }

        #[inline(always)]
        unsafe fn decode_normal(codes: *const u8) -> Self {
            unsafe {
                let eight = |at: *const u8| {
                    let codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()));
                    let bits =
                        _mm256_and_si256(_mm256_slli_epi32::<20>(codes), _mm256_set1_epi32(0x87F0_0000u32 as i32));
                    _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32((127 - 7) << 23)))
                };
                Two([eight(codes), eight(codes.add(8))])
            }
        }
    }
}

/// One register of sixteen.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    #[derive(Clone, Copy)]
    pub struct One(__m512);

    // SAFETY of each block: called only where AVX-512 is enabled; memory as the trait asks.
    impl super::Lanes for One {
        const MANY: bool = true;

        #[inline(always)]
        fn zero() -> Self {
            One(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            One(unsafe { _mm512_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) };
        }

        #[inline(always)]
        fn add_product(self, a: Self, b: Self) -> Self {
            One(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }

        #[inline(always)]
        fn add_rounded_product(self, a: Self, b: f32) -> Self {
            One(unsafe { _mm512_add_ps(self.0, _mm512_mul_ps(a.0, _mm512_set1_ps(b))) })
        }

        #[inline(always)]
        unsafe fn decode_normal(codes: *const u8) -> Self {
            unsafe {
                let codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(codes.cast()));
                let bits = _mm512_and_si512(_mm512_slli_epi32::<20>(codes), _mm512_set1_epi32(0x87F0_0000u32 as i32));
                One(_mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32((127 - 7) << 23))))
            }
        }
    }
}
