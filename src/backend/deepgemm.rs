//! DeepGEMM's kernel for Hopper, compiled ahead of time in a set of tiles.

mod choice;
mod table;

use crate::context::Context;
use crate::device::{Device, Product, Stream};
use crate::error::Result;
use crate::kernels::{MOST_K, PROCESSORS, TILES};
use crate::linear::LinearSpec;
use crate::tensor::Dtype;

use super::gpu::{self, GpuLinear, Multiply};
use super::{Backend, Linear};
use choice::Choices;

pub struct DeepGemm;

impl Backend for DeepGemm {
    fn name(&self) -> &'static str {
        "deepgemm"
    }

    fn bit(&self) -> u32 {
        2
    }

    fn accept(&self, context: &Context, spec: &LinearSpec) -> std::result::Result<Box<dyn Linear>, String> {
        let Some(device) = context.gpu() else { return Err("the context is on the host".to_owned()) };
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
        let grid = spec.grid().map_err(|error| error.message)?;
        let parts = gpu::parts(&grid);
        if let Some(reason) = gpu::refusal(spec, &parts) {
            return Err(reason);
        }
        let forced = choice::forced()?;
        let choices = parts.iter().map(|part| match forced {
            Some(tile) => Choices::only(tile),
            None => Choices::new(spec.max_m, part.rows, spec.k),
        });
        let multiply = Tiled { choices: choices.collect() };
        Ok(Box::new(GpuLinear { multiply, parts }))
    }
}

/// The tiles of each part.
struct Tiled {
    choices: Vec<Choices>,
}

impl Multiply for Tiled {
    fn configuration(&self, m: usize) -> String {
        let names: Vec<_> = self.choices.iter().map(|choices| TILES[choices.tile(m)].name()).collect();
        format!("tile {}", names.join(", "))
    }

    fn prepare(&self, device: &Device, stream: Stream) -> Result<()> {
        let mut tiles: Vec<_> = self.choices.iter().flat_map(Choices::tiles).collect();
        tiles.sort_unstable();
        tiles.dedup();
        tiles.into_iter().try_for_each(|tile| device.prepare_tile(tile, stream))
    }

    fn expect_ready(&self, device: &Device, m: usize, stream: Stream) -> Result<()> {
        let mut tiles = self.choices.iter().map(|choices| choices.tile(m));
        tiles.try_for_each(|tile| device.expect_tile(tile, stream))
    }

    fn multiply(&self, device: &Device, product: &Product, part: usize, _: *mut u8, stream: Stream) -> Result<()> {
        device.deepgemm(self.choices[part].tile(product.m), product, stream)
    }
}
