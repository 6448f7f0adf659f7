//! Rows of x into the workspace: quantized, and decoded again to float32.

use std::marker::PhantomData;
use std::ops::Range;

use crate::blocks::BLOCK;
use crate::cpu::isa::Kernel;
use crate::cpu::lanes::Instructions;
use crate::cpu::segment::{Amax, Divided, Element, Multiplied, decode, encode};
use crate::linear::{Input, LinearRun};
use crate::quantize::ScaleRow;
use crate::recipe::Factor;

use super::Chunk;

/// Some rows of a chunk; T is the type of the values.
pub struct Rows<'a, T> {
    pub run: &'a LinearRun<'a>,
    pub chunk: &'a Chunk,
    pub rows: Range<usize>,
    pub element: PhantomData<T>,
}

impl<T: Element> Kernel for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<I: Instructions>(self) {
        for row in self.rows.clone() {
            for group in 0..self.chunk.groups {
                self.group(row, group);
            }
        }
    }
}

impl<T: Element> Rows<'_, T> {
    #[inline(always)]
    fn group(&self, row: usize, group: usize) {
        let (chunk, first) = (self.chunk, group * BLOCK);
        let length = (self.run.spec.k - first).min(BLOCK);
        let mut codes = [0u8; BLOCK];
        let at = chunk.first + row;
        let scale = match &self.run.input {
            Input::Values(x) => {
                // SAFETY: within x, whose dtype chose T.
                let values: &[T] = unsafe { x.run(0, at, first, length) };
                let mut amax = Amax::new();
                amax.add_finite(values);
                let (scale, factor) = self.run.spec.formula.scale(amax.get());
                match factor {
                    Factor::Divide(scale) => encode(values, Divided(scale), &mut codes[..length]),
                    Factor::Multiply(inverse) => encode(values, Multiplied(inverse), &mut codes[..length]),
                }
                scale
            }
            Input::Quantized { codes: x, scales } => {
                // SAFETY: within x and its scales.
                unsafe {
                    codes[..length].copy_from_slice(x.run(0, at, first, length));
                    scales.read(ScaleRow { expert: 0, band: at, row: at }, group)
                }
            }
        };
        let place = row * chunk.groups + group;
        // SAFETY: within the workspace that `Layout` laid out for the chunk; no other task has this row.
        unsafe {
            chunk.scales.add(place).write(scale);
            decode(&codes, 1.0, std::slice::from_raw_parts_mut(chunk.codes.add(place * BLOCK), BLOCK));
        }
    }
}
