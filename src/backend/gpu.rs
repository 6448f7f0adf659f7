//! The steps around a product on a GPU, which backends share: the activation quantized into the workspace, scales brought
//! into the layout that kernels read, a product a part, and the bias.

use crate::blocks::{BLOCK, Rows, aligned_rows, groups};
use crate::context::Context;
use crate::device::{Ahead, Device, Product, Quantized, Stream};
use crate::error::{Result, ensure, fail};
use crate::kernels::Module;
use crate::linear::{Input, LinearRun, LinearSpec, WORKSPACE_ALIGNMENT};
use crate::recipe::ScaleFormat;
use crate::tensor::Tensor;

use super::Linear;

/// How a backend multiplies what these steps have brought.
pub trait Multiply: Send + Sync {
    /// What was chosen for `m` rows, for a person.
    fn configuration(&self, m: usize) -> String;

    /// Bytes that a product of `m` rows needs for itself. Monotone in `m`.
    fn workspace(&self, _m: usize) -> usize {
        0
    }

    /// Loads what runs need.
    fn prepare(&self, device: &Device, stream: Stream) -> Result<()>;

    /// Fails if a run of `m` rows on this stream would find something not loaded that it may not load now.
    fn expect_ready(&self, device: &Device, m: usize, stream: Stream) -> Result<()>;

    /// Enqueues the product of part `part`.
    fn multiply(
        &self,
        device: &Device,
        product: &Product,
        part: usize,
        workspace: *mut u8,
        stream: Stream,
    ) -> Result<()>;
}

/// Rows up to which the kernel that quantizes also asks L2 for the weight: it has time, and the product would wait. Above half
/// of these rows asking was measured to cost more than it gives where y has few columns.
const MOST_AHEAD_ROWS: usize = 128;
const FEW_AHEAD_COLUMNS: usize = 4096;
/// Bytes of the weight that are asked for: what memory gives while a small activation is quantized, and some more.
const AHEAD_BYTES: usize = 8 << 20;
/// Most bytes of the scales.
const AHEAD_SCALES: usize = 256 << 10;
/// Columns of the tiles that a product of few rows begins with, on each multiprocessor.
const AHEAD_COLUMNS: usize = 64;

/// A linear whose product is a backend's.
pub struct GpuLinear<M> {
    pub multiply: M,
    /// Rows of the weight that are multiplied at once.
    pub parts: Vec<Rows>,
}

/// Rows of codes and scales that the workspace holds. A tile that reaches beyond the rows that exist is read by the copy
/// engine much more slowly than one that does not, so there are more, which nothing writes.
fn stored_rows(m: usize) -> usize {
    match m {
        0..=16 => 16,
        17..=32 => 32,
        33..=64 => 64,
        _ => m.next_multiple_of(128),
    }
}

/// Row stride of codes in the workspace.
pub fn codes_stride(k: usize) -> usize {
    k.next_multiple_of(16)
}

/// Bytes of a workspace, to where the next thing may begin.
pub fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(WORKSPACE_ALIGNMENT)
}

/// Room for codes and scales of x at the beginning of the workspace, in bytes.
pub struct Room {
    scales: usize,
    pub end: usize,
}

impl Room {
    pub fn new(spec: &LinearSpec, m: usize) -> Room {
        let rows = stored_rows(m);
        let scales = align(rows * codes_stride(spec.k));
        Room { scales, end: scales + align(4 * rows * groups(spec.k)) }
    }

    /// Where they are in the workspace of a run.
    pub fn of(&self, run: &LinearRun) -> Quantized {
        let rows = stored_rows(run.m());
        Quantized {
            codes: run.workspace,
            codes_stride: codes_stride(run.spec.k),
            scales: run.workspace.wrapping_add(self.scales).cast(),
            scales_stride: rows,
            readable_rows: rows,
        }
    }
}

/// Where things lie in the workspace, in bytes: x, packed scales of the weight, and what the product needs for itself.
struct Layout {
    room: Room,
    own: usize,
    total: usize,
}

impl<M: Multiply> GpuLinear<M> {
    fn layout(&self, spec: &LinearSpec, m: usize) -> Layout {
        let room = Room::new(spec, m);
        let bands = self.parts.iter().map(|part| part.count.div_ceil(BLOCK)).sum::<usize>();
        let own = room.end + align(4 * bands * groups(spec.k));
        Layout { room, own, total: own + align(self.multiply.workspace(m)) }
    }

