//! Our own kernel: any shape, stride, alignment and format, on any GPU. Batch-invariant: the order of every sum is fixed.

use std::ffi::c_void;

use crate::blocks::groups;
use crate::context::Context;
use crate::device::{Device, Quantized, Stream, bias_of};
use crate::error::Result;
use crate::kernels::{Module, PlainArguments, PlainOperand};
use crate::linear::{Input, LinearRun, LinearSpec, WORKSPACE_ALIGNMENT};
use crate::quantize::Scales;
use crate::recipe::ScaleFormat;

use super::gpu::{self, Part};
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
        if context.gpu().is_none() {
            return Err("the context is on the host".to_owned());
        }
        let LinearSpec { max_m, n, k, .. } = *spec;
        let most = i32::MAX as usize;
        if [max_m, n, k].iter().any(|&extent| extent > most) {
            return Err(format!("M <= {max_m}, N = {n}, K = {k}: extents are at most {most}"));
        }
        let grid = spec.grid().map_err(|error| error.message)?;
        Ok(Box::new(PlainLinear { parts: gpu::parts(&grid) }))
    }
}

struct PlainLinear {
    parts: Vec<Part>,
}

/// Bytes of codes before the scales in the workspace.
fn codes_bytes(spec: &LinearSpec, m: usize) -> usize {
    (m * gpu::codes_stride(spec.k)).next_multiple_of(WORKSPACE_ALIGNMENT)
}

impl Linear for PlainLinear {
    fn configuration(&self, _: usize) -> String {
        String::new()
    }

    fn workspace(&self, _: &Context, spec: &LinearSpec, m: usize) -> usize {
        if m == 0 || spec.n == 0 {
            return 0;
        }
        let scales = 4 * gpu::stored_rows(m) * groups(spec.k);
        codes_bytes(spec, m) + scales.next_multiple_of(WORKSPACE_ALIGNMENT)
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
            let own = Quantized {
                codes: run.workspace,
                codes_stride: gpu::codes_stride(spec.k),
                scales: run.workspace.wrapping_add(codes_bytes(spec, m)).cast(),
                scales_stride: gpu::stored_rows(m),
                readable_rows: gpu::stored_rows(m),
            };
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

fn weight(run: &LinearRun, part: &Part) -> PlainOperand {
    let spec = run.spec;
    let packed = spec.weight_format == ScaleFormat::Ue8m0Packed;
    PlainOperand {
        codes: run.weight.address().wrapping_add(part.first * spec.weight_stride),
        stride: spec.weight_stride as i64,
        rows: part.rows as u32,
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
