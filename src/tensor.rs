//! A checked view of memory that a caller owns: range, strides, dtype, device, overlap.

use std::mem::MaybeUninit;

use crate::error::{Result, ensure, fail};

/// Element types that a tensor may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    Bf16,
    F16,
    F32,
    E4m3,
    Int32,
}

impl Dtype {
    /// Size of an element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::E4m3 => 1,
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F32 | Dtype::Int32 => 4,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "fp16",
            Dtype::F32 => "fp32",
            Dtype::E4m3 => "e4m3",
            Dtype::Int32 => "int32",
        })
    }
}

/// The source types of a quantization and the output types of a linear.
pub const FLOATS: &[Dtype] = &[Dtype::Bf16, Dtype::F16, Dtype::F32];

/// What a caller says about a tensor, unchecked.
#[derive(Clone, Copy, Debug)]
pub struct Description<'a> {
    pub data: *mut u8,
    pub bytes: u64,
    pub dtype: Dtype,
    pub device: i32,
    pub rank: u32,
    pub shape: &'a [i64; 3],
    pub stride: &'a [i64; 3],
}

/// A view whose every element lies within the memory that the caller named. Leading dimensions that a lower rank lacks
/// have extent 1. The lifetime of the memory is the caller's promise, made at the C boundary.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// The argument's name in messages.
    pub name: &'static str,
    pub dtype: Dtype,
    pub device: i32,
    pub rank: usize,
    pub shape: [usize; 3],
    pub stride: [usize; 3],
    data: *mut u8,
    bytes: usize,
    /// Bytes from the first element to the end of the last; 0 if there are none.
    span: usize,
}

