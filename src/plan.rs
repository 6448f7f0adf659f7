//! Describe, validate, take the first backend that accepts, and keep why the others did not.

use std::ffi::c_void;
use std::sync::Arc;

use crate::backend::{BACKENDS, Linear};
use crate::context::Context;
use crate::error::{Result, ensure, fail};
use crate::linear::{LinearOperands, LinearRun, LinearSpec, check_weight};
use crate::log::{self, Level};
use crate::tensor::Tensor;

/// A backend that was asked and did not take the linear.
#[derive(Debug)]
pub struct Refusal {
    pub backend: &'static str,
    pub reason: String,
}

/// A linear with its backend. Holds no pointers of the caller; shared freely for running.
pub struct LinearPlan {
    context: Arc<Context>,
    spec: LinearSpec,
    linear: Box<dyn Linear>,
    backend: &'static str,
    bit: u32,
    refusals: Vec<Refusal>,
}

impl LinearPlan {
    /// Asks the backends in order. `allowed` are bits of backends; 0 means all. `FP8RT_BACKEND` restricts them further.
    pub fn new(context: Arc<Context>, spec: LinearSpec, allowed: u32) -> Result<LinearPlan> {
        spec.check()?;
        let known = BACKENDS.iter().fold(0, |bits, backend| bits | backend.bit());
        ensure!(allowed & !known == 0, InvalidArgument, "backends is {allowed:#x}, known bits are {known:#x}");
        let (allowed, environment) = (if allowed == 0 { known } else { allowed }, environment_backends()?);
        let mut refusals = Vec::new();
        for backend in BACKENDS {
            let answer = if allowed & backend.bit() == 0 {
                Err("not among the backends of the descriptor".to_owned())
            } else if environment & backend.bit() == 0 {
                Err("not named in FP8RT_BACKEND".to_owned())
            } else {
                backend.accept(&context, &spec)
            };
            match answer {
                Ok(linear) => {
                    let (name, bit) = (backend.name(), backend.bit());
                    let plan = LinearPlan { context, spec, linear, backend: name, bit, refusals };
                    log::line(Level::Info, || plan.describe());
                    return Ok(plan);
                }
                Err(reason) => refusals.push(Refusal { backend: backend.name(), reason }),
            }
        }
        fail!(Unsupported, "no backend takes N = {}, K = {}: {}", spec.n, spec.k, list(&refusals))
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    pub fn spec(&self) -> &LinearSpec {
        &self.spec
    }

    /// The bit of the backend.
    pub fn backend_bit(&self) -> u32 {
        self.bit
    }

    /// One line: what was planned, who runs it, who refused and why.
    pub fn describe(&self) -> String {
        let LinearSpec { max_m, n, k, input_dtype, output_dtype, .. } = &self.spec;
        let refused = if self.refusals.is_empty() { String::new() } else { format!("; {}", list(&self.refusals)) };
        let how = match self.linear.configuration(*max_m) {
            how if how.is_empty() => how,
            how => format!(" ({how})"),
        };
        let shape = format!("M <= {max_m}, N = {n}, K = {k}");
        format!("linear {shape}, {input_dtype} to {output_dtype}: {}{how}{refused}", self.backend)
    }

    /// Workspace of a run of `m` rows. Monotone in `m`.
    pub fn workspace(&self, m: usize) -> Result<usize> {
        ensure!(m <= self.spec.max_m, Shape, "m is {m}, the plan has max_m = {}", self.spec.max_m);
        Ok(self.linear.workspace(&self.context, &self.spec, m))
    }

    /// Checks the weight that runs will bring, and does what a run must not do.
    pub fn prepare(&self, weight: &Tensor, scales: &Tensor, bias: Option<&Tensor>, stream: *mut c_void) -> Result<()> {
        check_weight(&self.spec, weight, scales, bias)?;
        self.context.expect_memory(&[Some(weight), Some(scales), bias])?;
        self.linear.prepare(&self.context, stream)
    }

    /// Validates and runs.
    pub fn run(&self, operands: LinearOperands, stream: *mut c_void) -> Result<()> {
        let workspace = |m| self.linear.workspace(&self.context, &self.spec, m);
        self.linear.run(&self.context, &LinearRun::new(&self.spec, operands, workspace)?, stream)
    }
}

fn list(refusals: &[Refusal]) -> String {
    let one = |refusal: &Refusal| format!("{}: {}", refusal.backend, refusal.reason);
    refusals.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Bits of the backends that `FP8RT_BACKEND` names, comma separated; all if it is not set.
fn environment_backends() -> Result<u32> {
    let names = match std::env::var("FP8RT_BACKEND") {
        Ok(names) if !names.is_empty() => names,
        _ => return Ok(u32::MAX),
    };
    let mut bits = 0;
    for name in names.split(',').map(str::trim) {
        let Some(backend) = BACKENDS.iter().find(|backend| backend.name() == name) else {
            let known: Vec<_> = BACKENDS.iter().map(|backend| backend.name()).collect();
            fail!(InvalidArgument, "FP8RT_BACKEND names \"{name}\", backends are {}", known.join(", "));
        };
        bits |= backend.bit();
    }
    Ok(bits)
}
