//! A checked request to produce an activation: SiLU with a product, or RMS norm. The values are written, or quantized in the
//! same pass without being written. Both ways the values are rounded to the input's dtype once, so that quantizing what the
//! one wrote gives what the other writes.

use crate::error::{Result, ensure};
use crate::quantize::{HealthCounters, HealthPointer, Scales, Subject};
use crate::recipe::{Formula, ScaleFormat};
use crate::tensor::{Dtype, FLOATS, Tensor};

/// What the values are made of.
#[derive(Clone, Copy)]
pub enum Producer<'a> {
    /// silu(gate) * up, of a matrix whose first half of columns is gate, the second up.
    SiluAndMul {
        gate_up: &'a Tensor,
    },
    RmsNorm(RmsNorm<'a>),
}

/// z / sqrt(mean of z squared + epsilon) * weight, of z = input, or input + residual, which becomes the residual.
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    pub input: &'a Tensor,
    pub residual: Option<&'a Tensor>,
    pub weight: &'a Tensor,
    pub epsilon: f32,
}

/// Where quantized values go.
#[derive(Clone, Copy)]
pub struct Quantized<'a> {
    pub codes: &'a Tensor,
    pub scales: Scales<'a>,
    pub formula: Formula,
    pub health: Option<HealthPointer>,
}

/// What becomes of the values.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    Values(&'a Tensor),
    Quantized(Quantized<'a>),
}

impl<'a> Quantized<'a> {
    /// Checks the outputs of a quantization against each other.
    pub fn new(
        codes: &'a Tensor,
        scales: &'a Tensor,
        format: ScaleFormat,
        formula: Formula,
        health: Option<HealthPointer>,
    ) -> Result<Quantized<'a>> {
        expect_matrix(codes, &[Dtype::E4m3])?;
        let scales = Scales::new(scales, format, &Subject::Activation, codes)?;
        let quantized = Quantized { codes, scales, formula, health };
        let written = quantized.written_scales();
        codes.expect_apart(&written)?;
        quantized.expect_health_apart(codes)?;
        quantized.expect_health_apart(&written)?;
        Ok(quantized)
    }

    /// The scales with the padding that is written too.
    fn written_scales(&self) -> Tensor {
        self.scales.written()
    }

    fn expect_health_apart(&self, tensor: &Tensor) -> Result<()> {
        self.health.map_or(Ok(()), |health| {
            tensor.expect_apart_from_memory("health", health.0.as_ptr() as usize, size_of::<HealthCounters>())
        })
    }
}

impl<'a> Target<'a> {
    /// The values or codes: [M, K].
    pub fn output(&self) -> &'a Tensor {
        match self {
            Target::Values(output) => output,
            Target::Quantized(quantized) => quantized.codes,
        }
    }

    /// Fails if an output shares memory with `other`.
    fn expect_apart(&self, other: &Tensor) -> Result<()> {
        self.output().expect_apart(other)?;
        let Target::Quantized(quantized) = self else { return Ok(()) };
        quantized.written_scales().expect_apart(other)?;
        quantized.expect_health_apart(other)
    }
}

/// A checked production.
#[derive(Clone, Copy)]
pub struct Fused<'a> {
    pub producer: Producer<'a>,
    pub target: Target<'a>,
    /// Of the inputs, and of the values.
    pub dtype: Dtype,
}

impl<'a> Fused<'a> {
    pub fn silu_and_mul(gate_up: &'a Tensor, target: Target<'a>) -> Result<Fused<'a>> {
        expect_matrix(gate_up, FLOATS)?;
        let output = expect_output(&target, gate_up.dtype)?;
        ensure!(
            gate_up.rows() == output.rows(),
            Shape,
            "{} has {} rows, {} has {}",
            output.name,
            output.rows(),
            gate_up.name,
            gate_up.rows()
        );
        ensure!(
            output.columns().checked_mul(2) == Some(gate_up.columns()),
            Shape,
            "{} has {} columns, must have twice the {} of {}",
            gate_up.name,
            gate_up.columns(),
            output.columns(),
            output.name
        );
        target.expect_apart(gate_up)?;
        Ok(Fused { producer: Producer::SiluAndMul { gate_up }, target, dtype: gate_up.dtype })
    }

    pub fn rms_norm(norm: RmsNorm<'a>, target: Target<'a>) -> Result<Fused<'a>> {
        let RmsNorm { input, residual, weight, epsilon } = norm;
        ensure!(
            epsilon.is_finite() && epsilon >= 0.0,
            InvalidArgument,
            "epsilon is {epsilon}, must be finite and at least 0"
        );
        expect_matrix(input, FLOATS)?;
        let output = expect_output(&target, input.dtype)?;
        expect_same_shape(output, input)?;
        weight.expect_dtype(&[input.dtype])?;
        weight.expect_rank(1)?;
        weight.expect_rows_contiguous()?;
        ensure!(
            weight.columns() == input.columns(),
            Shape,
            "{} has {} elements, {} has K = {}",
            weight.name,
            weight.columns(),
            input.name,
            input.columns()
        );
        if let Some(residual) = residual {
            expect_matrix(residual, &[input.dtype])?;
            expect_same_shape(residual, input)?;
            residual.expect_apart(input)?;
            residual.expect_apart(weight)?;
            target.expect_apart(residual)?;
        }
        target.expect_apart(input)?;
        target.expect_apart(weight)?;
        Ok(Fused { producer: Producer::RmsNorm(norm), target, dtype: input.dtype })
    }

    pub fn rows(&self) -> usize {
        self.target.output().rows()
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.target.output().columns()
    }
}

fn expect_matrix(tensor: &Tensor, dtypes: &[Dtype]) -> Result<()> {
    tensor.expect_dtype(dtypes)?;
    tensor.expect_rank(2)?;
    tensor.expect_rows_contiguous()
}

/// Values have the dtype of the input; codes were checked with their scales.
fn expect_output<'a>(target: &Target<'a>, dtype: Dtype) -> Result<&'a Tensor> {
    if let Target::Values(output) = target {
        expect_matrix(output, &[dtype])?;
    }
    Ok(target.output())
}

fn expect_same_shape(tensor: &Tensor, other: &Tensor) -> Result<()> {
    ensure!(
        tensor.shape == other.shape,
        Shape,
        "{} has shape {:?}, {} has {:?}",
        tensor.name,
        &tensor.shape[1..],
        other.name,
        &other.shape[1..]
    );
    Ok(())
}
