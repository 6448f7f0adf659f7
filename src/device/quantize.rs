//! Quantize and dequantize on a GPU: requests become the arguments of a launch.

use crate::blocks::{BLOCK, Rows, groups};
use crate::error::{Result, ensure};
use crate::kernels::{self, Arguments, DequantizeArguments, FEW, Header, Kernel, MANY, Matrix};
use crate::quantize::{Dequantize, Quantize, Rule, Scales};
use crate::recipe::{Formula, Recipe, ScaleFormat};
use crate::refit::Manner;
use crate::tensor::{Dtype, Tensor};

use super::{Device, Size, Stream};

/// Threads of a thread block of the kernels over blocks.
const BLOCK_THREADS: u32 = 256;
/// Blocks of 128x128 of one launch.
const MOST_TILES: usize = i32::MAX as usize;
/// Rows and groups that a thread block of the kernels over groups takes, small and large.
const MEDIUM_ROWS: usize = 4;
const LARGE_ROWS: usize = 16;
/// Thread blocks of one row each that a multiprocessor takes before larger ones are faster.
const CROWD: usize = 8;
const GROUPS_AT_ONCE: usize = 4;

/// Place of a dtype's kernel among the three.
pub fn index(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bf16 => 0,
        Dtype::F16 => 1,
        _ => 2,
    }
}

pub fn extent(value: usize, tensor: &Tensor) -> Result<u32> {
    ensure!(
        value <= i32::MAX as usize,
        Unsupported,
        "{} has an extent of {value}, a GPU takes {}",
        tensor.name,
        i32::MAX
    );
    Ok(value as u32)
}

/// The matrix that a kernel works on: `values` are the source, or the output of a dequantization.
pub fn matrix(
    values: &Tensor,
    codes: Option<&Tensor>,
    scales: &Scales,
    rows: &Rows,
    first_tile: u32,
) -> Result<Matrix> {
    let size = values.dtype.bytes();
    let offset = |tensor: &Tensor| tensor.address().wrapping_add(rows.first * tensor.stride[1] * tensor.dtype.bytes());
    let packed = scales.format == ScaleFormat::Ue8m0Packed;
    let table = scales.tensor;
    // A column-major tensor of one row has its rows 1 apart, whatever its stride says.
    let scale_row = if scales.padded { 1 } else { table.stride[1] };
    let scale_first = scale_row * if packed { rows.first } else { rows.bands };
    let (source, target) = (offset(values), codes.map_or(std::ptr::null_mut(), offset));
    let (codes_stride, codes_expert) = codes.map_or((0, 0), |codes| (codes.stride[1], codes.stride[0]));
    let last = rows.first + rows.count == values.rows();
    let aligned = [source as usize, values.stride[1] * size, values.stride[0] * size].iter().all(|v| v % 16 == 0)
        && [target as usize, codes_stride, codes_expert].iter().all(|v| v % 8 == 0);
    Ok(Matrix {
        source: source.cast(),
        codes: target,
        scales: table.address().wrapping_add(4 * scale_first).cast(),
        source_stride: values.stride[1] as i64,
        codes_stride: codes_stride as i64,
        source_expert: values.stride[0] as i64,
        codes_expert: codes_expert as i64,
        scale_row: scale_row as i64,
        scale_column: table.stride[2] as i64,
        scale_expert: table.stride[0] as i64,
        scale_limit: (table.bytes() / 4).saturating_sub(scale_first) as i64,
        rows: extent(rows.count, values)?,
        columns: extent(values.columns(), values)?,
        experts: extent(values.experts(), values)?,
        padding: if last { scales.padding as u32 } else { 0 },
        first_tile,
        aligned: aligned as u32,
    })
}

/// The tiles of a matrix.
pub fn tiles(matrix: &Matrix) -> usize {
    matrix.experts as usize * (matrix.rows as usize).div_ceil(BLOCK) * groups(matrix.columns as usize)
}

