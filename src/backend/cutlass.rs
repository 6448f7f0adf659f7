//! CUTLASS's blockwise-scaled kernels: on Hopper what DeepGEMM's does not write, fp16 and fp32, and the second choice for
//! bf16. Those for other architectures are compiled, and have not been run.

use crate::context::Context;
use crate::device::{Device, Product, Stream};
use crate::error::Result;
use crate::kernels::cutlass::{GEMMS, Output, choose};
use crate::linear::LinearSpec;
use crate::tensor::Dtype;

use super::gpu::{self, GpuLinear, Multiply, Part};
use super::{Backend, Linear};

pub struct Cutlass;

impl Backend for Cutlass {
    fn name(&self) -> &'static str {
        "cutlass"
    }

    fn bit(&self) -> u32 {
        4
    }

    fn accept(&self, context: &Context, spec: &LinearSpec) -> std::result::Result<Box<dyn Linear>, String> {
        let Some(device) = context.gpu() else { return Err("the context is on the host".to_owned()) };
        let grid = spec.grid().map_err(|error| error.message)?;
        let parts = gpu::parts(&grid);
        if let Some(reason) = gpu::refusal(spec, &parts) {
            return Err(reason);
        }
        let output = match spec.output_dtype {
            Dtype::F16 => Output::F16,
            Dtype::F32 => Output::F32,
            _ => Output::Bf16,
        };
        let chooser = Chooser {
            forced: forced(device.capability, output)?,
            capability: device.capability,
            processors: device.processors,
            output,
            k: spec.k,
            // One kernel for any number of rows: their sums are not all in the same order.
            rows: spec.batch_invariant.then_some(INVARIANT_ROWS),
        };
        for part in &parts {
            if chooser.kernel(1, part.rows).is_none() {
                let capability = device.capability_name();
                return Err(format!("no kernel for {} on compute capability {capability}", spec.output_dtype));
            }
        }
        Ok(Box::new(GpuLinear { multiply: Chosen { chooser, max_m: spec.max_m, parts: parts.clone() }, parts }))
    }
}

/// Rows whose kernel takes any number of them where the bits must not depend on it.
const INVARIANT_ROWS: usize = 128;

/// What decides the kernel beside M and N.
struct Chooser {
    forced: Option<usize>,
    capability: u32,
    processors: u32,
    output: Output,
    k: usize,
    /// Instead of the rows that there are.
    rows: Option<usize>,
}

impl Chooser {
    fn kernel(&self, m: usize, n: usize) -> Option<usize> {
        let m = self.rows.unwrap_or(m);
        self.forced.or_else(|| choose(self.capability, self.processors, self.output, [m, n, self.k]))
    }
}

struct Chosen {
    chooser: Chooser,
    max_m: usize,
    parts: Vec<Part>,
}

impl Chosen {
    /// `accept` saw that there is one.
    fn kernel(&self, m: usize, part: usize) -> usize {
        self.chooser.kernel(m, self.parts[part].rows).expect("accepted")
    }
}

impl Multiply for Chosen {
    fn configuration(&self, m: usize) -> String {
        let names: Vec<_> = (0..self.parts.len()).map(|part| GEMMS[self.kernel(m, part)].name()).collect();
        format!("kernel {}", names.join(", "))
    }

    /// Every kernel that some number of rows has. The model changes its mind at multiples of tiles only.
    fn prepare(&self, device: &Device, stream: Stream) -> Result<()> {
        let mut kernels: Vec<_> = steps(self.max_m)
            .flat_map(|m| (0..self.parts.len()).map(move |part| (m, part)))
            .map(|(m, part)| self.kernel(m, part))
            .collect();
        kernels.sort_unstable();
        kernels.dedup();
        kernels.into_iter().try_for_each(|kernel| device.prepare_cutlass(kernel, stream))
    }

    fn expect_ready(&self, device: &Device, m: usize, stream: Stream) -> Result<()> {
        let m = step(m);
        (0..self.parts.len()).try_for_each(|part| device.expect_cutlass(self.kernel(m, part), stream))
    }

    fn multiply(&self, device: &Device, product: &Product, part: usize, _: *mut u8, stream: Stream) -> Result<()> {
        device.multiply_with_cutlass(self.kernel(step(product.m), part), product, stream)
    }
}

/// The number of rows that a run of `m` rows is taken for.
fn step(m: usize) -> usize {
    match m {
        0..=1 => 1,
        2..=128 => m.next_multiple_of(16),
        129..=8192 => m.next_multiple_of(128),
        _ => 16384,
    }
}

/// Every such number up to that of `max_m`.
fn steps(max_m: usize) -> impl Iterator<Item = usize> {
    let mut next = Some(1);
    std::iter::from_fn(move || {
        let m = next?;
        next = (m < max_m && m < 16384).then(|| step(m + 1));
        Some(m)
    })
}

/// The kernel that `FP8RT_CUTLASS_KERNEL` names, for measuring.
fn forced(capability: u32, output: Output) -> std::result::Result<Option<usize>, String> {
    let Ok(name) = std::env::var("FP8RT_CUTLASS_KERNEL") else { return Ok(None) };
    if name.is_empty() {
        return Ok(None);
    }
    let fits = |index: &usize| GEMMS[*index].architecture == capability && GEMMS[*index].output == output;
    match GEMMS.iter().position(|gemm| gemm.name() == name).filter(fits) {
        Some(kernel) => Ok(Some(kernel)),
        None => Err(format!("FP8RT_CUTLASS_KERNEL names \"{name}\", which is no kernel of this build for this linear")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_rows_has_a_step_that_is_prepared() {
        for max_m in [1, 15, 16, 17, 128, 129, 4096, 8192, 100_000] {
            let prepared: Vec<_> = steps(max_m).collect();
            assert!((1..=max_m).all(|m| prepared.contains(&step(m))), "max_m = {max_m}");
            assert!(prepared.len() < 80);
        }
    }
}
