//! Scales: their shapes, and computing them alone.

use std::ffi::c_void;

use crate::error::{Result, ensure};
use crate::quantize::{Operands, Quantize, Rule, ScalesLayout, Subject};
use crate::recipe::{Recipe, ScaleFormat};

use super::context::fp8rt_context;
use super::convert::{Place, Quantization, dtype_number, expect_stream, extent, required_mut, shared_context, tensor};
use super::guard::guard;
use super::types::{fp8rt_quantize_desc, fp8rt_scale_layout, fp8rt_status, fp8rt_tensor};

/// Fills `scales` with dtype, rank, shape, strides and bytes of a compact scale tensor for a weight [n, k], or
/// [experts, n, k] if `experts` is not 0; `data` becomes NULL and `device` -1, for the caller to set.
///
/// FP32 and POW2: float32 [rows, ceil(k/128)], row-major, rows = the sum over parts of ceil(part/128), or ceil(n/128).
/// UE8M0_PACKED: int32 [n, ceil(k/512)], rows 1 apart and columns ceil4(n) apart.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_weight_scales_layout(
    desc: *const fp8rt_quantize_desc,
    experts: i64,
    n: i64,
    k: i64,
    scales: *mut fp8rt_tensor,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_weight_scales_layout", || unsafe {
        let scales = required_mut(scales, "scales")?;
        let quantization = Quantization::new(desc, Recipe::NemoRl)?;
        let experts = extent(experts, "experts")?;
        let shape = [experts.max(1), extent(n, "n")?, extent(k, "k")?];
        let layout = ScalesLayout::new(&quantization.weight(), shape, quantization.format, false)?;
        *scales = describe(&layout, if experts > 0 { 3 } else { 2 });
        Ok(())
    })
}

/// As fp8rt_weight_scales_layout, for an activation [m, k]. `layout` is an fp8rt_scale_layout; ROW_MAJOR is refused for
/// UE8M0_PACKED. FP32 and POW2: float32 [m, ceil(k/128)]; UE8M0_PACKED: int32 [m, ceil(k/512)]. A column-major tensor has
/// its columns ceil4(m) apart, and `bytes` covers the padding of the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_activation_scales_layout(
    desc: *const fp8rt_quantize_desc,
    layout: u32,
    m: i64,
    k: i64,
    scales: *mut fp8rt_tensor,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_activation_scales_layout", || unsafe {
        let scales = required_mut(scales, "scales")?;
        let quantization = Quantization::new(desc, Recipe::Vllm)?;
        ensure!(layout <= 1, InvalidArgument, "layout is {layout}, the largest scale layout is 1");
        let column_major = layout == fp8rt_scale_layout::COLUMN_MAJOR as u32;
        let packed = quantization.format == ScaleFormat::Ue8m0Packed;
        ensure!(
            column_major || !packed,
            InvalidArgument,
            "layout is ROW_MAJOR (1), packed scales are COLUMN_MAJOR (0)"
        );
        let shape = [1, extent(m, "m")?, extent(k, "k")?];
        let layout = ScalesLayout::new(&quantization.activation()?, shape, quantization.format, column_major)?;
        *scales = describe(&layout, 2);
        Ok(())
    })
}

fn describe(layout: &ScalesLayout, rank: u32) -> fp8rt_tensor {
    let lead = 3 - rank as usize;
    let shown = |values: [usize; 3]| std::array::from_fn(|axis| values.get(lead + axis).map_or(0, |&v| v as i64));
    fp8rt_tensor {
        data: std::ptr::null_mut(),
        bytes: layout.bytes as u64,
        dtype: dtype_number(layout.dtype),
        device: -1,
        rank,
        reserved: 0,
        shape: shown(layout.shape),
        stride: shown(layout.stride),
    }
}

/// Computes the scales of a weight [N, K] or [experts, N, K] (BF16, F16 or F32, rows of any stride, elements of a row 1
/// apart) and writes them to `scales`, of the shape and strides that fp8rt_quantize_weight takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_compute_weight_scales(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    weight: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_compute_weight_scales", || unsafe {
        let quantization = Quantization::new(desc, Recipe::NemoRl)?;
        compute(context, &quantization, quantization.weight(), weight, scales, stream)
    })
}

/// Computes the scales of an activation [M, K] (BF16, F16 or F32) and writes them to `scales`: [M, ceil(K/128)] row-major,
/// or column-major with columns a multiple of 4 and at least M apart, whose rows M to ceil4(M) - 1 become zero as far as
/// `bytes` reaches.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_compute_activation_scales(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    activation: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_compute_activation_scales", || unsafe {
        let quantization = Quantization::new(desc, Recipe::Vllm)?;
        compute(context, &quantization, quantization.activation()?, activation, scales, stream)
    })
}

unsafe fn compute(
    context: *mut fp8rt_context,
    quantization: &Quantization,
    subject: Subject,
    source: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    stream: *mut c_void,
) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let context = shared_context(context)?;
        let mut places = [Place::uninit(); 2];
        let [source_place, scales_place] = &mut places;
        let source = tensor(context, source, subject.name(), source_place)?;
        let scales = tensor(context, scales, "scales", scales_place)?;
        expect_stream(context, stream)?;
        let operands = Operands { source, codes: None, scales };
        let rule = Rule::Compute(quantization.formula);
        context.quantize(&Quantize::new(subject, operands, quantization.format, rule, None)?, stream)
    }
}
