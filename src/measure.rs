//! What quantization did to a weight: sums over its blocks, from which a report is made.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::blocks::{BLOCK, RowGrid, groups};
use crate::error::{Result, ensure};
use crate::quantize::{Scales, Subject};
use crate::recipe::ScaleFormat;
use crate::tensor::{Dtype, FLOATS, Tensor};

/// A block is an outlier block if its largest magnitude exceeds so many times the root of its mean square. Six is the
/// customary bound of LLM.int8() (Dettmers et al., 2022, arXiv 2208.07339), there on activations of unit size. Of blocks
/// of normally distributed values it finds 3 in 100,000.
pub const OUTLIER: f64 = 6.0;

/// Sums over finite elements. `squares` and `errors`: of x and of x - code * scale, squared.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    pub squares: f64,
    pub errors: f64,
    pub elements: u64,
    /// Not zero, and its code is.
    pub became_zero: u64,
    pub became_subnormal: u64,
    pub non_finite: u64,
    pub blocks: u64,
    pub outlier_blocks: u64,
}

/// The words of [`ErrorSums`], the first two of which hold float64.
pub type ErrorWords = [AtomicU64; 8];

/// Where the caller's sums are: in the memory of the context's device, so not always readable here.
#[derive(Clone, Copy, Debug)]
pub struct ErrorPointer(pub NonNull<ErrorWords>);

// SAFETY: an address; what dereferences it runs where the memory is, and adds atomically.
unsafe impl Send for ErrorPointer {}
// SAFETY: as above.
unsafe impl Sync for ErrorPointer {}

impl ErrorSums {
    /// One element: its value, what its code stands for, and the code.
    #[inline(always)]
    pub fn count(&mut self, x: f32, value: f32, code: u8) {
        if !x.is_finite() {
            self.non_finite += 1;
            return;
        }
        let (x, error) = (x as f64, x as f64 - value as f64);
        let magnitude = code & 0x7F;
        self.squares += x * x;
        self.errors += error * error;
        self.elements += 1;
        self.became_zero += (x != 0.0 && magnitude == 0) as u64;
        self.became_subnormal += (1..8).contains(&magnitude) as u64;
    }

    /// The sums are those of one block: is it an outlier block?
    pub fn end_block(&mut self, amax: f32) {
        let square = amax as f64 * amax as f64;
        self.blocks = 1;
        self.outlier_blocks = (square * self.elements as f64 > OUTLIER * OUTLIER * self.squares) as u64;
    }

    /// The counts of a caller may be anything.
    pub fn add(&mut self, other: &ErrorSums) {
        self.squares += other.squares;
        self.errors += other.errors;
        let sum = |count: &mut u64, other: u64| *count = count.saturating_add(other);
        sum(&mut self.elements, other.elements);
        sum(&mut self.became_zero, other.became_zero);
        sum(&mut self.became_subnormal, other.became_subnormal);
        sum(&mut self.non_finite, other.non_finite);
        sum(&mut self.blocks, other.blocks);
        sum(&mut self.outlier_blocks, other.outlier_blocks);
    }

    /// The relative error: the norm of the errors over the norm of the values.
    pub fn relative_error(&self) -> f64 {
        if self.errors == 0.0 { 0.0 } else { (self.errors / self.squares).sqrt() }
    }

    /// A part of the elements.
    pub fn share(&self, count: u64) -> f64 {
        count as f64 / self.elements.max(1) as f64
    }

    /// The part of the blocks that are outlier blocks.
    pub fn outlier_share(&self) -> f64 {
        self.outlier_blocks as f64 / self.blocks.max(1) as f64
    }
}

impl ErrorPointer {
    /// Adds to the caller's sums.
    ///
    /// # Safety
    /// They lie in host memory, and nobody accesses them but atomically.
    pub unsafe fn add(&self, sums: &ErrorSums) {
        // SAFETY: the caller's promise.
        let [squares, errors, counts @ ..] = unsafe { self.0.as_ref() };
        for (word, value) in [(squares, sums.squares), (errors, sums.errors)] {
            let added = |bits| Some((f64::from_bits(bits) + value).to_bits());
            let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
        }
        let ours = [sums.elements, sums.became_zero, sums.became_subnormal, sums.non_finite, sums.blocks];
        for (word, count) in counts.iter().zip(ours.into_iter().chain([sums.outlier_blocks])) {
            word.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// A checked request: values, and the codes and scales that they became. One part.
#[derive(Clone, Copy)]
pub struct Measurement<'a> {
    pub source: &'a Tensor,
    pub codes: &'a Tensor,
    pub scales: Scales<'a>,
    pub sums: ErrorPointer,
}

impl<'a> Measurement<'a> {
    pub fn new(
        source: &'a Tensor,
        codes: &'a Tensor,
        scales: &'a Tensor,
        format: ScaleFormat,
        sums: ErrorPointer,
    ) -> Result<Measurement<'a>> {
        source.expect_dtype(FLOATS)?;
        codes.expect_dtype(&[Dtype::E4m3])?;
        ensure!(source.shape == codes.shape, Internal, "{:?} values of {:?} codes", source.shape, codes.shape);
        let scales = Scales::new(scales, format, &Subject::Weight { part_rows: &[] }, codes)?;
        for tensor in [source, codes, scales.tensor] {
            tensor.expect_apart_from_memory("sums", sums.0.as_ptr() as usize, size_of::<ErrorWords>())?;
        }
        Ok(Measurement { source, codes, scales, sums })
    }

    pub fn grid(&self) -> RowGrid<'static> {
        RowGrid::of_weight(self.source.rows(), &[]).expect("no parts")
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        let rows = self.source.rows().div_ceil(BLOCK);
        if self.source.is_empty() { 0 } else { self.source.experts() * rows * groups(self.source.columns()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_one_large_element_is_an_outlier_block() {
        for (large, outlier) in [(6.0f32, false), (8.0, true)] {
            let mut block = ErrorSums::default();
            (0..99).for_each(|_| block.count(1.0, 1.0, 0x38));
            block.count(large, large, 0x50);
            block.end_block(large);
            assert_eq!((block.blocks, block.outlier_blocks == 1), (1, outlier), "{large}");
        }
    }

    #[test]
    fn no_values_have_no_error() {
        assert_eq!(ErrorSums::default().relative_error(), 0.0);
        assert_eq!(ErrorSums::default().share(0), 0.0);
    }
}