    /// Codes and scales of x as products take them.
    fn activation(&self, device: &Device, run: &LinearRun, layout: &Layout, stream: Stream) -> Result<Quantized> {
        let (spec, m) = (run.spec, run.m());
        let own = layout.room.of(run);
        match run.input {
            Input::Values(x) => {
                let most = if spec.n <= FEW_AHEAD_COLUMNS { MOST_AHEAD_ROWS / 2 } else { MOST_AHEAD_ROWS };
                let ahead = (m <= most).then(|| ahead(run, device.processors));
                device.quantize_activation(x, spec.formula, spec.activation_format, own, ahead, stream)?;
                Ok(own)
            }
            Input::Quantized { codes, scales } => {
                let table = scales.tensor;
                let given = Quantized {
                    codes: codes.address(),
                    codes_stride: spec.input_stride,
                    scales: table.address().cast(),
                    scales_stride: if table.columns() > 1 { table.stride[2] } else { aligned_rows(m) },
                    readable_rows: m,
                };
                if scales.padded && (table.address() as usize).is_multiple_of(16) {
                    return Ok(given);
                }
                device.copy_scales(table, own.scales, [1, own.scales_stride], true, stream)?;
                Ok(Quantized { scales: own.scales, scales_stride: own.scales_stride, ..given })
            }
        }
    }

    /// The scales of the weight, packed.
    fn weight_scales(&self, device: &Device, run: &LinearRun, layout: &Layout, stream: Stream) -> Result<*const f32> {
        let table = run.weight_scales.tensor;
        if is_packed(table) {
            return Ok(table.address().cast_const().cast());
        }
        let own = run.workspace.wrapping_add(layout.room.end).cast::<f32>();
        device.copy_scales(table, own, [table.columns(), 1], false, stream)?;
        Ok(own.cast_const())
    }

    fn multiply_parts(
        &self,
        device: &Device,
        run: &LinearRun,
        (activation, weight_scales): (Quantized, *const f32),
        own: *mut u8,
        stream: Stream,
    ) -> Result<()> {
        let (spec, bytes) = (run.spec, run.output.dtype.bytes());
        for (index, part) in self.parts.iter().enumerate() {
            let product = Product {
                m: run.m(),
                n: part.count,
                k: spec.k,
                codes: activation.codes,
                codes_stride: activation.codes_stride,
                scales: activation.scales,
                scales_stride: activation.scales_stride,
                readable_rows: activation.readable_rows,
                weight: run.weight.address().wrapping_add(part.first * spec.weight_stride),
                weight_stride: spec.weight_stride,
                weight_scales: weight_scales.wrapping_add(part.bands * groups(spec.k)),
                output: run.output.address().wrapping_add(part.first * bytes),
                output_stride: spec.output_stride,
            };
            self.multiply.multiply(device, &product, index, own, stream)?;
        }
        Ok(())
    }
}

impl<M: Multiply> Linear for GpuLinear<M> {
    fn configuration(&self, m: usize) -> String {
        self.multiply.configuration(m)
    }

    fn workspace(&self, _: &Context, spec: &LinearSpec, m: usize) -> usize {
        if m == 0 || spec.n == 0 { 0 } else { self.layout(spec, m).total }
    }

    fn prepare(&self, context: &Context, stream: *mut std::ffi::c_void) -> Result<()> {
        context.prepare(stream)?;
        self.multiply.prepare(device(context)?, Stream::new(stream))
    }

    fn run(&self, context: &Context, run: &LinearRun, stream: *mut std::ffi::c_void) -> Result<()> {
        if run.m() == 0 || run.spec.n == 0 {
            return Ok(());
        }
        let (device, stream) = (device(context)?, Stream::new(stream));
        let _current = device.enter()?;
        device.check_linear(run)?;
        expect_aligned(run)?;
        device.expect_loaded(&[Module::Groups, Module::Passes], stream)?;
        self.multiply.expect_ready(device, run.m(), stream)?;
        let layout = self.layout(run.spec, run.m());
        let activation = self.activation(device, run, &layout, stream)?;
        let weight_scales = self.weight_scales(device, run, &layout, stream)?;
        let own = run.workspace.wrapping_add(layout.own);
        self.multiply_parts(device, run, (activation, weight_scales), own, stream)?;
        match run.bias {
            Some(bias) => device.add_bias(bias, run.output, stream),
            None => Ok(()),
        }
    }
}