// SAFETY: a tensor is an address with its bounds; what threads do through it is decided where it is dereferenced.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// Checks rank, extents, strides, alignment, NULL and bounds.
    pub fn new(name: &'static str, description: &Description) -> Result<Tensor> {
        Tensor::new_in(name, description, &mut MaybeUninit::uninit()).copied()
    }

    /// As [`Tensor::new`], made where the caller wants it.
    #[inline(always)]
    pub fn new_in<'a>(
        name: &'static str,
        description: &Description,
        place: &'a mut MaybeUninit<Tensor>,
    ) -> Result<&'a Tensor> {
        let Description { data, bytes, dtype, device, rank, .. } = *description;
        ensure!((1..=3).contains(&rank), Shape, "{name} has rank {rank}, must be 1, 2 or 3");
        let lead = 3 - rank as usize;
        let axis = |axis: usize| -> Result<(usize, usize)> {
            if axis < lead {
                return Ok((1, 0));
            }
            let shown = axis - lead;
            let (extent, step) = (description.shape[shown], description.stride[shown]);
            ensure!(extent >= 0, Shape, "{name} has shape[{shown}] = {extent}, must be at least 0");
            ensure!(step >= 0 || extent <= 1, Stride, "{name} has stride[{shown}] = {step}, must be at least 0");
            // The stride of an extent of 1 never takes effect, so it may be anything.
            Ok((extent as usize, step.max(0) as usize))
        };
        let (experts, rows, columns) = (axis(0)?, axis(1)?, axis(2)?);
        let (shape, stride) = ([experts.0, rows.0, columns.0], [experts.1, rows.1, columns.1]);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let Some(span) = span(shape, stride, dtype.bytes()) else {
            fail!(Bounds, "{name} spans more bytes than the address space has")
        };
        let tensor = place.write(Tensor { name, dtype, device, rank: rank as usize, shape, stride, data, bytes, span });
        if span > 0 {
            tensor.check_memory()?;
        }
        Ok(tensor)
    }

    #[inline]
    fn check_memory(&self) -> Result<()> {
        let (name, span, size) = (self.name, self.span, self.dtype.bytes());
        ensure!(!self.data.is_null(), NullPointer, "{name} has data NULL and {} elements", self.elements());
        let address = self.data as usize;
        ensure!(
            address.is_multiple_of(size),
            Alignment,
            "{name} is at address {address:#x}, {} needs {size}-byte alignment",
            self.dtype
        );
        ensure!(span <= self.bytes, Bounds, "{name} has {} bytes, its shape and strides need {span}", self.bytes);
        ensure!(
            address.checked_add(self.bytes).is_some(),
            Bounds,
            "{name} has {} bytes, which wraps around",
            self.bytes
        );
        Ok(())
    }

    fn elements(&self) -> u128 {
        self.shape.iter().map(|&extent| extent as u128).product()
    }

    pub fn is_empty(&self) -> bool {
        self.span == 0
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.shape[0]
    }

    /// N of a weight, M of an activation.
    pub fn rows(&self) -> usize {
        self.shape[1]
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.shape[2]
    }

    #[inline]
    pub fn expect_dtype(&self, allowed: &[Dtype]) -> Result<()> {
        if allowed.contains(&self.dtype) {
            return Ok(());
        }
        let names: Vec<String> = allowed.iter().map(Dtype::to_string).collect();
        fail!(Dtype, "{} has dtype {}, must be {}", self.name, self.dtype, names.join(" or "))
    }

    #[inline]
    pub fn expect_device(&self, device: i32) -> Result<()> {
        ensure!(self.device == device, Device, "{} is on device {}, the context on {device}", self.name, self.device);
        Ok(())
    }

    #[inline]
    pub fn expect_rank(&self, rank: usize) -> Result<()> {
        ensure!(self.rank == rank, Shape, "{} has rank {}, must be {rank}", self.name, self.rank);
        Ok(())
    }

    /// Elements of a row must be neighbors, and rows must not overlap.
    #[inline]
    pub fn expect_rows_contiguous(&self) -> Result<()> {
        let axis = self.rank - 1;
        ensure!(
            self.columns() <= 1 || self.stride[2] == 1,
            Stride,
            "{} has stride[{axis}] = {}, must be 1",
            self.name,
            self.stride[2]
        );
        self.expect_no_self_overlap()
    }

    /// No two elements may share memory. Sufficient: each stride exceeds the span of all smaller ones.
    #[inline]
    pub fn expect_no_self_overlap(&self) -> Result<()> {
        let one_matrix = self.experts() == 1 && (self.stride[2] == 1 || self.columns() == 1);
        let apart = one_matrix && (self.rows() <= 1 || self.stride[1] >= self.columns());
        if self.is_empty() || apart { Ok(()) } else { self.check_strides() }
    }

    fn check_strides(&self) -> Result<()> {
        let mut axes = [0, 1, 2];
        axes.sort_unstable_by_key(|&axis| self.stride[axis]);
        let mut span = 1;
        for axis in axes.into_iter().filter(|&axis| self.shape[axis] > 1) {
            let (name, step) = (self.name, self.stride[axis]);
            ensure!(
                step >= span,
                Stride,
                "{name} has stride[{}] = {step}, its elements overlap below {span}",
                axis + self.rank - 3
            );
            span += (self.shape[axis] - 1) * step;
        }
        Ok(())
    }

    /// Fails if this output shares an element's memory with `other`.
    #[inline]
    pub fn expect_apart(&self, other: &Tensor) -> Result<()> {
        let (a, b) = (self.range(), other.range());
        let apart = a.0 >= b.1 || b.0 >= a.1 || self.is_empty() || other.is_empty() || self.device != other.device;
        if apart || self.interleaves(other) {
            return Ok(());
        }
        let shared = a.1.min(b.1) - a.0.max(b.0);
        fail!(Overlap, "{} overlaps {} in {shared} bytes", self.name, other.name)
    }

    /// Fails if `bytes` of memory at `address` touch this tensor.
    #[inline]
    pub fn expect_apart_from_memory(&self, name: &str, address: usize, bytes: usize) -> Result<()> {
        let (begin, end) = self.range();
        let apart = self.is_empty() || bytes == 0 || begin >= address + bytes || address >= end;
        ensure!(apart, Overlap, "{} overlaps {name}", self.name);
        Ok(())
    }

    /// True if both are column windows of one wider matrix that do not touch: same row stride, rows apart within it.
    fn interleaves(&self, other: &Tensor) -> bool {
        let pitch = self.stride[1] * self.dtype.bytes();
        let rows_only = self.experts() == 1 && other.experts() == 1 && self.rows() > 1 && other.rows() > 1;
        if !rows_only || pitch == 0 || pitch != other.stride[1] * other.dtype.bytes() {
            return false;
        }
        let width = |t: &Tensor| ((t.columns() - 1) * t.stride[2] + 1) * t.dtype.bytes();
        let ahead = (other.data as usize).wrapping_sub(self.data as usize) as isize;
        let offset = ahead.rem_euclid(pitch as isize) as usize;
        width(self) <= offset && offset + width(other) <= pitch
    }

    /// Bytes from the first element that may be accessed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The same memory as a tensor of bytes. Elements of a row must be neighbors, and rows must not overlap.
    pub fn as_bytes(&self) -> Result<Tensor> {
        self.expect_rows_contiguous()?;
        let size = self.dtype.bytes();
        let mut bytes = *self;
        bytes.dtype = Dtype::E4m3;
        // Only what no element uses can overflow: extents beside one of 0, strides of an extent of 1.
        bytes.shape[2] = self.shape[2].saturating_mul(size);
        bytes.stride = [self.stride[0].wrapping_mul(size), self.stride[1].wrapping_mul(size), 1];
        Ok(bytes)
    }

    /// The first element.
    pub fn address(&self) -> *mut u8 {
        self.data
    }

    fn range(&self) -> (usize, usize) {
        let begin = self.data as usize;
        (begin, begin.wrapping_add(self.span))
    }

    /// The box of `extent` elements from `first` on, as rank 3. It must lie within the shape.
    pub fn window(&self, first: [usize; 3], extent: [usize; 3]) -> Tensor {
        debug_assert!((0..3).all(|axis| first[axis] + extent[axis] <= self.shape[axis]));
        let mut window = Tensor { rank: 3, shape: extent, ..*self };
        window.span = span(extent, self.stride, self.dtype.bytes()).expect("less than the whole");
        if window.span > 0 {
            let index: usize = (0..3).map(|axis| first[axis] * self.stride[axis]).sum();
            let offset = index * self.dtype.bytes();
            (window.data, window.bytes) = (self.data.wrapping_add(offset), self.bytes - offset);
        }
        window
    }

    /// Address of an element.
    ///
    /// # Safety
    /// The indices lie within the shape.
    #[inline(always)]
    pub unsafe fn at<T>(&self, expert: usize, row: usize, column: usize) -> *mut T {
        debug_assert!(expert < self.shape[0] && row < self.shape[1] && column < self.shape[2]);
        let index = expert * self.stride[0] + row * self.stride[1] + column * self.stride[2];
        // SAFETY: `check_memory` bounded the offset of every index within the shape.
        unsafe { self.data.cast::<T>().add(index) }
    }

    /// A run of elements of one row, whose stride must be 1.
    ///
    /// # Safety
    /// The run lies within the shape, T has the dtype's size, and nobody writes to it while the slice lives.
    #[inline(always)]
    pub unsafe fn run<'a, T>(&self, expert: usize, row: usize, column: usize, length: usize) -> &'a [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.at::<T>(expert, row, column), length) }
    }

    /// As [`Tensor::run`], to write.
    ///
    /// # Safety
    /// As [`Tensor::run`], and nobody else reads it either.
    #[inline(always)]
    pub unsafe fn run_mut<'a, T>(&self, expert: usize, row: usize, column: usize, length: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at::<T>(expert, row, column), length) }
    }

    /// A column-major tensor with `padding` rows more, as far as the memory reaches.
    pub fn padded(&self, padding: usize) -> Tensor {
        let mut padded = *self;
        if !self.is_empty() {
            padded.shape[1] += padding;
            padded.stride[1] = 1;
            let whole = span(padded.shape, padded.stride, self.dtype.bytes()).unwrap_or(usize::MAX);
            padded.span = whole.min(self.bytes);
        }
        padded
    }

    /// Writes zero to the rows that [`Tensor::padded`] adds.
    ///
    /// # Safety
    /// The tensor is column-major, its padded form does not overlap itself, and nobody else uses its memory.
    pub unsafe fn zero_padding(&self, padding: usize) {
        for expert in 0..self.experts() {
            for column in 0..self.columns() {
                for row in self.rows()..self.rows() + padding {
                    let index = expert * self.stride[0] + row + column * self.stride[2];
                    if (index + 1) * self.dtype.bytes() <= self.bytes {
                        // SAFETY: within `bytes`; scales are 4 bytes wide.
                        unsafe { self.data.cast::<u32>().add(index).write(0) };
                    }
                }
            }
        }
    }
}

