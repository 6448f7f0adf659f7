//! Quantize and dequantize as the table of recipes defines them.

use crate::blocks::{BLOCK, groups};
use crate::cpu::Environment;
use crate::formats::{e4m3, e8m0, half};
use crate::quantize::{Dequantize, Health, Quantize, Rule, ScaleRow};
use crate::recipe::ScaleFormat;
use crate::tensor::{Dtype, Tensor};

/// One element as float32.
pub(super) fn load(tensor: &Tensor, expert: usize, row: usize, column: usize) -> f32 {
    // SAFETY: the loops stay within the shape, and the dtype says what lies there.
    unsafe {
        match tensor.dtype {
            Dtype::Bf16 => half::bf16_to_f32(*tensor.at(expert, row, column)),
            Dtype::F16 => half::f16_to_f32(*tensor.at(expert, row, column)),
            _ => *tensor.at(expert, row, column),
        }
    }
}

/// Rounds a float32 to the tensor's dtype and stores it.
pub(super) fn store(tensor: &Tensor, expert: usize, row: usize, column: usize, value: f32) {
    // SAFETY: the loops stay within the shape, and the dtype says what lies there.
    unsafe {
        match tensor.dtype {
            Dtype::Bf16 => *tensor.at(expert, row, column) = half::bf16_from_f32(value),
            Dtype::F16 => *tensor.at(expert, row, column) = half::f16_from_f32(value),
            _ => *tensor.at(expert, row, column) = value,
        }
    }
}

fn store_scale(request: &Quantize, at: ScaleRow, group: usize, scale: f32) {
    let tensor = request.scales.tensor;
    // SAFETY: the loops stay within the matrix, whose scales these are.
    unsafe {
        if request.scales.format != ScaleFormat::Ue8m0Packed {
            *tensor.at(at.expert, at.band, group) = scale;
            return;
        }
        let band = request.grid.band(at.band);
        for row in band.begin..band.end {
            let word = tensor.at::<u32>(at.expert, row, group / 4);
            let others = if group.is_multiple_of(4) { 0 } else { *word };
            *word = others | (e8m0::from_pow2(scale) as u32) << (8 * (group % 4));
        }
    }
}

fn examine(health: &mut Health, x: f32, quotient: f32, code: u8, given: bool) {
    let magnitude = code & 0x7F;
    health.non_finite += !x.is_finite() as u64;
    health.saturated += (given && x.is_finite() && quotient.abs() > e4m3::OVERFLOW) as u64;
    health.became_zero += (x != 0.0 && magnitude == 0) as u64;
    health.became_subnormal += (1..8).contains(&magnitude) as u64;
}

/// Quantizes one group of one band: amax, scale, codes.
fn group(request: &Quantize, expert: usize, band: usize, group: usize, health: &mut Health) {
    let source = &request.source;
    let rows = request.grid.band(band);
    let columns = group * BLOCK..((group + 1) * BLOCK).min(source.columns());
    let mut amax = 0f32;
    for row in rows.begin..rows.end {
        for column in columns.clone() {
            let magnitude = load(source, expert, row, column).abs();
            if magnitude.is_finite() && magnitude > amax {
                amax = magnitude;
            }
        }
    }
    let given = matches!(request.rule, Rule::Given);
    if !given {
        let at = ScaleRow { expert, band, row: rows.begin };
        // SAFETY: the group lies within the matrix.
        let (scale, _) = unsafe { request.scale(at, group, || amax) };
        store_scale(request, at, group, scale);
    }
    let Some(codes) = &request.codes else { return };
    for row in rows.begin..rows.end {
        for column in columns.clone() {
            // SAFETY: the group lies within the matrix.
            let (_, factor) = unsafe { request.scale(ScaleRow { expert, band, row }, group, || amax) };
            let x = load(source, expert, row, column);
            let quotient = factor.apply(x);
            let code = e4m3::from_f32(quotient);
            // SAFETY: as above.
            unsafe { *codes.at(expert, row, column) = code };
            examine(health, x, quotient, code, given);
        }
    }
}

/// Runs a checked quantization.
pub fn quantize(request: &Quantize) {
    Environment::with(|| {
        let mut health = Health::default();
        for expert in 0..request.source.experts() {
            for band in 0..request.grid.bands() {
                for index in 0..groups(request.source.columns()) {
                    group(request, expert, band, index, &mut health);
                }
            }
        }
        if !matches!(request.rule, Rule::Given) {
            // SAFETY: the caller gave the scales to this call alone.
            unsafe { request.scales.zero_padding() };
        }
        if let Some(counters) = request.health {
            // SAFETY: the oracle is called with counters in host memory.
            unsafe { health.add_to(counters) };
        }
    });
}

/// Runs a checked dequantization.
pub fn dequantize(request: &Dequantize) {
    Environment::with(|| {
        for expert in 0..request.codes.experts() {
            for band in 0..request.grid.bands() {
                let rows = request.grid.band(band);
                for row in rows.begin..rows.end {
                    for column in 0..request.codes.columns() {
                        let at = ScaleRow { expert, band, row };
                        // SAFETY: the loops stay within the matrix.
                        let (scale, code) = unsafe {
                            (request.scales.read(at, column / BLOCK), *request.codes.at(expert, row, column))
                        };
                        store(request.output, expert, row, column, e4m3::dequantize(code, scale));
                    }
                }
            }
        }
    });
}
