//! A linear without its pointers, and one run of it with them, both checked.

use crate::blocks::RowGrid;
use crate::error::{Result, ensure, fail};
use crate::quantize::{Scales, Subject};
use crate::recipe::{Formula, ScaleFormat};
use crate::tensor::{Dtype, FLOATS, Tensor};

/// No memory holds a larger matrix, and no sum of a few such sizes overflows.
const MOST_ELEMENTS: usize = 1 << 48;

/// Everything about a linear that is decided before it runs.
#[derive(Clone, Debug)]
pub struct LinearSpec {
    pub max_m: usize,
    pub n: usize,
    pub k: usize,
    pub input_dtype: Dtype,
    pub output_dtype: Dtype,
    pub bias_dtype: Option<Dtype>,
    /// Of the activation, when the run quantizes it.
    pub formula: Formula,
    pub activation_format: ScaleFormat,
    /// Of scales that a prequantized run brings.
    pub activation_column_major: bool,
    pub weight_format: ScaleFormat,
    /// Empty: one part.
    pub part_rows: Vec<i64>,
    /// Row strides that runs bring, in elements.
    pub input_stride: usize,
    pub weight_stride: usize,
    pub output_stride: usize,
    pub batch_invariant: bool,
}

impl LinearSpec {
    /// Checks what the fields must satisfy together.
    pub fn check(&self) -> Result<()> {
        for (name, dtype) in [("input_dtype", Some(self.input_dtype)), ("output_dtype", Some(self.output_dtype))]
            .into_iter()
            .chain([("bias_dtype", self.bias_dtype)])
        {
            let known = dtype.is_none_or(|dtype| FLOATS.contains(&dtype));
            ensure!(known, Dtype, "{name} is {}, must be bf16, fp16 or fp32", dtype.unwrap_or(Dtype::E4m3));
        }
        for (name, stride, columns, letter) in [
            ("input_stride", self.input_stride, self.k, "K"),
            ("weight_stride", self.weight_stride, self.k, "K"),
            ("output_stride", self.output_stride, self.n, "N"),
        ] {
            ensure!(stride >= columns, Stride, "{name} is {stride}, must be 0 or at least {letter} = {columns}");
        }
        for (name, rows, columns) in
            [("max_m * k", self.max_m, self.k), ("n * k", self.n, self.k), ("max_m * n", self.max_m, self.n)]
        {
            let fits = rows.max(1).checked_mul(columns.max(1)).is_some_and(|elements| elements <= MOST_ELEMENTS);
            ensure!(fits, Shape, "{name} is {rows} * {columns}, at most {MOST_ELEMENTS} elements are taken");
        }
        self.grid().map(drop)
    }

    pub fn grid(&self) -> Result<RowGrid<'_>> {
        RowGrid::of_weight(self.n, &self.part_rows)
    }
}

/// The activation of a run.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// To be quantized by the run.
    Values(&'a Tensor),
    Quantized {
        codes: &'a Tensor,
        scales: Scales<'a>,
    },
}

/// The tensors of a run, unchecked.
pub struct LinearOperands<'a> {
    pub input: &'a Tensor,
    /// `None`: `input` holds values.
    pub input_scales: Option<&'a Tensor>,
    pub weight: &'a Tensor,
    pub weight_scales: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub output: &'a Tensor,
    pub workspace: *mut u8,
    pub workspace_bytes: usize,
}

/// A checked run.
pub struct LinearRun<'a> {
    pub spec: &'a LinearSpec,
    pub grid: RowGrid<'a>,
    pub input: Input<'a>,
    pub weight: &'a Tensor,
    pub weight_scales: Scales<'a>,
    pub bias: Option<&'a Tensor>,
    pub output: &'a Tensor,
    pub workspace: *mut u8,
}

// SAFETY: as for `Tensor`: the workspace is an address; what threads do through it is decided where it is dereferenced.
unsafe impl Sync for LinearRun<'_> {}

/// The weight of a linear, checked against what was planned.
pub fn check_weight<'a>(
    spec: &LinearSpec,
    weight: &Tensor,
    scales: &'a Tensor,
    bias: Option<&Tensor>,
) -> Result<Scales<'a>> {
    expect_extents(weight, [("rows", "N", spec.n), ("columns", "K", spec.k)])?;
    weight.expect_dtype(&[Dtype::E4m3])?;
    weight.expect_rows_contiguous()?;
    expect_stride(weight, "weight_stride", spec.weight_stride)?;
    match (bias, spec.bias_dtype) {
        (None, None) => {}
        (Some(bias), Some(dtype)) => {
            bias.expect_rank(1)?;
            bias.expect_dtype(&[dtype])?;
            let elements = bias.columns();
            ensure!(elements == spec.n, Shape, "bias has {elements} elements, the plan has N = {}", spec.n);
            bias.expect_rows_contiguous()?;
        }
        (Some(_), None) => fail!(InvalidArgument, "bias is given, the plan has none (bias_dtype is 0)"),
        (None, Some(dtype)) => fail!(NullPointer, "bias is NULL, the plan has one of dtype {dtype}"),
    }
    Scales::new(scales, spec.weight_format, &Subject::Weight { part_rows: &spec.part_rows }, weight)
}

