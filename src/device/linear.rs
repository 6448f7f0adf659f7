//! What surrounds a product on a GPU: the activation quantized for it, scales brought into its layout, the bias.

use crate::blocks::{aligned_rows, groups};
use crate::error::{Result, ensure};
use crate::kernels::{
    self, AheadArguments, Bias, BiasArguments, CopyArguments, Grid, Matrix, Module, PlainArguments, PlainSize,
    bias_grid, copy_grid, plain_grid,
};
use crate::linear::{Input, LinearRun};
use crate::recipe::{Formula, ScaleFormat};
use crate::tensor::{Dtype, Tensor};

use super::quantize::{extent, formula_header, index};
use super::{Device, Size, Stream};

pub use crate::kernels::Ahead;

/// What a capture that finds something not loaded should have done.
pub(super) const PREPARE: &str = "call fp8rt_linear_plan_prepare before";

/// Threads of a block of the kernel that asks for the weight, and columns that it takes.
const AHEAD_THREADS: u32 = 64;
const AHEAD_COLUMNS: usize = 512;

/// y[m, n] = x[m, k] . w[n, k]^T on one device: one part of a linear, its activation quantized. Strides are in elements.
#[derive(Clone, Copy)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub codes: *const u8,
    pub codes_stride: usize,
    /// Column-major, 16-byte aligned.
    pub scales: *const f32,
    /// A multiple of 4, at least m.
    pub scales_stride: usize,
    /// Rows of codes and scales that may be read, at least m. Those from m on hold anything.
    pub readable_rows: usize,
    pub weight: *const u8,
    pub weight_stride: usize,
    /// Row-major and packed.
    pub weight_scales: *const f32,
    pub output: *mut u8,
    pub output_stride: usize,
}

/// Where the codes and scales of an activation go: scales column-major, their padding zeroed.
#[derive(Clone, Copy)]
pub struct Quantized {
    pub codes: *mut u8,
    pub codes_stride: usize,
    pub scales: *mut f32,
    pub scales_stride: usize,
    /// Rows that are there to be read, whatever those from M on hold.
    pub readable_rows: usize,
}

impl Device {
    /// Quantizes x. Where `ahead` is given, L2 is asked for the weight before x exists.
    pub fn quantize_activation(
        &self,
        x: &Tensor,
        formula: Formula,
        format: ScaleFormat,
        to: Quantized,
        ahead: Option<Ahead>,
        stream: Stream,
    ) -> Result<()> {
        let header = formula_header(formula, format);
        let padding = aligned_rows(x.rows()) - x.rows();
        let aligned = (x.address() as usize).is_multiple_of(16) && (x.stride[1] * x.dtype.bytes()).is_multiple_of(16);
        let matrix = Matrix {
            source: x.address().cast(),
            codes: to.codes,
            scales: to.scales.cast(),
            source_stride: x.stride[1] as i64,
            codes_stride: to.codes_stride as i64,
            scale_row: 1,
            scale_column: to.scales_stride as i64,
            scale_limit: (groups(x.columns()) * to.scales_stride) as i64,
            rows: extent(x.rows(), x)?,
            columns: extent(x.columns(), x)?,
            experts: 1,
            padding: padding as u32,
            aligned: aligned as u32,
            ..Matrix::NONE
        };
        let Some(ahead) = ahead else { return self.launch_groups(x, &header, matrix, stream) };
        let blocks = (x.rows() + padding) * x.columns().div_ceil(AHEAD_COLUMNS);
        let blocks = extent(blocks, x)?.max(ahead.blocks);
        let arguments = AheadArguments { header, matrix, ahead };
        self.launch(kernels::GROUPS_AHEAD[index(x.dtype)], Size::new(blocks, AHEAD_THREADS), &arguments, stream)
    }
}

