//! Copies on a GPU: lines by the driver, scales of another orientation by a kernel.

use cudarc::driver::sys;

use crate::context::HOST;
use crate::copy::{Copy, Lines};
use crate::error::Result;
use crate::kernels::CopyArguments;
use crate::tensor::Tensor;

use super::driver::check;
use super::quantize::extent;
use super::{Device, Stream};

impl Device {
    /// Enqueues a checked copy.
    pub fn copy(&self, copy: &Copy, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        if !copy.from.is_empty() {
            match copy.lines() {
                Some(lines) => copy_lines(copy, &lines, stream)?,
                None => self.copy_elements(&copy.from, &copy.to, stream)?,
            }
        }
        self.zero_padding(&copy.to, copy.padding, stream)
    }

    fn copy_elements(&self, from: &Tensor, to: &Tensor, stream: Stream) -> Result<()> {
        for expert in 0..from.experts() {
            // SAFETY: an expert of both, neither of which is empty.
            let (source, target) = unsafe { (from.at(expert, 0, 0), to.at(expert, 0, 0)) };
            let (rows, columns) = (extent(from.rows(), from)?, extent(from.columns(), from)?);
            let arguments = CopyArguments {
                source,
                target,
                source_row: from.stride[1] as i64,
                source_column: from.stride[2] as i64,
                target_row: to.stride[1] as i64,
                target_column: to.stride[2] as i64,
                rows,
                columns,
                padded_rows: rows,
                padded_columns: columns,
            };
            self.copy_words(&arguments, stream)?;
        }
        Ok(())
    }

    /// Zeroes rows below the last of a column-major tensor, as far as its memory reaches: all of its columns, or all but
    /// the last and what there is of that.
    fn zero_padding(&self, to: &Tensor, padding: usize, stream: Stream) -> Result<()> {
        if padding == 0 || to.is_empty() {
            return Ok(());
        }
        let (words, rows, columns) = (to.bytes() / 4, to.rows(), to.columns());
        for expert in 0..to.experts() {
            let last = expert * to.stride[0] + (columns - 1) * to.stride[2] + rows;
            let of_last = words.saturating_sub(last).min(padding);
            let whole = if of_last == padding { columns } else { columns - 1 };
            self.zero(to, expert, [0, whole], padding, stream)?;
            self.zero(to, expert, [whole, columns], of_last, stream)?;
        }
        Ok(())
    }

    /// Zeroes `padding` rows below the last in some columns.
    fn zero(&self, to: &Tensor, expert: usize, columns: [usize; 2], padding: usize, stream: Stream) -> Result<()> {
        let [first, end] = columns;
        if first == end || padding == 0 {
            return Ok(());
        }
        let offset = expert * to.stride[0] + first * to.stride[2] + to.rows();
        let target = to.address().cast::<u32>().wrapping_add(offset);
        // There is no source: everything is beyond it.
        let arguments = CopyArguments {
            source: target,
            target,
            source_row: 0,
            source_column: 0,
            target_row: 1,
            target_column: to.stride[2] as i64,
            rows: 0,
            columns: 0,
            padded_rows: padding as u32,
            padded_columns: extent(end - first, to)?,
        };
        self.copy_words(&arguments, stream)
    }
}

fn copy_lines(copy: &Copy, lines: &Lines, stream: Stream) -> Result<()> {
    let on_host = copy.from.device == HOST;
    for outer in 0..lines.outer {
        let from = copy.from.address().wrapping_add(outer * lines.from_outer);
        let to = copy.to.address().wrapping_add(outer * lines.to_outer);
        if lines.count == 1 {
            copy_bytes(to, from, lines.bytes, on_host, stream)?;
        } else {
            copy_rows(to, lines.to_pitch, from, lines.from_pitch, [lines.bytes, lines.count], on_host, stream)?;
        }
    }
    Ok(())
}

fn copy_bytes(to: *mut u8, from: *const u8, bytes: usize, on_host: bool, stream: Stream) -> Result<()> {
    // SAFETY: the caller of the library vouches for both.
    unsafe {
        if on_host {
            let result = sys::cuMemcpyHtoDAsync_v2(to as u64, from.cast(), bytes, stream.0);
            check(result, "cuMemcpyHtoDAsync")
        } else {
            check(sys::cuMemcpyDtoDAsync_v2(to as u64, from as u64, bytes, stream.0), "cuMemcpyDtoDAsync")
        }
    }
}

/// Enqueues a copy of rows: `extent` is bytes of a row, and rows.
pub(super) fn copy_rows(
    to: *mut u8,
    to_pitch: usize,
    from: *const u8,
    from_pitch: usize,
    extent: [usize; 2],
    on_host: bool,
    stream: Stream,
) -> Result<()> {
    use sys::CUmemorytype_enum as Kind;
    // SAFETY: plain numbers, and enumerations that are set below.
    let mut copy: sys::CUDA_MEMCPY2D = unsafe {
        let mut zeros = std::mem::MaybeUninit::<sys::CUDA_MEMCPY2D>::zeroed();
        (*zeros.as_mut_ptr()).srcMemoryType = Kind::CU_MEMORYTYPE_DEVICE;
        (*zeros.as_mut_ptr()).dstMemoryType = Kind::CU_MEMORYTYPE_DEVICE;
        zeros.assume_init()
    };
    if on_host {
        (copy.srcMemoryType, copy.srcHost) = (Kind::CU_MEMORYTYPE_HOST, from.cast());
    } else {
        copy.srcDevice = from as u64;
    }
    (copy.srcPitch, copy.dstPitch, copy.dstDevice) = (from_pitch, to_pitch, to as u64);
    [copy.WidthInBytes, copy.Height] = extent;
    // SAFETY: the caller of the library vouches for both.
    check(unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream.0) }, "cuMemcpy2DAsync")
}
