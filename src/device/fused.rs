//! Producers of activations on a GPU.

use crate::blocks::{BLOCK, PACKED, groups};
use crate::error::{Result, ensure};
use crate::fused::{Fused, Producer, Target};
use crate::kernels::{self, FusedArguments, Header, Kernel, Matrix};
use crate::refit::Manner;
use crate::tensor::{Dtype, Tensor};

use super::quantize::header_of;
use super::{Device, Size, Stream};

/// Elements that a thread takes at once.
const CHUNK: usize = 8;
/// Rows that a thread block of SiLU takes, small and large, of four groups each.
const SMALL_ROWS: usize = 1;
const LARGE_ROWS: usize = 8;
const GROUPS_AT_ONCE: usize = 4;
/// Longest rows that a thread block of the norm holds in registers, two and four chunks a thread.
const LONGEST_OF_TWO: usize = 2 * 256 * CHUNK;
const LONGEST_OF_FOUR: usize = 4 * 512 * CHUNK;
const WARP: usize = 32;

fn extent(value: usize, tensor: &Tensor) -> Result<u32> {
    let most = i32::MAX as usize / 2;
    ensure!(value <= most, Unsupported, "{} has an extent of {value}, a GPU takes {most}", tensor.name);
    Ok(value as u32)
}

/// Whether each row of a tensor begins at a multiple of `bytes`.
fn is_aligned(tensor: &Tensor, bytes: usize) -> bool {
    let step = if tensor.rows() > 1 { tensor.stride[1] * tensor.dtype.bytes() } else { 0 };
    (tensor.address() as usize).is_multiple_of(bytes) && step.is_multiple_of(bytes)
}

/// Whether the kernel may move whole chunks as vectors.
fn vectors_fit(request: &Fused) -> bool {
    let output = request.target.output();
    let chunk = CHUNK * output.dtype.bytes();
    let inputs = match &request.producer {
        Producer::SiluAndMul { gate_up } => {
            is_aligned(gate_up, 16) && (request.columns() * request.dtype.bytes()).is_multiple_of(16)
        }
        Producer::RmsNorm(norm) => {
            let residual = norm.residual.is_none_or(|residual| is_aligned(residual, 16));
            is_aligned(norm.input, 16) && is_aligned(norm.weight, 16) && residual
        }
    };
    inputs && is_aligned(output, chunk.min(16))
}

fn header(target: &Target) -> Header {
    match target {
        Target::Quantized(quantized) => {
            header_of(Manner { formula: quantized.formula, format: quantized.scales.format, health: quantized.health })
        }
        Target::Values(_) => Header {
            health: std::ptr::null_mut(),
            table: std::ptr::null(),
            floor: 0.0,
            recipe: 0,
            format: 0,
            rule: kernels::COMPUTE,
            count: 0,
            tiles: 0,
        },
    }
}

/// The matrix of the output, with the source of the producer.
fn matrix(request: &Fused, source: &Tensor) -> Result<Matrix> {
    let output = request.target.output();
    let mut matrix = Matrix {
        source: source.address().cast(),
        codes: output.address(),
        source_stride: source.stride[1] as i64,
        codes_stride: output.stride[1] as i64,
        rows: extent(output.rows(), output)?,
        columns: extent(output.columns(), output)?,
        experts: 1,
        aligned: vectors_fit(request) as u32,
        ..Matrix::NONE
    };
    if let Target::Quantized(quantized) = &request.target {
        let scales = &quantized.scales;
        matrix.scales = scales.tensor.address().cast();
        // A column-major tensor of one row has its rows 1 apart, whatever its stride says.
        matrix.scale_row = if scales.padded { 1 } else { scales.tensor.stride[1] } as i64;
        matrix.scale_column = scales.tensor.stride[2] as i64;
        matrix.scale_limit = (scales.tensor.bytes() / 4) as i64;
        matrix.padding = scales.padding as u32;
    }
    Ok(matrix)
}