/// The number of a format in the kernels.
pub fn format_number(format: ScaleFormat) -> u32 {
    match format {
        ScaleFormat::Fp32 => 0,
        ScaleFormat::Pow2 => 1,
        ScaleFormat::Ue8m0Packed => 2,
    }
}

fn header(formula: Option<Formula>, format: ScaleFormat, scales_only: bool, health: *mut std::ffi::c_void) -> Header {
    let format = format_number(format);
    let rule = match (formula, scales_only) {
        (None, _) => kernels::GIVEN,
        (_, true) => kernels::SCALES_ONLY,
        (_, false) => kernels::COMPUTE,
    };
    let recipe = formula.map_or(0, |formula| match formula.recipe() {
        Recipe::Vllm => 0,
        Recipe::DeepGemm => 1,
        Recipe::NemoRl => 2,
        Recipe::Te => 3,
    });
    let floor = formula.map_or(0.0, |formula| formula.floor());
    Header { health, table: std::ptr::null(), floor, recipe, format, rule, count: 0, tiles: 0 }
}

/// The header of a quantization of many weights.
pub fn header_of(manner: Manner) -> Header {
    let health = manner.health.map_or(std::ptr::null_mut(), |health| health.0.as_ptr().cast());
    header(Some(manner.formula), manner.format, false, health)
}

/// The header of a quantization of one activation.
pub fn formula_header(formula: Formula, format: ScaleFormat) -> Header {
    header(Some(formula), format, false, std::ptr::null_mut())
}

/// Whether only the general kernels do this.
pub fn is_general(header: &Header) -> bool {
    header.rule != kernels::COMPUTE || header.format == 2 || !header.health.is_null()
}

/// One thread block a tile: the hardware balances them.
pub fn batch_size(tiles: u32) -> Size {
    Size::new(tiles, BLOCK_THREADS)
}

/// Up to N matrices of one dtype, launched when they are full. N is [`FEW`] or [`MANY`]: a launch copies room for all N, and
/// the general kernels take many.
pub struct Batch<'a, const N: usize> {
    device: &'a Device,
    stream: Stream,
    dtype: Dtype,
    arguments: Arguments<N>,
    tiles: usize,
}

impl<'a, const N: usize> Batch<'a, N> {
    #[inline]
    pub fn new(device: &'a Device, stream: Stream, dtype: Dtype, header: Header) -> Batch<'a, N> {
        Batch { device, stream, dtype, arguments: Arguments { header, matrices: [Matrix::NONE; N] }, tiles: 0 }
    }

    /// Adds the parts of a weight.
    pub fn add(&mut self, request: &Quantize) -> Result<()> {
        request
            .grid
            .parts()
            .try_for_each(|rows| self.push_one(matrix(request.source, request.codes, &request.scales, &rows, 0)?))
    }

    /// Adds a matrix; launches the ones before it if there is no room.
    pub fn push_one(&mut self, mut matrix: Matrix) -> Result<()> {
        let tiles = tiles(&matrix);
        ensure!(tiles <= MOST_TILES, Unsupported, "the weight has {tiles} blocks, a GPU takes {MOST_TILES}");
        if tiles == 0 {
            return Ok(());
        }
        if self.arguments.header.count as usize == N || self.tiles + tiles > MOST_TILES {
            self.launch()?;
        }
        matrix.first_tile = self.tiles as u32;
        self.arguments.matrices[self.arguments.header.count as usize] = matrix;
        self.arguments.header.count += 1;
        self.tiles += tiles;
        Ok(())
    }

    /// Launches what was added since the last launch.
    pub fn launch(&mut self) -> Result<()> {
        let header = &mut self.arguments.header;
        if header.count == 0 {
            return Ok(());
        }
        header.tiles = self.tiles as u32;
        let kernels = match (is_general(header), N) {
            (false, FEW) => kernels::BLOCKS_FEW,
            (false, _) => kernels::BLOCKS_MANY,
            (true, _) => kernels::BLOCKS_GENERAL,
        };
        let size = batch_size(header.tiles);
        self.device.launch(kernels[index(self.dtype)], size, &self.arguments, self.stream)?;
        self.arguments.header.count = 0;
        self.tiles = 0;
        Ok(())
    }
}

impl Device {
    /// Enqueues a checked quantization.
    pub fn quantize(&self, request: &Quantize, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.check_pointers(&[request.source, request.scales.tensor])?;
        if let Some(codes) = request.codes {
            self.check_pointers(&[codes])?;
        }
        let formula = match request.rule {
            Rule::Compute(formula) => Some(formula),
            Rule::Given => None,
        };
        let health = request.health.map_or(std::ptr::null_mut(), |health| health.0.as_ptr().cast());
        self.check_pointer(health, "health")?;
        let header = header(formula, request.scales.format, request.codes.is_none(), health);
        if request.grid.height() == 1 {
            return self.groups(request, header, stream);
        }
        if is_general(&header) {
            self.blocks::<MANY>(request, header, stream)
        } else {
            self.blocks::<FEW>(request, header, stream)
        }
    }