impl Device {
    /// Under `FP8RT_CHECK=1`: fails unless everything is memory of this device.
    pub fn check_linear(&self, run: &LinearRun) -> Result<()> {
        let input = match run.input {
            Input::Values(x) => [Some(x), None],
            Input::Quantized { codes, scales } => [Some(codes), Some(scales.tensor)],
        };
        let others = [Some(run.weight), Some(run.weight_scales.tensor), run.bias, Some(run.output)];
        for tensor in input.into_iter().chain(others).flatten() {
            self.check_pointers(&[tensor])?;
        }
        self.check_pointer(run.workspace.cast(), "workspace")
    }

    /// Enqueues a copy of float scales to strides of the target (row, column); rows up to the next multiple of 4 become
    /// zero if `padded`.
    pub fn copy_scales(
        &self,
        from: &Tensor,
        to: *mut f32,
        strides: [usize; 2],
        padded: bool,
        stream: Stream,
    ) -> Result<()> {
        let (rows, columns) = (from.rows(), from.columns());
        let padded_rows = if padded { aligned_rows(rows) } else { rows };
        self.copy_words(
            &CopyArguments {
                source: from.address().cast_const().cast(),
                target: to.cast(),
                source_row: from.stride[1] as i64,
                source_column: from.stride[2] as i64,
                target_row: strides[0] as i64,
                target_column: strides[1] as i64,
                rows: extent(rows, from)?,
                columns: extent(columns, from)?,
                padded_rows: padded_rows as u32,
                padded_columns: columns as u32,
            },
            stream,
        )
    }

    pub(super) fn copy_words(&self, arguments: &CopyArguments, stream: Stream) -> Result<()> {
        let grid = copy_grid(arguments.padded_rows as usize, arguments.padded_columns as usize);
        self.launch(kernels::COPY_SCALES, size_of(grid)?, arguments, stream)
    }

    /// Enqueues y += bias.
    pub fn add_bias(&self, bias: &Tensor, y: &Tensor, stream: Stream) -> Result<()> {
        let (rows, columns) = (extent(y.rows(), y)?, extent(y.columns(), y)?);
        let arguments = BiasArguments {
            bias: bias_of(Some(bias), 0),
            output: y.address().cast(),
            stride: y.stride[1] as i64,
            rows,
            columns,
        };
        let size = size_of(bias_grid(y.rows(), y.columns()))?;
        self.launch(kernels::ADD_BIAS[index(y.dtype)], size, &arguments, stream)
    }

    /// Enqueues a product of any strides, alignment and formats. `operands`: x, and a part of the weight.
    pub fn plain(&self, arguments: &PlainArguments, output: Dtype, stream: Stream) -> Result<()> {
        let (m, n) = (arguments.activation.rows as usize, arguments.weight.rows as usize);
        let (which, grid) = plain_grid(m, n, self.processors as usize);
        let kernels = match which {
            PlainSize::Few => kernels::PLAIN_FEW,
            PlainSize::Many => kernels::PLAIN_MANY,
        };
        self.launch(kernels[index(output)], size_of(grid)?, arguments, stream)
    }

    /// Fails while the stream is captured unless the kernels around a product are loaded: they would be missed half way.
    pub fn expect_loaded(&self, modules: &[Module], stream: Stream) -> Result<()> {
        modules.iter().try_for_each(|&module| self.expect_loadable(&self.modules[module as usize], stream, PREPARE))
    }
}

/// A bias from an element on.
pub fn bias_of(bias: Option<&Tensor>, first: usize) -> Bias {
    let none = Bias { values: std::ptr::null(), dtype: 0, reserved: 0 };
    bias.map_or(none, |bias| Bias {
        values: bias.address().wrapping_add(first * bias.dtype.bytes()).cast_const().cast(),
        dtype: index(bias.dtype) as u32,
        reserved: 0,
    })
}

fn size_of(grid: Grid) -> Result<Size> {
    let (blocks, most) = (grid.blocks, i32::MAX as usize);
    ensure!(blocks <= most, Unsupported, "y needs {blocks} thread blocks, a GPU takes {most}");
    Ok(Size::new(blocks as u32, grid.threads))
}
