//! The linear: y = x . dequant(weight)^T (+ bias), x quantized on the way.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use crate::context::Context;
use crate::error::{Result, ensure, fail};
use crate::linear::LinearOperands;
use crate::plan::LinearPlan;
use crate::tensor::{Dtype, FLOATS, Tensor};
use crate::torch::arguments::{Arguments, dtype_of, expect_device};
use crate::torch::kernel::{Op, Returned};
use crate::torch::owned::Owned;
use crate::torch::place::Workspace;
use crate::torch::plans::{self, Wanted, Weight};
use crate::torch::settings::floor;
use crate::torch::{owned, traced};

use super::quantize::context;

/// Declares an op that ends in the settings of a linear, so that they are written once.
macro_rules! schema {
    ($begin:literal, $returns:literal) => {
        match CStr::from_bytes_with_nul(
            concat!(
                $begin,
                ", int activation_recipe=0, int activation_scale_format=0, float? floor=None, ",
                "bool batch_invariant=False, int backends=0, int[]? part_rows=None) -> ",
                $returns,
                "\0"
            )
            .as_bytes(),
        ) {
            Ok(text) => text,
            Err(_) => panic!("a schema has no zero"),
        }
    };
}

/// The arguments of a linear but x and y.
struct Given {
    weight: Tensor,
    scales: Tensor,
    bias: Option<Tensor>,
}

impl Given {
    fn weight(&self) -> Weight<'_> {
        Weight { codes: &self.weight, scales: &self.scales, bias: self.bias.as_ref() }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.weight, &self.scales].into_iter().chain(&self.bias)
    }

    /// What a plan of it is looked up by; its settings stand from `settings` on. `output_stride` `None`: packed.
    fn wanted(
        &self,
        arguments: &Arguments,
        settings: usize,
        dtype: Dtype,
        output_stride: Option<usize>,
    ) -> Result<Wanted> {
        let weight = &self.weight;
        let (n, k) = (weight.rows(), weight.columns());
        let backends = arguments.int(settings + 4);
        let Ok(backends) = u32::try_from(backends) else {
            fail!(InvalidArgument, "backends is {backends}, must be bits of backends")
        };
        Ok(Wanted {
            device: weight.device,
            n,
            k,
            dtype,
            bias_dtype: self.bias.as_ref().map(|bias| bias.dtype),
            packed: self.scales.dtype == Dtype::Int32,
            weight_stride: if n > 1 { weight.stride[1] } else { k },
            output_stride: output_stride.unwrap_or(n),
            recipe: arguments.int(settings),
            scale_format: arguments.int(settings + 1),
            floor: floor(arguments.optional_float(settings + 2))?.map(f32::to_bits),
            batch_invariant: arguments.bool(settings + 3),
            backends,
            part_rows: arguments.ints(settings + 5)?,
        })
    }
}

/// A run that is ready but for y.
struct Run {
    x: Tensor,
    given: Given,
    stream: *mut c_void,
    context: &'static Arc<Context>,
}

impl Run {
    fn read(arguments: &Arguments, bias: usize) -> Result<Run> {
        let x = arguments.tensor(0, "x")?;
        let (weight, scales) = (arguments.tensor(1, "weight")?, arguments.tensor(2, "weight_scales")?);
        let given = Given { weight, scales, bias: arguments.optional_tensor(bias, "bias")? };
        expect_device(x.device, given.tensors())?;
        ensure!(x.rank == 2, Shape, "x has {} dimensions, must have 2", x.rank);
        x.expect_dtype(FLOATS)?;
        let (context, stream) = context(arguments, x.device)?;
        Ok(Run { x, given, stream, context })
    }

    fn plan(&self, wanted: &Wanted) -> Result<&'static LinearPlan> {
        plans::find(self.context, wanted, self.x.rows(), self.given.weight(), self.stream)
    }

    fn run(&self, arguments: &Arguments, plan: &LinearPlan, y: &Tensor) -> Result<()> {
        let bytes = plan.workspace(self.x.rows())?;
        let workspace = Workspace::new(arguments.shim(), self.x.device, bytes)?;
        let operands = LinearOperands {
            input: &self.x,
            input_scales: None,
            weight: &self.given.weight,
            weight_scales: &self.given.scales,
            bias: self.given.bias.as_ref(),
            output: y,
            workspace: workspace.address,
            workspace_bytes: workspace.bytes,
        };
        plan.run(operands, self.stream)
    }
}