    fn blocks<const N: usize>(&self, request: &Quantize, header: Header, stream: Stream) -> Result<()> {
        let mut batch = Batch::<N>::new(self, stream, request.source.dtype, header);
        batch.add(request)?;
        batch.launch()
    }

    fn groups(&self, request: &Quantize, header: Header, stream: Stream) -> Result<()> {
        let source = request.source;
        let rows = Rows { first: 0, count: source.rows(), bands: 0 };
        let matrix = matrix(source, request.codes, &request.scales, &rows, 0)?;
        if source.is_empty() {
            return Ok(());
        }
        self.launch_groups(source, &header, matrix, stream)
    }

    /// Enqueues the kernel over groups that fits the size.
    pub fn launch_groups(&self, source: &Tensor, header: &Header, matrix: Matrix, stream: Stream) -> Result<()> {
        let quads = groups(source.columns()).div_ceil(GROUPS_AT_ONCE);
        let stored_rows = source.rows() + matrix.padding as usize;
        let large = stored_rows.div_ceil(LARGE_ROWS) * quads;
        let at = index(source.dtype);
        // Few rows are spread over the chip; many are taken in strides that keep more loads in flight.
        let (kernel, blocks, threads): (Kernel, usize, u32) = if is_general(header) {
            (kernels::GROUPS_GENERAL[at], large, 256)
        } else if large >= 2 * self.processors as usize {
            (kernels::GROUPS_LARGE[at], large, 256)
        } else if stored_rows * quads > CROWD * self.processors as usize {
            (kernels::GROUPS_MEDIUM[at], stored_rows.div_ceil(MEDIUM_ROWS) * quads, 256)
        } else {
            (kernels::GROUPS_SMALL[at], stored_rows * quads, 64)
        };
        ensure!(
            blocks <= i32::MAX as usize,
            Unsupported,
            "{} needs {blocks} thread blocks, a GPU takes {}",
            source.name,
            i32::MAX
        );
        let arguments = Arguments::<1> { header: *header, matrices: [matrix] };
        self.launch(kernel, Size::new(blocks as u32, threads), &arguments, stream)
    }

    /// Enqueues a checked dequantization.
    pub fn dequantize(&self, request: &Dequantize, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.check_pointers(&[request.codes, request.scales.tensor, request.output])?;
        if request.codes.is_empty() {
            return Ok(());
        }
        for rows in request.grid.parts() {
            let mut matrix = matrix(request.output, Some(request.codes), &request.scales, &rows, 0)?;
            matrix.padding = 0;
            let chunks = matrix.experts as usize * rows.count * request.codes.columns().div_ceil(8);
            if chunks == 0 {
                continue;
            }
            let format = header(None, request.scales.format, false, std::ptr::null_mut()).format;
            let arguments = DequantizeArguments { matrix, format, band: request.grid.height() as u32 };
            let blocks = chunks.div_ceil(256).min(self.processors as usize * 16) as u32;
            let kernel = kernels::DEQUANTIZE_ROWS[index(request.output.dtype)];
            self.launch(kernel, Size::new(blocks, 256), &arguments, stream)?;
        }
        Ok(())
    }
}
