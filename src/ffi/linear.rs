//! The linear: plan, query, prepare, run.

use std::ffi::{c_char, c_void};

use crate::error::{Result, ensure, fail};
use crate::linear::{LinearOperands, LinearSpec};
use crate::plan::LinearPlan;
use crate::recipe::{Formula, Recipe};
use crate::tensor::Dtype;

use super::context::fp8rt_context;
use super::convert::{
    Place, descriptor, dtype, expect_flags, expect_present, expect_stream, extent, floor, optional_tensor, part_rows,
    recipe, required, required_mut, scale_format, tensor, write_descriptor, write_text,
};
use super::guard::guard;
use super::types::*;

/// A linear with its backend chosen. Holds no pointers of the caller. Any number of threads may run one at once, each with
/// its own workspace; creating and destroying are exclusive.
#[allow(non_camel_case_types)] // the C name
pub struct fp8rt_linear_plan(LinearPlan);

/// Chooses the backend for y[M,N] = x[M,K] . dequant(w)[N,K]^T (+ bias[N]), accumulated in float32.
///
/// The scales of the weight are [rows, ceil(K/128)] with rows as fp8rt_weight_scales_layout says, one grid a part. The
/// context may be destroyed before the plan.
/// Errors: UNSUPPORTED if no backend takes it, with what each said; INVALID_ARGUMENT, SHAPE, STRIDE, DTYPE, STRUCT_SIZE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear_plan_create(
    context: *mut fp8rt_context,
    desc: *const fp8rt_linear_desc,
    plan: *mut *mut fp8rt_linear_plan,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_linear_plan_create", || unsafe {
        let plan = required_mut(plan, "plan")?;
        let context = required(context, "context")?.share();
        expect_present(desc, "desc")?;
        let desc = descriptor(desc, "desc")?;
        let created = LinearPlan::new(context, spec(&desc)?, desc.backends)?;
        *plan = Box::into_raw(Box::new(fp8rt_linear_plan(created)));
        Ok(())
    })
}

/// Destroys a plan. NULL is nothing. No run may be using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear_plan_destroy(plan: *mut fp8rt_linear_plan) -> fp8rt_status {
    guard("fp8rt_linear_plan_destroy", || {
        if !plan.is_null() {
            // SAFETY: made by `fp8rt_linear_plan_create`, and used by nobody any more.
            drop(unsafe { Box::from_raw(plan) });
        }
        Ok(())
    })
}

/// What the plan decided. Set info->struct_size first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear_plan_query(
    plan: *const fp8rt_linear_plan,
    info: *mut fp8rt_linear_plan_info,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_linear_plan_query", || unsafe {
        let plan = &required(plan, "plan")?.0;
        expect_present(info, "info")?;
        let max_m = plan.spec().max_m;
        let value = fp8rt_linear_plan_info {
            struct_size: 0,
            backend: plan.backend_bit(),
            workspace_bytes: plan.workspace(max_m)? as u64,
            max_m: max_m as i64,
        };
        write_descriptor(info, "info", &value)
    })
}

/// Workspace that a run of `m` rows needs, in bytes. Monotone in m; for max_m it is what fp8rt_linear_plan_query says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear_plan_workspace(
    plan: *const fp8rt_linear_plan,
    m: i64,
    bytes: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_linear_plan_workspace", || unsafe {
        let plan = &required(plan, "plan")?.0;
        let bytes = required_mut(bytes, "bytes")?;
        *bytes = plan.workspace(extent(m, "m")?)? as u64;
        Ok(())
    })
}

/// Writes one line for a person to `text`, zero-terminated and cut to `capacity` bytes: the shape, the backend, and why
/// those before it refused. `length` (may be NULL) receives the whole length without the zero. `text` may be NULL if
/// `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear_plan_describe(
    plan: *const fp8rt_linear_plan,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_linear_plan_describe", || unsafe {
        let line = required(plan, "plan")?.0.describe();
        write_text(&line, text, capacity, length)
    })
}

/// Checks the weight that runs will bring against the plan, and does what a run must not do: starts threads; on a GPU,
/// loads the kernels, asks whether the pointers are device memory, and may synchronize. The pointers are not kept: a
/// later run may bring others. `bias` is NULL if the plan has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear_plan_prepare(
    plan: *mut fp8rt_linear_plan,
    weight: *const fp8rt_tensor,
    weight_scales: *const fp8rt_tensor,
    bias: *const fp8rt_tensor,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_linear_plan_prepare", || unsafe {
        let plan = &required(plan, "plan")?.0;
        let context = plan.context();
        let mut places = [Place::uninit(); 3];
        let [weight_place, scales_place, bias_place] = &mut places;
        let weight = tensor(context, weight, "weight", weight_place)?;
        let scales = tensor(context, weight_scales, "weight_scales", scales_place)?;
        let bias = optional_tensor(context, bias, "bias", bias_place)?;
        expect_stream(context, stream)?;
        plan.prepare(weight, scales, bias, stream)
    })
}

/// Quantizes x [M, K] (the plan's input dtype, rows of any stride, 0 <= M <= max_m) and multiplies: y [M, N].
///
/// `workspace`: at least what fp8rt_linear_plan_workspace says for this M, 256-byte aligned, contents undefined before and
/// after, one for each concurrent run. `bias` is NULL if the plan has none. M = 0 succeeds and writes nothing. Where the
/// product of two scales is below the normal float32, y is finite; where it overflows, the host and the backend plain
/// count that group as 0, and the others may give infinity or NaN.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear(
    plan: *mut fp8rt_linear_plan,
    x: *const fp8rt_tensor,
    weight: *const fp8rt_tensor,
    weight_scales: *const fp8rt_tensor,
    bias: *const fp8rt_tensor,
    y: *const fp8rt_tensor,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> fp8rt_status {
    let operands =
        Operands { plan, x, x_scales: None, weight, weight_scales, bias, y, workspace, workspace_bytes, stream };
    // SAFETY: pointers as the header asks.
    guard("fp8rt_linear", || unsafe { operands.run() })
}

