//! The linear as `cpu::linear` defines it: 16 lanes over each 128 columns, scaled, added by halves.

use crate::blocks::{BLOCK, groups};
use crate::cpu::Environment;
use crate::formats::e4m3;
use crate::linear::{Input, LinearRun};
use crate::quantize::ScaleRow;

use super::quantize::{load, store};

const LANES: usize = 16;

/// Codes and scale of one group of x.
fn group_of_x(run: &LinearRun, row: usize, group: usize) -> (Vec<u8>, f32) {
    let columns = group * BLOCK..((group + 1) * BLOCK).min(run.spec.k);
    match &run.input {
        Input::Quantized { codes, scales } => {
            // SAFETY: within x and its scales.
            let code = |column| unsafe { *codes.at::<u8>(0, row, column) };
            // SAFETY: as above.
            let scale = unsafe { scales.read(ScaleRow { expert: 0, band: row, row }, group) };
            (columns.map(code).collect(), scale)
        }
        Input::Values(x) => {
            let values: Vec<f32> = columns.map(|column| load(x, 0, row, column)).collect();
            let finite = values.iter().map(|x| x.abs()).filter(|x| x.is_finite());
            let (scale, factor) = run.spec.formula.scale(finite.fold(0.0, f32::max));
            (values.iter().map(|&x| e4m3::from_f32(factor.apply(x))).collect(), scale)
        }
    }
}

/// The totals of the lanes of one output.
fn totals(run: &LinearRun, row: usize, band: usize, column: usize) -> [f32; LANES] {
    let mut totals = [0f32; LANES];
    for group in 0..groups(run.spec.k) {
        let (codes, x_scale) = group_of_x(run, row, group);
        let mut partial = [0f32; LANES];
        for (index, &code) in codes.iter().enumerate() {
            // SAFETY: within the weight.
            let weight = unsafe { *run.weight.at::<u8>(0, column, group * BLOCK + index) };
            partial[index % LANES] += e4m3::to_f32(code) * e4m3::to_f32(weight);
        }
        // SAFETY: within the weight.
        let weight_scale = unsafe { run.weight_scales.read(ScaleRow { expert: 0, band, row: column }, group) };
        let scale = x_scale * weight_scale;
        let scale = if scale == f32::INFINITY { 0.0 } else { scale };
        for (total, partial) in totals.iter_mut().zip(partial) {
            *total += partial * scale;
        }
    }
    totals
}

/// Runs a checked linear.
pub fn linear(run: &LinearRun) {
    Environment::with(|| {
        for row in 0..run.m() {
            for band in 0..run.grid.bands() {
                let columns = run.grid.band(band);
                for column in columns.begin..columns.end {
                    let mut lanes = totals(run, row, band, column).to_vec();
                    while lanes.len() > 1 {
                        let upper = lanes.split_off(lanes.len() / 2);
                        lanes.iter_mut().zip(upper).for_each(|(low, high)| *low += high);
                    }
                    let bias = run.bias.as_ref().map_or(0.0, |bias| load(bias, 0, 0, column));
                    let value = if run.bias.is_some() { lanes[0] + bias } else { lanes[0] };
                    store(run.output, 0, row, column, value);
                }
            }
        }
    });
}
