//! Our own kernel: any shape, stride, alignment and format, on any GPU. Batch-invariant: the order of every sum is fixed.

use std::ffi::c_void;

use crate::blocks::Rows;
use crate::context::Context;
use crate::device::{Device, Stream, bias_of};
use crate::error::Result;
use crate::kernels::{Module, PlainArguments, PlainOperand};
use crate::linear::{Input, LinearRun, LinearSpec};
use crate::quantize::Scales;
use crate::recipe::ScaleFormat;

use super::gpu::{self, Room};
use super::{Backend, Linear};

pub struct Plain;

impl Backend for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn bit(&self) -> u32 {
        16
    }

    fn accept(&self, context: &Context, spec: &LinearSpec) -> std::result::Result<Box<dyn Linear>, String> {
        let (_, parts) = gpu::begin(context, spec)?;
        Ok(Box::new(PlainLinear { parts }))
    }
}

struct PlainLinear {
    parts: Vec<Rows>,
}

impl Linear for PlainLinear {
    fn configuration(&self, _: usize) -> String {
        String::new()
    }

    fn workspace(&self, _: &Context, spec: &LinearSpec, m: usize) -> usize {
        if m == 0 || spec.n == 0 { 0 } else { Room::new(spec, m).end }
    }

    fn prepare(&self, context: &Context, stream: *mut c_void) -> Result<()> {
        context.prepare(stream)
    }

    fn run(&self, context: &Context, run: &LinearRun, stream: *mut c_void) -> Result<()> {
        if run.m() == 0 || run.spec.n == 0 {
            return Ok(());
        }
        let (device, stream) = (gpu::device(context)?, Stream::new(stream));
        let _current = device.enter()?;
        device.check_linear(run)?;
        device.expect_loaded(&[Module::Groups, Module::Plain], stream)?;
        let activation = activation(device, run, stream)?;
        for part in &self.parts {
            let bytes = run.output.dtype.bytes();
            let arguments = PlainArguments {
                activation,
                weight: weight(run, part),
                bias: bias_of(run.bias, part.first),
                output: run.output.address().wrapping_add(part.first * bytes).cast(),
                output_stride: run.spec.output_stride as i64,
                columns: run.spec.k as u32,
                reserved: 0,
            };
            device.plain(&arguments, run.output.dtype, stream)?;
        }
        Ok(())
    }
}

/// x, quantized into the workspace if it is values.
fn activation(device: &Device, run: &LinearRun, stream: Stream) -> Result<PlainOperand> {
    let (spec, m) = (run.spec, run.m());
    match run.input {
        Input::Values(x) => {
            let own = Room::new(spec, m).of(run);
            // Exponents are packed for kernels that read them so; here the same scales are floats.
            let format = match spec.activation_format {
                ScaleFormat::Ue8m0Packed => ScaleFormat::Pow2,
                format => format,
            };
            if !x.is_empty() {
                device.quantize_activation(x, spec.formula, format, own, None, stream)?;
            }
            Ok(PlainOperand {
                codes: own.codes,
                scales: own.scales.cast(),
                stride: own.codes_stride as i64,
                scale_row: 1,
                scale_column: own.scales_stride as i64,
                rows: m as u32,
                packed: 0,
            })
        }
        Input::Quantized { codes, scales } => Ok(PlainOperand {
            codes: codes.address(),
            stride: spec.input_stride as i64,
            rows: m as u32,
            ..operand(&scales, 0)
        }),
    }
}

fn weight(run: &LinearRun, part: &Rows) -> PlainOperand {
    let spec = run.spec;
    let packed = spec.weight_format == ScaleFormat::Ue8m0Packed;
    PlainOperand {
        codes: run.weight.address().wrapping_add(part.first * spec.weight_stride),
        stride: spec.weight_stride as i64,
        rows: part.count as u32,
        ..operand(&run.weight_scales, if packed { part.first } else { part.bands })
    }
}

/// Scales from a row on; the codes are for the caller to fill in.
fn operand(scales: &Scales, first_row: usize) -> PlainOperand {
    let table = scales.tensor;
    // A column-major tensor of one row has its rows 1 apart, whatever its stride says.
    let scale_row = if scales.padded { 1 } else { table.stride[1] };
    PlainOperand {
        codes: std::ptr::null(),
        scales: table.address().wrapping_add(4 * first_row * scale_row).cast_const().cast(),
        stride: 0,
        scale_row: scale_row as i64,
        scale_column: table.stride[2] as i64,
        rows: 0,
        packed: u32::from(scales.format == ScaleFormat::Ue8m0Packed),
    }
}