/// What every backend on a GPU asks first: the device, and the parts of the weight.
pub fn begin<'a>(context: &'a Context, spec: &LinearSpec) -> std::result::Result<(&'a Device, Vec<Rows>), String> {
    let Some(device) = context.gpu() else { return Err("the context is on the host".to_owned()) };
    let LinearSpec { max_m, n, k, .. } = *spec;
    let most = i32::MAX as usize;
    if [max_m, n, k].iter().any(|&extent| extent > most) {
        return Err(format!("M <= {max_m}, N = {n}, K = {k}: extents are at most {most}"));
    }
    let grid = spec.grid().map_err(|error| error.message)?;
    Ok((device, grid.merged_parts()))
}

/// Fails if a kernel that reads float scales, and codes and y by boxes of whole 16 bytes, cannot take this linear.
pub fn expect_boxes(spec: &LinearSpec, parts: &[Rows]) -> std::result::Result<(), String> {
    if spec.k == 0 {
        return Err("K is 0".to_owned());
    }
    for (what, format) in [("activation", spec.activation_format), ("weight", spec.weight_format)] {
        if format == ScaleFormat::Ue8m0Packed {
            return Err(format!("the scales of the {what} are packed exponents, this kernel reads float32"));
        }
    }
    let strides = [
        ("input_stride", spec.input_stride, 16),
        ("weight_stride", spec.weight_stride, 16),
        ("output_stride", spec.output_stride, 16 / spec.output_dtype.bytes()),
    ];
    for (name, stride, step) in strides {
        if !stride.is_multiple_of(step) {
            return Err(format!("{name} is {stride}, needs a multiple of {step}"));
        }
    }
    // A ragged end of y would reach beyond the columns that are its own.
    match parts.iter().find(|part| !part.count.is_multiple_of(8)) {
        Some(ragged) => Err(format!("N of a part is {}, needs a multiple of 8", ragged.count)),
        None => Ok(()),
    }
}

/// The beginning of the rows that the product reads first, and the scales.
fn ahead(run: &LinearRun, processors: u32) -> Ahead {
    let (spec, table) = (run.spec, run.weight_scales.tensor);
    let rows = spec.n.min(processors as usize * AHEAD_COLUMNS);
    let scale_bytes = if is_packed(table) { 4 * table.rows() * table.columns() } else { 0 };
    Ahead {
        weight: run.weight.address(),
        scales: table.address().cast_const(),
        stride: spec.weight_stride as i64,
        rows: rows as u32,
        bytes: (AHEAD_BYTES / rows).max(BLOCK).min(spec.k) as u32,
        scale_bytes: scale_bytes.min(AHEAD_SCALES) as u32,
        blocks: processors,
    }
}

/// Codes and y, which kernels read and write by boxes. Parts of y begin on whole boxes: `expect_boxes` saw to it.
fn expect_aligned(run: &LinearRun) -> Result<()> {
    const BYTES: usize = 16;
    let codes = match run.input {
        Input::Values(_) => None,
        Input::Quantized { codes, .. } => Some(codes),
    };
    for tensor in [codes, Some(run.weight), Some(run.output)].into_iter().flatten() {
        let (name, address) = (tensor.name, tensor.address());
        ensure!(
            (address as usize).is_multiple_of(BYTES),
            Alignment,
            "{name} is at address {address:p}, the plan's backend needs {BYTES}-byte alignment"
        );
    }
    Ok(())
}

fn is_packed(table: &Tensor) -> bool {
    (table.columns() <= 1 || table.stride[2] == 1) && (table.rows() <= 1 || table.stride[1] == table.columns())
}

/// `accept` took contexts on a GPU only.
pub fn device(context: &Context) -> Result<&Device> {
    match context.gpu() {
        Some(device) => Ok(device),
        None => fail!(Internal, "a linear on a GPU, a context on the host"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_rows_hold_a_tile_and_grow() {
        let mut before = 0;
        for m in 1..1000 {
            let rows = stored_rows(m);
            assert!(rows >= m && rows >= before && rows.is_multiple_of(16), "M = {m}: {rows}");
            before = rows;
        }
    }
}
