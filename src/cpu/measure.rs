//! Measurements on the threads of a context: a task takes a row of blocks. For reports: not made to be fast.

use crate::blocks::{BLOCK, groups};
use crate::error::Result;
use crate::formats::{e4m3, half};
use crate::measure::{ErrorSums, Measurement};
use crate::quantize::ScaleRow;
use crate::tensor::{Dtype, Tensor};

use super::Engine;

/// Adds the blocks of checked requests to their sums.
pub fn measure(engine: &Engine, requests: &[Measurement]) -> Result<()> {
    for request in requests {
        let columns = groups(request.source.columns());
        let tasks = request.blocks().checked_div(columns).unwrap_or(0);
        let bands = request.grid().bands();
        engine.threads.for_each(tasks, |_, task| {
            let mut sums = ErrorSums::default();
            for column in 0..columns {
                sums.add(&block(request, task / bands, task % bands, column));
            }
            // SAFETY: a host context has its sums in host memory.
            unsafe { request.sums.add(&sums) };
        })?;
    }
    Ok(())
}

fn load(tensor: &Tensor, expert: usize, row: usize, column: usize) -> f32 {
    // SAFETY: the loops stay within the shape, and the dtype says what lies there.
    unsafe {
        match tensor.dtype {
            Dtype::Bf16 => half::bf16_to_f32(*tensor.at(expert, row, column)),
            Dtype::F16 => half::f16_to_f32(*tensor.at(expert, row, column)),
            _ => *tensor.at(expert, row, column),
        }
    }
}

fn block(request: &Measurement, expert: usize, band: usize, column: usize) -> ErrorSums {
    let (rows, mut sums, mut amax) = (request.grid().band(band), ErrorSums::default(), 0f32);
    // SAFETY: within the matrix; the caller does not write to it during the call.
    let scale = unsafe { request.scales.read(ScaleRow { expert, band, row: rows.begin }, column) };
    for row in rows.begin..rows.end {
        for column in column * BLOCK..((column + 1) * BLOCK).min(request.source.columns()) {
            let x = load(request.source, expert, row, column);
            // SAFETY: within the matrix.
            let code = unsafe { *request.codes.at::<u8>(expert, row, column) };
            sums.count(x, e4m3::dequantize(code, scale), code);
            if x.is_finite() {
                amax = amax.max(x.abs());
            }
        }
    }
    sums.end_block(amax);
    sums
}
