//! DeepGEMM's kernel for Hopper, compiled ahead of time in a set of tiles.

mod choice;
mod table;

use crate::context::Context;
use crate::device::{Device, Product, Stream};
use crate::error::Result;
use crate::kernels::{MOST_K, PROCESSORS, TILES};
use crate::linear::LinearSpec;
use crate::tensor::Dtype;

use super::choices::{self, Choices};
use super::gpu::{self, GpuLinear, Multiply};
use super::{Backend, Linear};

pub struct DeepGemm;

impl Backend for DeepGemm {
    fn name(&self) -> &'static str {
        "deepgemm"
    }

    fn bit(&self) -> u32 {
        2
    }

    fn accept(&self, context: &Context, spec: &LinearSpec) -> std::result::Result<Box<dyn Linear>, String> {
        let (device, parts) = gpu::begin(context, spec)?;
        if device.capability != 90 {
            return Err(format!("compiled for compute capability 9.0, the device has {}", device.capability_name()));
        }
        if device.processors != PROCESSORS {
            return Err(format!("compiled for {PROCESSORS} multiprocessors, the device has {}", device.processors));
        }
        if spec.output_dtype != Dtype::Bf16 {
            return Err(format!("y is {}, this kernel writes bf16", spec.output_dtype));
        }
        if spec.k > MOST_K as usize {
            return Err(format!("K is {}, its scales and stages fit up to K = {MOST_K}", spec.k));
        }
        gpu::expect_boxes(spec, &parts)?;
        let forced = choices::forced("FP8RT_DEEPGEMM_TILE", |name| {
            let fits = |tile: &usize| parts.iter().all(|part| TILES[*tile].fits(part.count, spec.k));
            choice::position(name).filter(fits)
        })?;
        let choices = parts.iter().map(|part| match forced {
            Some(tile) => Choices::only(tile),
            None => Choices::new(spec.max_m, |m| choice::choose(m, part.count, spec.k)),
        });
        let multiply = Tiled { choices: choices.collect() };
        Ok(Box::new(GpuLinear { multiply, parts }))
    }
}

/// The tiles of each part. All add over K in one order, so the choice changes no bit.
struct Tiled {
    choices: Vec<Choices>,
}

impl Multiply for Tiled {
    fn configuration(&self, m: usize) -> String {
        let names: Vec<_> = self.choices.iter().map(|choices| TILES[choices.at(m)].name()).collect();
        format!("tile {}", names.join(", "))
    }

    fn prepare(&self, device: &Device, stream: Stream) -> Result<()> {
        choices::all_of(&self.choices).into_iter().try_for_each(|tile| device.prepare_tile(tile, stream))
    }

    fn expect_ready(&self, device: &Device, m: usize, stream: Stream) -> Result<()> {
        self.choices.iter().try_for_each(|choices| device.expect_tile(choices.at(m), stream))
    }

    fn multiply(&self, device: &Device, product: &Product, part: usize, _: *mut u8, stream: Stream) -> Result<()> {
        device.deepgemm(self.choices[part].at(product.m), product, stream)
    }
}
