//! Host memory, any shape and stride. Always batch-invariant: the order of every sum is fixed.

use std::ffi::c_void;

use crate::context::Context;
use crate::cpu::{Engine, linear};
use crate::error::Result;
use crate::linear::{LinearRun, LinearSpec};

use super::{Backend, Linear};

pub struct Cpu;

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn bit(&self) -> u32 {
        32
    }

    fn accept(&self, context: &Context, _: &LinearSpec) -> std::result::Result<Box<dyn Linear>, String> {
        if context.engine().is_none() {
            return Err(format!("the context is on device {}", context.device));
        }
        Ok(Box::new(CpuLinear))
    }
}

struct CpuLinear;

impl Linear for CpuLinear {
    fn workspace(&self, context: &Context, spec: &LinearSpec, m: usize) -> usize {
        linear::workspace(engine(context), spec, m)
    }

    fn prepare(&self, context: &Context, stream: *mut c_void) -> Result<()> {
        context.prepare(stream)
    }

    fn run(&self, context: &Context, run: &LinearRun, _: *mut c_void) -> Result<()> {
        linear::linear(engine(context), run)
    }

    fn configuration(&self, _: usize) -> String {
        String::new()
    }
}

/// `accept` took host contexts only.
fn engine(context: &Context) -> &Engine {
    context.engine().expect("a host context")
}