impl<'a> LinearRun<'a> {
    /// `workspace_bytes` says what a run of M rows needs.
    pub fn new(
        spec: &'a LinearSpec,
        operands: LinearOperands<'a>,
        workspace_bytes: impl FnOnce(usize) -> usize,
    ) -> Result<LinearRun<'a>> {
        let LinearOperands { weight, bias, output, .. } = operands;
        let weight_scales = check_weight(spec, weight, operands.weight_scales, bias)?;
        let input = check_input(spec, operands.input, operands.input_scales)?;
        let m = operands.input.rows();
        expect_extents(output, [("rows", "M", m), ("columns", "N", spec.n)])?;
        output.expect_dtype(&[spec.output_dtype])?;
        output.expect_rows_contiguous()?;
        expect_stride(output, "output_stride", spec.output_stride)?;
        let inputs = [Some(operands.input), operands.input_scales, Some(weight), Some(operands.weight_scales), bias];
        let inputs = inputs.into_iter().flatten();
        for other in inputs.clone() {
            output.expect_apart(other)?;
        }
        let (workspace, given, needed) = (operands.workspace, operands.workspace_bytes, workspace_bytes(m));
        check_workspace(workspace, given, needed, inputs.chain([output]))?;
        Ok(LinearRun { spec, grid: spec.grid()?, input, weight, weight_scales, bias, output, workspace })
    }

    /// Rows of this run.
    pub fn m(&self) -> usize {
        self.output.rows()
    }
}

fn check_input<'a>(spec: &LinearSpec, input: &'a Tensor, scales: Option<&'a Tensor>) -> Result<Input<'a>> {
    let m = input.rows();
    expect_extents(input, [("rows", "M", m), ("columns", "K", spec.k)])?;
    ensure!(m <= spec.max_m, Shape, "{} has {m} rows, the plan has max_m = {}", input.name, spec.max_m);
    input.expect_rows_contiguous()?;
    let Some(scales) = scales else {
        input.expect_dtype(&[spec.input_dtype])?;
        return Ok(Input::Values(input));
    };
    input.expect_dtype(&[Dtype::E4m3])?;
    expect_stride(input, "input_stride", spec.input_stride)?;
    let scales = Scales::new(scales, spec.activation_format, &Subject::Activation, input)?;
    let (given, planned) = (scales.padded, spec.activation_column_major);
    let name = |column_major| if column_major { "column-major" } else { "row-major" };
    ensure!(
        given == planned
            || scales.tensor.columns() <= 1
            || m == 0
            || spec.activation_format == ScaleFormat::Ue8m0Packed,
        Stride,
        "{} is {}, the plan has activation_scale_layout {}",
        scales.tensor.name,
        name(given),
        name(planned)
    );
    Ok(Input::Quantized { codes: input, scales })
}

fn expect_extents(tensor: &Tensor, extents: [(&str, &str, usize); 2]) -> Result<()> {
    tensor.expect_rank(2)?;
    for (axis, (what, letter, planned)) in extents.into_iter().enumerate() {
        let given = tensor.shape[axis + 1];
        ensure!(given == planned, Shape, "{} has {given} {what}, this linear has {letter} = {planned}", tensor.name);
    }
    Ok(())
}

/// The row stride decides what a backend can do, so it is part of the plan. One row has none.
fn expect_stride(tensor: &Tensor, field: &str, planned: usize) -> Result<()> {
    let given = tensor.stride[1];
    let free = tensor.rows() <= 1 || tensor.is_empty();
    ensure!(
        free || given == planned,
        Stride,
        "{} has row stride {given}, the plan has {field} = {planned}",
        tensor.name
    );
    Ok(())
}

/// Alignment of a workspace.
pub const WORKSPACE_ALIGNMENT: usize = 256;

fn check_workspace<'a>(
    workspace: *mut u8,
    given: usize,
    needed: usize,
    tensors: impl Iterator<Item = &'a Tensor>,
) -> Result<()> {
    if needed == 0 {
        return Ok(());
    }
    let address = workspace as usize;
    ensure!(given >= needed, Workspace, "workspace has {given} bytes, this run needs {needed}");
    ensure!(address != 0, Workspace, "workspace is NULL, this run needs {needed} bytes");
    ensure!(
        address.is_multiple_of(WORKSPACE_ALIGNMENT),
        Alignment,
        "workspace is at address {address:#x}, needs {WORKSPACE_ALIGNMENT}-byte alignment"
    );
    ensure!(address.checked_add(given).is_some(), Workspace, "workspace has {given} bytes, which wraps around");
    for tensor in tensors {
        tensor.expect_apart_from_memory("workspace", address, needed)?;
    }
    Ok(())
}
