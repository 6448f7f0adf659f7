//! CUTLASS's blockwise-scaled kernels: on Hopper what DeepGEMM's does not write, fp16 and fp32, and the second choice for
//! bf16. Those for other architectures are compiled, and have not been run.

mod choice;
mod table;

use crate::context::Context;
use crate::device::{Device, Product, Stream};
use crate::error::Result;
use crate::kernels::cutlass::{GEMMS, Output};
use crate::linear::LinearSpec;
use crate::tensor::Dtype;

use super::choices::{self, Choices};
use super::gpu::{self, GpuLinear, Multiply};
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
        let (device, parts) = gpu::begin(context, spec)?;
        gpu::expect_boxes(spec, &parts)?;
        let output = match spec.output_dtype {
            Dtype::F16 => Output::F16,
            Dtype::F32 => Output::F32,
            _ => Output::Bf16,
        };
        let capability = device.capability;
        let fits = |&kernel: &usize| GEMMS[kernel].architecture == capability && GEMMS[kernel].output == output;
        let forced = choices::forced("FP8RT_CUTLASS_KERNEL", |name| choice::position(name).filter(fits))?;
        let choose = |m, n| forced.or_else(|| choice::choose(capability, device.processors, output, [m, n, spec.k]));
        let choices = parts.iter().map(|part| {
            let n = part.count;
            let Some(any) = choose(INVARIANT_ROWS, n) else {
                return Err(format!(
                    "no kernel for {} on compute capability {}",
                    spec.output_dtype,
                    device.capability_name()
                ));
            };
            // Whether there is one depends on N and K alone.
            let for_rows = |m| choose(m, n).unwrap_or(any);
            Ok(if spec.batch_invariant { Choices::only(any) } else { Choices::new(spec.max_m, for_rows) })
        });
        let choices = choices.collect::<std::result::Result<_, _>>()?;
        Ok(Box::new(GpuLinear { multiply: Chosen { choices }, parts }))
    }
}

/// Rows whose kernel takes any number of them where the bits must not depend on it: two kernels need not add in one order.
const INVARIANT_ROWS: usize = 128;

/// The kernels of each part.
struct Chosen {
    choices: Vec<Choices>,
}

impl Multiply for Chosen {
    fn configuration(&self, m: usize) -> String {
        let names: Vec<_> = self.choices.iter().map(|choices| GEMMS[choices.at(m)].name()).collect();
        format!("kernel {}", names.join(", "))
    }

    fn prepare(&self, device: &Device, stream: Stream) -> Result<()> {
        choices::all_of(&self.choices).into_iter().try_for_each(|kernel| device.prepare_cutlass(kernel, stream))
    }

    fn expect_ready(&self, device: &Device, m: usize, stream: Stream) -> Result<()> {
        self.choices.iter().try_for_each(|choices| device.expect_cutlass(choices.at(m), stream))
    }

    fn multiply(&self, device: &Device, product: &Product, part: usize, _: *mut u8, stream: Stream) -> Result<()> {
        device.multiply_with_cutlass(self.choices[part].at(product.m), product, stream)
    }
}
