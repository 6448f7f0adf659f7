//! Quantize and dequantize.

use std::ffi::c_void;

use crate::error::Result;
use crate::quantize::{Dequantize, Operands, Quantize, Rule, Subject};
use crate::recipe::Recipe;

use super::context::fp8rt_context;
use super::convert::{Place, Quantization, expect_stream, health as counters, shared_context, tensor};
use super::guard::guard;
use super::types::{fp8rt_health, fp8rt_quantize_desc, fp8rt_status, fp8rt_tensor};

/// The pointers of a quantizing call.
struct Call {
    context: *mut fp8rt_context,
    source: *const fp8rt_tensor,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    health: *mut fp8rt_health,
    stream: *mut c_void,
}

impl Call {
    /// # Safety
    /// Pointers as the header asks.
    unsafe fn run(&self, quantization: &Quantization, subject: Subject, rule: Rule) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            let context = shared_context(self.context)?;
            let mut places = [Place::uninit(); 3];
            let [source_place, codes_place, scales_place] = &mut places;
            let source = tensor(context, self.source, subject.name(), source_place)?;
            let codes = tensor(context, self.codes, "codes", codes_place)?;
            let scales = tensor(context, self.scales, "scales", scales_place)?;
            let health = counters(self.health)?;
            expect_stream(context, self.stream)?;
            let operands = Operands { source, codes: Some(codes), scales };
            context.quantize(&Quantize::new(subject, operands, quantization.format, rule, health)?, self.stream)
        }
    }
}

/// Quantizes a weight [N, K] or [experts, N, K] in blocks of 128x128: codes and scales in one pass.
///
/// `weight`: BF16, F16 or F32; elements of a row 1 apart, rows any stride of at least K. `codes`: E4M3, same shape, own
/// stride. `scales`: as fp8rt_weight_scales_layout says; FP32 and POW2 with any strides that do not overlap, UE8M0_PACKED
/// column-major, whose rows N to ceil4(N) - 1 become zero as far as `bytes` reaches. A block that hangs over the edge
/// sees only the elements that exist. The largest magnitude is taken over finite elements; a NaN becomes code 0x7F for
/// itself alone, an infinity becomes 448 with its sign. Every finite input gives a finite positive scale.
///
/// `desc` NULL: recipe NEMO_RL, format FP32. `health`: NULL, or counters to add to.
/// Nothing is written unless the call is valid; no output may overlap an input or another output.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_quantize_weight(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    weight: *const fp8rt_tensor,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_quantize_weight", || unsafe {
        let quantization = Quantization::new(desc, Recipe::NemoRl)?;
        let call = Call { context, source: weight, codes, scales, health, stream };
        call.run(&quantization, quantization.weight(), Rule::Compute(quantization.formula))
    })
}

/// Quantizes an activation [M, K] in groups of 1x128; the last group of a row may be short.
///
/// `scales`: [M, ceil(K/128)] row-major, or column-major with columns a multiple of 4 and at least M apart (what TMA
/// reads), whose rows M to ceil4(M) - 1 become zero as far as `bytes` reaches; nothing else is touched. Otherwise as
/// fp8rt_quantize_weight. `desc` NULL: recipe VLLM, format FP32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_quantize_activation(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    activation: *const fp8rt_tensor,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_quantize_activation", || unsafe {
        let quantization = Quantization::new(desc, Recipe::Vllm)?;
        let call = Call { context, source: activation, codes, scales, health, stream };
        call.run(&quantization, quantization.activation()?, Rule::Compute(quantization.formula))
    })
}

/// Quantizes a weight with scales that the caller gives: code = x / scale, rounded, saturating at 448, whatever the recipe.
/// `desc` says the format of the scales and the parts. `health` counts as saturated what would round past 448.
/// Argument order: `scales` is an input here and comes before `codes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_quantize_weight_with_scales(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    weight: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    codes: *const fp8rt_tensor,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_quantize_weight_with_scales", || unsafe {
        let quantization = Quantization::new(desc, Recipe::NemoRl)?;
        let call = Call { context, source: weight, codes, scales, health, stream };
        call.run(&quantization, quantization.weight(), Rule::Given)
    })
}

/// As fp8rt_quantize_weight_with_scales, for an activation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_quantize_activation_with_scales(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    activation: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    codes: *const fp8rt_tensor,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_quantize_activation_with_scales", || unsafe {
        let quantization = Quantization::new(desc, Recipe::Vllm)?;
        let call = Call { context, source: activation, codes, scales, health, stream };
        call.run(&quantization, quantization.activation()?, Rule::Given)
    })
}

/// Writes code * scale, a float32 product rounded to the dtype of `weight` (BF16, F16 or F32), every NaN as one and the same
/// quiet NaN, to `weight` [N, K] or
/// [experts, N, K]. `desc` says the format of the scales and the parts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_dequantize_weight(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    weight: *const fp8rt_tensor,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_dequantize_weight", || unsafe {
        let quantization = Quantization::new(desc, Recipe::NemoRl)?;
        let call = Call { context, source: weight, codes, scales, health: std::ptr::null_mut(), stream };
        call.dequantize(&quantization, quantization.weight())
    })
}

/// As fp8rt_dequantize_weight, for an activation [M, K].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_dequantize_activation(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    activation: *const fp8rt_tensor,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_dequantize_activation", || unsafe {
        let quantization = Quantization::new(desc, Recipe::Vllm)?;
        let call = Call { context, source: activation, codes, scales, health: std::ptr::null_mut(), stream };
        call.dequantize(&quantization, quantization.activation()?)
    })
}

impl Call {
    /// `source` is the output here.
    ///
    /// # Safety
    /// Pointers as the header asks.
    unsafe fn dequantize(&self, quantization: &Quantization, subject: Subject) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            let context = shared_context(self.context)?;
            let mut places = [Place::uninit(); 3];
            let [codes_place, scales_place, output_place] = &mut places;
            let codes = tensor(context, self.codes, "codes", codes_place)?;
            let scales = tensor(context, self.scales, "scales", scales_place)?;
            let output = tensor(context, self.source, subject.name(), output_place)?;
            expect_stream(context, self.stream)?;
            context.dequantize(&Dequantize::new(subject, codes, scales, quantization.format, output)?, self.stream)
        }
    }
}
