//! NVIDIA's library, where an installed one has scales of 1x128 and 128x128. It copies the scales of the weight at each run
//! into the layout that it wants.

use crate::blocks::Rows;
use crate::context::Context;
use crate::device::{CUBLASLT_ROWS as ROWS, CublasLtShape as Shape, Device, Product, Stream};
use crate::error::Result;
use crate::linear::LinearSpec;
use crate::tensor::Dtype;

use super::gpu::{self, GpuLinear, Multiply};
use super::{Backend, Linear};

pub struct CublasLt;

impl Backend for CublasLt {
    fn name(&self) -> &'static str {
        "cublaslt"
    }

    fn bit(&self) -> u32 {
        8
    }

    fn accept(&self, context: &Context, spec: &LinearSpec) -> std::result::Result<Box<dyn Linear>, String> {
        let (device, parts) = gpu::begin(context, spec)?;
        if device.capability != 90 {
            return Err(format!(
                "these scales need compute capability 9.0, the device has {}",
                device.capability_name()
            ));
        }
        if spec.batch_invariant {
            return Err("its order of sums depends on M".to_owned());
        }
        if spec.output_dtype == Dtype::F16 {
            return Err("y is fp16, it writes bf16 or fp32".to_owned());
        }
        gpu::expect_boxes(spec, &parts)?;
        if !spec.k.is_multiple_of(16) {
            return Err(format!("K is {}, needs a multiple of 16", spec.k));
        }
        let multiply = Shapes { spec: spec.clone(), parts: parts.clone() };
        for part in &parts {
            for m in [ROWS, spec.max_m.next_multiple_of(ROWS).max(ROWS)] {
                if let Some(reason) = device.cublaslt_refusal(&multiply.shape(m, part.count)) {
                    return Err(reason);
                }
            }
        }
        Ok(Box::new(GpuLinear { multiply, parts }))
    }
}

struct Shapes {
    spec: LinearSpec,
    parts: Vec<Rows>,
}

impl Shapes {
    fn shape(&self, m: usize, n: usize) -> Shape {
        let spec = &self.spec;
        Shape {
            m,
            n,
            k: spec.k,
            codes_stride: gpu::codes_stride(spec.k),
            weight_stride: spec.weight_stride,
            output_stride: spec.output_stride,
            output: spec.output_dtype,
        }
    }
}

impl Multiply for Shapes {
    fn configuration(&self, _: usize) -> String {
        String::new()
    }

    fn workspace(&self, m: usize) -> usize {
        self.parts.iter().map(|part| self.shape(m, part.count).workspace()).max().unwrap_or(0)
    }

    /// The handle was made when the plan was.
    fn prepare(&self, _: &Device, _: Stream) -> Result<()> {
        Ok(())
    }

    fn expect_ready(&self, _: &Device, _: usize, _: Stream) -> Result<()> {
        Ok(())
    }

    fn multiply(&self, device: &Device, product: &Product, _: usize, workspace: *mut u8, stream: Stream) -> Result<()> {
        let shape = Shape { codes_stride: product.codes_stride, ..self.shape(product.m, product.n) };
        device.multiply_with_cublaslt(&shape, product, workspace, stream)
    }
}
