//! Producers of activations.

use std::ffi::c_void;

use crate::error::Result;
use crate::fused::{Fused, Quantized, RmsNorm, Target};
use crate::recipe::Recipe;

use super::context::fp8rt_context;
use super::convert::{Place, Quantization, expect_stream, health as counters, optional_tensor, shared_context, tensor};
use super::guard::guard;
use super::types::{fp8rt_health, fp8rt_quantize_desc, fp8rt_status, fp8rt_tensor};

/// The pointers of what is produced from.
enum Inputs {
    SiluAndMul(*const fp8rt_tensor),
    RmsNorm { input: *const fp8rt_tensor, residual: *const fp8rt_tensor, weight: *const fp8rt_tensor, epsilon: f32 },
}

/// The pointers of where it goes.
enum Outputs<'a> {
    Values(*const fp8rt_tensor),
    Quantized {
        quantization: Quantization<'a>,
        codes: *const fp8rt_tensor,
        scales: *const fp8rt_tensor,
        health: *mut fp8rt_health,
    },
}

/// # Safety
/// Pointers as the header asks.
unsafe fn run(context: *mut fp8rt_context, inputs: Inputs, outputs: Outputs, stream: *mut c_void) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let context = shared_context(context)?;
        let mut places = [Place::uninit(); 5];
        let [first_place, residual_place, weight_place, output_place, scales_place] = &mut places;
        let target = match outputs {
            Outputs::Values(output) => Target::Values(tensor(context, output, "output", output_place)?),
            Outputs::Quantized { quantization, codes, scales, health } => {
                quantization.activation()?;
                let codes = tensor(context, codes, "codes", output_place)?;
                let scales = tensor(context, scales, "scales", scales_place)?;
                let (format, formula) = (quantization.format, quantization.formula);
                Target::Quantized(Quantized::new(codes, scales, format, formula, counters(health)?)?)
            }
        };
        let request = match inputs {
            Inputs::SiluAndMul(gate_up) => {
                Fused::silu_and_mul(tensor(context, gate_up, "gate_up", first_place)?, target)?
            }
            Inputs::RmsNorm { input, residual, weight, epsilon } => {
                let input = tensor(context, input, "input", first_place)?;
                let residual = optional_tensor(context, residual, "residual", residual_place)?;
                let weight = tensor(context, weight, "weight", weight_place)?;
                Fused::rms_norm(RmsNorm { input, residual, weight, epsilon }, target)?
            }
        };
        expect_stream(context, stream)?;
        context.fused(&request, stream)
    }
}

/// Writes silu(gate) * up to `output` [M, K], with gate the columns 0 to K - 1 of `gate_up` [M, 2 K] and up the others.
///
/// `gate_up`: BF16, F16 or F32; elements of a row 1 apart, rows any stride. `output`: same dtype, own stride.
/// silu(g) = g / (1 + exp(-g)). Computed in float32 and rounded to the dtype once, after the product.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_silu_and_mul(
    context: *mut fp8rt_context,
    gate_up: *const fp8rt_tensor,
    output: *const fp8rt_tensor,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_silu_and_mul", || unsafe {
        run(context, Inputs::SiluAndMul(gate_up), Outputs::Values(output), stream)
    })
}

/// As fp8rt_silu_and_mul and then fp8rt_quantize_activation of its output, bit for bit, in one pass and without the output:
/// the values are rounded to the dtype of `gate_up`, then quantized. `codes` [M, K], `scales`, `desc` and `health` as in
/// fp8rt_quantize_activation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_silu_and_mul_quantize(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    gate_up: *const fp8rt_tensor,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_silu_and_mul_quantize", || unsafe {
        let quantization = Quantization::new(desc, Recipe::Vllm)?;
        let outputs = Outputs::Quantized { quantization, codes, scales, health };
        run(context, Inputs::SiluAndMul(gate_up), outputs, stream)
    })
}

/// Writes z / sqrt(mean(z * z) + epsilon) * weight to `output` [M, K], row by row, where z is `input` [M, K], or with
/// `residual` the sum of both, rounded to the dtype and written to `residual`.
///
/// `input`: BF16, F16 or F32; elements of a row 1 apart, rows any stride. `residual`: NULL, or as `input`, in and out.
/// `weight` [K] and `output`: same dtype. `epsilon`: finite and at least 0. Computed in float32 and rounded to the dtype
/// once, after the product. A row gives the same bits whatever the others are and however many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_rms_norm(
    context: *mut fp8rt_context,
    input: *const fp8rt_tensor,
    residual: *const fp8rt_tensor,
    weight: *const fp8rt_tensor,
    epsilon: f32,
    output: *const fp8rt_tensor,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_rms_norm", || unsafe {
        run(context, Inputs::RmsNorm { input, residual, weight, epsilon }, Outputs::Values(output), stream)
    })
}

/// As fp8rt_rms_norm and then fp8rt_quantize_activation of its output, bit for bit, in one pass and without the output: the
/// values are rounded to the dtype of `input`, then quantized. `codes` [M, K], `scales`, `desc` and `health` as in
/// fp8rt_quantize_activation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_rms_norm_quantize(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    input: *const fp8rt_tensor,
    residual: *const fp8rt_tensor,
    weight: *const fp8rt_tensor,
    epsilon: f32,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_rms_norm_quantize", || unsafe {
        let quantization = Quantization::new(desc, Recipe::Vllm)?;
        let outputs = Outputs::Quantized { quantization, codes, scales, health };
        run(context, Inputs::RmsNorm { input, residual, weight, epsilon }, outputs, stream)
    })
}