/// Bytes from the first element to the end of the last; `None` if that overflows.
#[inline]
fn span(shape: [usize; 3], stride: [usize; 3], size: usize) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    let mut last = 0usize;
    for axis in 0..3 {
        last = last.checked_add((shape[axis] - 1).checked_mul(stride[axis])?)?;
    }
    let span = last.checked_add(1)?.checked_mul(size)?;
    (span <= isize::MAX as usize).then_some(span)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn describe(data: *mut u8, bytes: u64, dtype: Dtype, shape: &[i64], stride: &[i64]) -> Result<Tensor> {
        let pad = |values: &[i64]| std::array::from_fn(|axis| values.get(axis).copied().unwrap_or(0));
        let (shape, stride, rank) = (&pad(shape), &pad(stride), shape.len() as u32);
        Tensor::new("x", &Description { data, bytes, dtype, device: -1, rank, shape, stride })
    }

    fn tensor(data: &mut [u32], dtype: Dtype, shape: &[i64], stride: &[i64]) -> Result<Tensor> {
        describe(data.as_mut_ptr().cast(), data.len() as u64 * 4, dtype, shape, stride)
    }

    #[test]
    fn bounds_count_the_last_element_only() {
        let mut data = [0u32; 7];
        assert!(tensor(&mut data, Dtype::F32, &[2, 3], &[4, 1]).is_ok());
        let error = tensor(&mut data[..6], Dtype::F32, &[2, 3], &[4, 1]).unwrap_err();
        assert_eq!(error.kind, Kind::Bounds);
        assert!(error.message.contains("24") && error.message.contains("28"), "{}", error.message);
    }

    #[test]
    fn hostile_extents_never_overflow() {
        let mut data = [0u32; 4];
        let big = i64::MAX;
        for (shape, stride) in
            [([big, big, big], [big, big, 1]), ([2, 1, 1], [big, 1, 1]), ([1, big, 1], [0, 1 << 62, 1])]
        {
            assert_eq!(tensor(&mut data, Dtype::F32, &shape, &stride).unwrap_err().kind, Kind::Bounds);
        }
        assert_eq!(tensor(&mut data, Dtype::F32, &[-1, 1], &[1, 1]).unwrap_err().kind, Kind::Shape);
        assert_eq!(tensor(&mut data, Dtype::F32, &[2, 2], &[-2, 1]).unwrap_err().kind, Kind::Stride);
        assert!(tensor(&mut data, Dtype::F32, &[0, big], &[0, 1]).is_ok());
    }

    #[test]
    fn null_and_misaligned_data_are_refused() {
        let null = |shape| describe(std::ptr::null_mut(), 64, Dtype::F32, shape, &[2, 1]);
        assert_eq!(null(&[2, 2]).unwrap_err().kind, Kind::NullPointer);
        assert!(null(&[0, 2]).is_ok());
        let mut data = [0u32; 8];
        let odd = describe(data.as_mut_ptr().cast::<u8>().wrapping_add(1), 16, Dtype::F32, &[2, 2], &[2, 1]);
        assert_eq!(odd.unwrap_err().kind, Kind::Alignment);
    }

    #[test]
    fn overlap_is_by_element_for_windows_of_one_matrix() {
        let mut data = [0u32; 64];
        let base = data.as_mut_ptr();
        let window = |column: usize, width: i64| {
            let data = base.wrapping_add(column).cast();
            describe(data, 4 * (64 - column as u64), Dtype::F32, &[4, width], &[16, 1]).unwrap()
        };
        assert!(window(0, 8).expect_apart(&window(8, 8)).is_ok());
        assert!(window(8, 8).expect_apart(&window(0, 8)).is_ok());
        assert!(window(0, 8).expect_apart(&window(7, 8)).is_err());
        assert!(window(4, 8).expect_apart(&window(0, 5)).is_err());
        assert!(window(0, 8).expect_apart(&window(0, 8)).is_err());
    }

    #[test]
    fn self_overlap_is_found_in_any_order_of_strides() {
        let mut data = [0u32; 64];
        assert!(tensor(&mut data, Dtype::F32, &[4, 3], &[1, 4]).unwrap().expect_no_self_overlap().is_ok());
        assert!(tensor(&mut data, Dtype::F32, &[5, 3], &[1, 4]).unwrap().expect_no_self_overlap().is_err());
        assert!(tensor(&mut data, Dtype::F32, &[2, 3], &[2, 1]).unwrap().expect_rows_contiguous().is_err());
        assert!(tensor(&mut data, Dtype::F32, &[1, 3], &[0, 1]).unwrap().expect_rows_contiguous().is_ok());
    }
}