/// Which third of a table of kernels.
fn third(target: &Target) -> usize {
    match target {
        Target::Values(_) => 0,
        Target::Quantized(quantized) if quantized.health.is_none() => 1,
        Target::Quantized(_) => 2,
    }
}

fn of_dtype(kernels: [Kernel; 3], dtype: Dtype) -> Kernel {
    match dtype {
        Dtype::Bf16 => kernels[0],
        Dtype::F16 => kernels[1],
        _ => kernels[2],
    }
}

impl Device {
    /// Enqueues a checked production.
    pub fn fused(&self, request: &Fused, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.check_pointers(&[request.target.output()])?;
        if let Target::Quantized(quantized) = &request.target {
            self.check_pointers(&[quantized.scales.tensor])?;
            let health = quantized.health.map_or(std::ptr::null_mut(), |health| health.0.as_ptr());
            self.check_pointer(health.cast(), "health")?;
        }
        let source = match &request.producer {
            Producer::SiluAndMul { gate_up } => gate_up,
            Producer::RmsNorm(norm) => {
                self.check_pointers(&[norm.weight])?;
                self.check_pointers(norm.residual.as_slice())?;
                norm.input
            }
        };
        self.check_pointers(&[source])?;
        let mut arguments = FusedArguments {
            header: header(&request.target),
            matrix: matrix(request, source)?,
            residual: std::ptr::null_mut(),
            weight: std::ptr::null(),
            residual_stride: 0,
            epsilon: 0.0,
            reserved: 0,
        };
        if source.is_empty() {
            return Ok(());
        }
        let (kernel, size) = match &request.producer {
            Producer::SiluAndMul { .. } => self.silu_and_mul(request, &arguments.matrix)?,
            Producer::RmsNorm(norm) => {
                arguments.weight = norm.weight.address().cast();
                arguments.epsilon = norm.epsilon;
                if let Some(residual) = norm.residual {
                    arguments.residual = residual.address().cast();
                    arguments.residual_stride = residual.stride[1] as i64;
                }
                rms_norm(request, &arguments.matrix)
            }
        };
        self.launch(kernel, size, &arguments, stream)
    }

    /// Few rows are spread over the chip; many are taken in strides that keep more loads in flight.
    fn silu_and_mul(&self, request: &Fused, matrix: &Matrix) -> Result<(Kernel, Size)> {
        let quads = groups(request.columns()).div_ceil(GROUPS_AT_ONCE);
        let stored_rows = (matrix.rows + matrix.padding) as usize;
        let large = stored_rows.div_ceil(LARGE_ROWS) * quads;
        let (kernels, blocks, threads) = if large >= 2 * self.processors as usize {
            (kernels::SILU_AND_MUL_LARGE, large, 256)
        } else {
            (kernels::SILU_AND_MUL_SMALL, stored_rows.div_ceil(SMALL_ROWS) * quads, 64)
        };
        let most = i32::MAX as usize;
        ensure!(blocks <= most, Unsupported, "gate_up needs {blocks} thread blocks, a GPU takes {most}");
        let kernel = of_dtype(kernels[third(&request.target)], request.dtype);
        Ok((kernel, Size::new(blocks as u32, threads)))
    }
}

/// The order of a row's sum follows from K alone: so must the kernel and its threads.
fn rms_norm(request: &Fused, matrix: &Matrix) -> (Kernel, Size) {
    let columns = request.columns();
    // Whole words of packed exponents.
    let chunks = groups(columns).next_multiple_of(PACKED) * (BLOCK / CHUNK);
    let (kernels, threads) = if columns <= LONGEST_OF_TWO {
        (kernels::RMS_NORM_TWO, chunks.div_ceil(2))
    } else if columns <= LONGEST_OF_FOUR {
        (kernels::RMS_NORM_FOUR, chunks.div_ceil(4))
    } else {
        (kernels::RMS_NORM_ANY, 512)
    };
    let kernel = of_dtype(kernels[third(&request.target)], request.dtype);
    let threads = threads.next_multiple_of(WARP) as u32;
    (kernel, Size::new(matrix.rows + matrix.padding, threads))
}
