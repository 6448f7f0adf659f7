//! The inner loops: one run of neighboring elements. Plain loops without branches, which the compiler turns into the
//! vectors of each instruction set.

use crate::blocks::BLOCK;
use crate::formats::{e4m3, half};
use crate::quantize::Health;

/// A source type, as its bits.
pub trait Element: Copy + Send + Sync {
    /// An unsigned integer as wide as the element. Magnitudes order as their bits do.
    type Bits: Copy + Ord + Default;
    const INFINITY: Self::Bits;

    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
    /// The bits without the sign.
    fn magnitude(self) -> Self::Bits;
    fn magnitude_to_f32(bits: Self::Bits) -> f32;
}

/// bfloat16 by its bits.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Bf16(u16);

/// binary16 by its bits.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct F16(u16);

impl Element for Bf16 {
    type Bits = u16;
    const INFINITY: u16 = 0x7F80;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        half::bf16_to_f32(self.0)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Bf16 {
        Bf16(half::bf16_from_f32(x))
    }

    #[inline(always)]
    fn magnitude(self) -> u16 {
        self.0 & 0x7FFF
    }

    #[inline(always)]
    fn magnitude_to_f32(bits: u16) -> f32 {
        half::bf16_to_f32(bits)
    }
}

impl Element for F16 {
    type Bits = u16;
    const INFINITY: u16 = 0x7C00;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        half::f16_to_f32(self.0)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> F16 {
        F16(half::f16_from_f32(x))
    }

    #[inline(always)]
    fn magnitude(self) -> u16 {
        self.0 & 0x7FFF
    }

    #[inline(always)]
    fn magnitude_to_f32(bits: u16) -> f32 {
        half::f16_to_f32(bits)
    }
}

impl Element for f32 {
    type Bits = u32;
    const INFINITY: u32 = 0x7F80_0000;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn magnitude(self) -> u32 {
        self.to_bits() & 0x7FFF_FFFF
    }

    #[inline(always)]
    fn magnitude_to_f32(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
}

/// Magnitudes that are compared side by side: a whole vector of 16-bit elements.
const LANES: usize = 32;

/// Largest magnitudes so far, by lanes, so that rows need no reduction of their own.
#[derive(Clone, Copy)]
pub struct Amax<T: Element>([T::Bits; LANES]);

impl<T: Element> Amax<T> {
    #[inline(always)]
    pub fn new() -> Amax<T> {
        Amax([T::Bits::default(); LANES])
    }

    /// Takes in a run of elements.
    #[inline(always)]
    pub fn add(&mut self, run: &[T]) {
        self.add_by(run, T::magnitude);
    }

    /// Takes in the finite elements of a run.
    #[inline(always)]
    pub fn add_finite(&mut self, run: &[T]) {
        self.add_by(run, finite_magnitude);
    }

    #[inline(always)]
    fn add_by(&mut self, run: &[T], magnitude: impl Fn(T) -> T::Bits) {
        // Full groups, nearly all of them, have a length that the compiler knows.
        match <&[T; BLOCK]>::try_from(run) {
            Ok(run) => self.add_lanes(run, magnitude),
            Err(_) => self.add_lanes(run, magnitude),
        }
    }

    #[inline(always)]
    fn add_lanes(&mut self, run: &[T], magnitude: impl Fn(T) -> T::Bits) {
        let mut lanes = self.0;
        let mut vectors = run.chunks_exact(LANES);
        for vector in &mut vectors {
            for lane in 0..LANES {
                lanes[lane] = lanes[lane].max(magnitude(vector[lane]));
            }
        }
        for (lane, x) in vectors.remainder().iter().enumerate() {
            lanes[lane] = lanes[lane].max(magnitude(*x));
        }
        self.0 = lanes;
    }

    /// The largest of all, as a number; an infinity or NaN if one was taken in.
    #[inline(always)]
    pub fn get(&self) -> f32 {
        let mut lanes = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] = lanes[lane].max(lanes[lane + width]);
            }
            width /= 2;
        }
        T::magnitude_to_f32(lanes[0])
    }
}

/// The magnitude of a finite element, zero for the others.
#[inline(always)]
fn finite_magnitude<T: Element>(x: T) -> T::Bits {
    let magnitude = x.magnitude();
    if magnitude >= T::INFINITY { T::Bits::default() } else { magnitude }
}

/// What a run's values are combined with. Two functions and not a match for each element.
pub trait Scaling: Copy {
    /// Whether the scale was given, so that values may exceed it.
    const GIVEN: bool;
    /// Whether the elements are known to be finite, and the scale to be theirs.
    const IN_RANGE: bool = false;
    fn apply(self, x: f32) -> f32;
}

/// x / s with a scale of the recipe.
#[derive(Clone, Copy)]
pub struct Divided(pub f32);

/// x * r.
#[derive(Clone, Copy)]
pub struct Multiplied(pub f32);

/// x / s with a scale that the caller gave.
#[derive(Clone, Copy)]
pub struct Given(pub f32);

/// A scaling of finite elements with the scale that was made for them.
#[derive(Clone, Copy)]
pub struct InRange<S>(pub S);

impl<S: Scaling> Scaling for InRange<S> {
    const GIVEN: bool = false;
    const IN_RANGE: bool = true;
    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        self.0.apply(x)
    }
}

impl Scaling for Divided {
    const GIVEN: bool = false;
    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        x / self.0
    }
}

impl Scaling for Multiplied {
    const GIVEN: bool = false;
    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        x * self.0
    }
}

impl Scaling for Given {
    const GIVEN: bool = true;
    #[inline(always)]
    fn apply(self, x: f32) -> f32 {
        x / self.0
    }
}

/// Codes of a run.
#[inline(always)]
pub fn encode<T: Element>(run: &[T], scaling: impl Scaling, codes: &mut [u8]) {
    match (<&[T; BLOCK]>::try_from(run), <&mut [u8; BLOCK]>::try_from(&mut *codes)) {
        (Ok(run), Ok(codes)) => encode_each(run, scaling, codes),
        _ => encode_each(run, scaling, codes),
    }
}

#[inline(always)]
fn encode_each<T: Element, S: Scaling>(run: &[T], scaling: S, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(run) {
        let number = scaling.apply(x.to_f32());
        *code = if S::IN_RANGE { e4m3::from_f32_in_range(number) } else { e4m3::from_f32(number) };
    }
}

/// Counts what [`encode`] did to a run. A run is at most a group, so 32 bits hold its counts.
#[inline(always)]
pub fn examine<T: Element, S: Scaling>(run: &[T], scaling: S, codes: &[u8]) -> Health {
    let (mut non_finite, mut saturated, mut zero, mut subnormal) = (0u32, 0u32, 0u32, 0u32);
    for (code, x) in codes.iter().zip(run) {
        let (value, finite) = (x.to_f32(), x.magnitude() < T::INFINITY);
        let magnitude = code & 0x7F;
        non_finite += !finite as u32;
        saturated += (S::GIVEN & finite & (scaling.apply(value).abs() > e4m3::OVERFLOW)) as u32;
        zero += ((value != 0.0) & (magnitude == 0)) as u32;
        subnormal += (magnitude.wrapping_sub(1) < 7) as u32;
    }
    Health {
        non_finite: non_finite as u64,
        saturated: saturated as u64,
        became_zero: zero as u64,
        became_subnormal: subnormal as u64,
    }
}

/// Values of a run of codes.
#[inline(always)]
pub fn decode<T: Element>(codes: &[u8], scale: f32, values: &mut [T]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = T::from_f32(e4m3::dequantize(code, scale));
    }
}