/// Into a new y of x's dtype.
pub struct Linear;

impl Op for Linear {
    const NAME: &'static CStr = c"linear";
    const SCHEMA: &'static CStr =
        schema!("linear(Tensor x, Tensor weight, Tensor weight_scales, Tensor? bias=None", "Tensor");

    fn run(arguments: &Arguments) -> Result<Returned> {
        let run = Run::read(arguments, 3)?;
        let plan = run.plan(&run.given.wanted(arguments, 4, run.x.dtype, None)?)?;
        let shape = [run.x.rows() as i64, run.given.weight.rows() as i64];
        let shim = arguments.shim();
        let y = Owned::empty(shim, shape, owned::number(shim, run.x.dtype), run.x.device)?;
        run.run(arguments, plan, &y.view("y")?)?;
        Ok(Returned::One(y.release()))
    }

    fn fake(arguments: &Arguments) -> Result<Returned> {
        let y = traced::product(arguments.shim(), arguments.handle(0), arguments.handle(1))?;
        Ok(Returned::One(y.release()))
    }
}

/// Into a y that is there.
pub struct LinearOut;

impl Op for LinearOut {
    const NAME: &'static CStr = c"linear_out";
    const SCHEMA: &'static CStr =
        schema!("linear_out(Tensor x, Tensor weight, Tensor weight_scales, Tensor(a!) y, Tensor? bias=None", "()");

    fn run(arguments: &Arguments) -> Result<Returned> {
        let run = Run::read(arguments, 4)?;
        let y = arguments.tensor(3, "y")?;
        expect_device(run.x.device, [&y])?;
        let (m, n) = (run.x.rows(), run.given.weight.rows());
        ensure!(y.rank == 2, Shape, "y has {} dimensions, must have 2", y.rank);
        let (rows, columns) = (y.rows(), y.columns());
        ensure!(columns == n, Shape, "y has {columns} columns, this linear has N = {n}");
        ensure!(rows == m, Shape, "y has {rows} rows, x has {m}");
        // The stride of one row never takes effect.
        let stride = if rows > 1 { y.stride[1] } else { n };
        let plan = run.plan(&run.given.wanted(arguments, 5, run.x.dtype, Some(stride))?)?;
        run.run(arguments, plan, &y)?;
        Ok(Returned::Nothing)
    }
}

/// Plans every M up to `max_m`, and says what was planned.
pub struct LinearPrepare;

impl Op for LinearPrepare {
    const NAME: &'static CStr = c"linear_prepare";
    const SCHEMA: &'static CStr = schema!(
        "linear_prepare(Tensor weight, Tensor weight_scales, int max_m, Tensor? bias=None, ScalarType? dtype=None",
        "str"
    );

    fn run(arguments: &Arguments) -> Result<Returned> {
        let (weight, scales) = (arguments.tensor(0, "weight")?, arguments.tensor(1, "weight_scales")?);
        let given = Given { weight, scales, bias: arguments.optional_tensor(3, "bias")? };
        expect_device(given.weight.device, given.tensors())?;
        let max_m = arguments.int(2);
        let Ok(rows) = usize::try_from(max_m) else { fail!(Shape, "max_m is {max_m}, must be at least 0") };
        let shim = arguments.shim();
        let dtype = arguments.optional_dtype(4).map_or(Some(Dtype::Bf16), |number| dtype_of(shim, number));
        let Some(dtype) = dtype.filter(|dtype| FLOATS.contains(dtype)) else {
            fail!(Dtype, "dtype must be bfloat16, float16 or float32")
        };
        let (context, stream) = context(arguments, given.weight.device)?;
        let wanted = given.wanted(arguments, 5, dtype, None)?;
        let plan = plans::prepare(context, &wanted, rows, given.weight(), stream)?;
        Ok(Returned::One(owned::string(shim, &plan.describe())?))
    }

    /// Its result is a text about a plan, which tensors without memory have not.
    fn fake(_: &Arguments) -> Result<Returned> {
        fail!(
            InvalidArgument,
            "weight has no memory: call it outside of what is traced or compiled, before the first run"
        )
    }
}
