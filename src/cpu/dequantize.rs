//! Codes times scales, by rows.

use std::marker::PhantomData;

use crate::blocks::{BLOCK, groups};
use crate::error::Result;
use crate::quantize::{Dequantize, ScaleRow};
use crate::tensor::Dtype;

use super::Engine;
use super::isa::Kernel;
use super::lanes::Instructions;
use super::segment::{Bf16, Element, F16, decode};

/// Runs a checked dequantization. Equal to `reference::dequantize` in every byte.
pub fn dequantize(engine: &Engine, request: &Dequantize) -> Result<()> {
    match request.output.dtype {
        Dtype::Bf16 => bands::<Bf16>(engine, request),
        Dtype::F16 => bands::<F16>(engine, request),
        _ => bands::<f32>(engine, request),
    }
}

fn bands<T: Element>(engine: &Engine, request: &Dequantize) -> Result<()> {
    let bands = request.grid.bands();
    engine.threads.for_each(request.codes.experts() * bands, |_, task| {
        let (expert, band) = (task / bands, task % bands);
        engine.isa.run(Band::<T> { request, expert, band, element: PhantomData });
    })
}

/// One band of one expert.
struct Band<'a, T> {
    request: &'a Dequantize<'a>,
    expert: usize,
    band: usize,
    element: PhantomData<T>,
}

impl<T: Element> Kernel for Band<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Band { request, expert, band, .. } = self;
        let columns = request.codes.columns();
        let rows = request.grid.band(band);
        for row in rows.begin..rows.end {
            for group in 0..groups(columns) {
                let (first, length) = (group * BLOCK, (columns - group * BLOCK).min(BLOCK));
                // SAFETY: within the matrices, whose dtypes chose the types; no other task has this row.
                unsafe {
                    let scale = request.scales.read(ScaleRow { expert, band, row }, group);
                    let codes = request.codes.run(expert, row, first, length);
                    decode::<T>(codes, scale, request.output.run_mut(expert, row, first, length));
                }
            }
        }
    }
}