/// As fp8rt_linear, with x already quantized: `x` E4M3 [M, K] of the plan's input_stride, `x_scales` of the plan's format
/// and layout.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_linear_prequantized(
    plan: *mut fp8rt_linear_plan,
    x: *const fp8rt_tensor,
    x_scales: *const fp8rt_tensor,
    weight: *const fp8rt_tensor,
    weight_scales: *const fp8rt_tensor,
    bias: *const fp8rt_tensor,
    y: *const fp8rt_tensor,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
) -> fp8rt_status {
    let x_scales = Some(x_scales);
    let operands = Operands { plan, x, x_scales, weight, weight_scales, bias, y, workspace, workspace_bytes, stream };
    // SAFETY: pointers as the header asks.
    guard("fp8rt_linear_prequantized", || unsafe { operands.run() })
}

/// The pointers of a run.
struct Operands {
    plan: *mut fp8rt_linear_plan,
    x: *const fp8rt_tensor,
    x_scales: Option<*const fp8rt_tensor>,
    weight: *const fp8rt_tensor,
    weight_scales: *const fp8rt_tensor,
    bias: *const fp8rt_tensor,
    y: *const fp8rt_tensor,
    workspace: *mut c_void,
    workspace_bytes: u64,
    stream: *mut c_void,
}

impl Operands {
    /// # Safety
    /// Pointers as the header asks.
    unsafe fn run(&self) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            let plan = &required(self.plan, "plan")?.0;
            let context = plan.context();
            let mut places = [Place::uninit(); 6];
            let [x_place, x_scales_place, weight_place, weight_scales_place, bias_place, y_place] = &mut places;
            let x = tensor(context, self.x, "x", x_place)?;
            let x_scales = match self.x_scales {
                Some(scales) => Some(tensor(context, scales, "x_scales", x_scales_place)?),
                None => None,
            };
            let weight = tensor(context, self.weight, "weight", weight_place)?;
            let weight_scales = tensor(context, self.weight_scales, "weight_scales", weight_scales_place)?;
            let bias = optional_tensor(context, self.bias, "bias", bias_place)?;
            let y = tensor(context, self.y, "y", y_place)?;
            expect_stream(context, self.stream)?;
            let operands = LinearOperands {
                input: x,
                input_scales: x_scales,
                weight,
                weight_scales,
                bias,
                output: y,
                workspace: self.workspace.cast(),
                workspace_bytes: usize::try_from(self.workspace_bytes).unwrap_or(usize::MAX),
            };
            plan.run(operands, self.stream)
        }
    }
}

/// A row stride of a descriptor; 0 means packed.
fn stride(value: i64, name: &str, packed: usize) -> Result<usize> {
    ensure!(value >= 0, Stride, "{name} is {value}, must be at least 0");
    Ok(if value == 0 { packed } else { value as usize })
}

fn named_dtype(number: u32, name: &str) -> Result<Dtype> {
    match dtype(number) {
        Some(dtype) => Ok(dtype),
        None => fail!(Dtype, "{name} is {number}, the largest dtype is 5"),
    }
}

/// # Safety
/// `part_rows` as in the descriptor.
unsafe fn spec(desc: &fp8rt_linear_desc) -> Result<LinearSpec> {
    expect_flags(desc.flags, FP8RT_LINEAR_BATCH_INVARIANT | FP8RT_LINEAR_FLOOR)?;
    let layout = desc.activation_scale_layout;
    ensure!(layout <= 1, InvalidArgument, "activation_scale_layout is {layout}, the largest scale layout is 1");
    let recipe = recipe(desc.activation_recipe, "activation_recipe", Recipe::Vllm)?;
    let activation_format = scale_format(desc.activation_scale_format, "activation_scale_format")?;
    let floor = floor(desc.flags & FP8RT_LINEAR_FLOOR != 0, desc.floor)?;
    let (n, k) = (extent(desc.n, "n")?, extent(desc.k, "k")?);
    Ok(LinearSpec {
        max_m: extent(desc.max_m, "max_m")?,
        n,
        k,
        input_dtype: named_dtype(desc.input_dtype, "input_dtype")?,
        output_dtype: named_dtype(desc.output_dtype, "output_dtype")?,
        bias_dtype: (desc.bias_dtype != 0).then(|| named_dtype(desc.bias_dtype, "bias_dtype")).transpose()?,
        formula: Formula::new(recipe, activation_format, floor),
        activation_format,
        activation_column_major: layout == fp8rt_scale_layout::COLUMN_MAJOR as u32,
        weight_format: scale_format(desc.weight_scale_format, "weight_scale_format")?,
        // SAFETY: the caller's promise.
        part_rows: unsafe { part_rows(desc.part_rows, desc.num_parts) }?.to_vec(),
        input_stride: stride(desc.input_stride, "input_stride", k)?,
        weight_stride: stride(desc.weight_stride, "weight_stride", k)?,
        output_stride: stride(desc.output_stride, "output_stride", n)?,
        batch_invariant: desc.flags & FP8RT_LINEAR_BATCH_INVARIANT != 0,
    })
}
