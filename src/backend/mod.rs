//! The ways to run a linear, in the order in which they are asked. Only this list knows the order.

#[cfg(not(feature = "cutlass"))]
mod absent;
#[cfg(feature = "cuda")]
mod choices;
mod cpu;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cutlass")]
mod cutlass;
#[cfg(feature = "cuda")]
mod deepgemm;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "cuda")]
mod plain;

use std::ffi::c_void;

use crate::context::Context;
use crate::error::Result;
use crate::linear::{LinearRun, LinearSpec};

/// One way to run a linear.
pub trait Backend: Sync {
    fn name(&self) -> &'static str;
    /// The bit of the C ABI's `fp8rt_backend`.
    fn bit(&self) -> u32;
    /// Takes the linear, or says why not.
    fn accept(&self, context: &Context, spec: &LinearSpec) -> std::result::Result<Box<dyn Linear>, String>;
}

/// A linear that a backend took.
pub trait Linear: Send + Sync {
    /// Bytes that a run of `m` rows needs. Monotone in `m`, a multiple of the workspace alignment.
    fn workspace(&self, context: &Context, spec: &LinearSpec, m: usize) -> usize;
    /// Does what a run must not do: loads, starts, allocates.
    fn prepare(&self, context: &Context, stream: *mut c_void) -> Result<()>;
    fn run(&self, context: &Context, run: &LinearRun, stream: *mut c_void) -> Result<()>;
    /// How a run of `m` rows is done, for a person.
    fn configuration(&self, m: usize) -> String;
}

/// Every backend that exists, built or not: a plan says of each why it was passed over.
#[cfg(feature = "cuda")]
pub static BACKENDS: &[&dyn Backend] = &[
    &deepgemm::DeepGemm,
    #[cfg(feature = "cutlass")]
    &cutlass::Cutlass,
    #[cfg(not(feature = "cutlass"))]
    &absent::Absent { name: "cutlass", bit: 4, needs: "cutlass" },
    &cublaslt::CublasLt,
    &plain::Plain,
    &cpu::Cpu,
];
#[cfg(not(feature = "cuda"))]
pub static BACKENDS: &[&dyn Backend] = &[
    &absent::Absent { name: "deepgemm", bit: 2, needs: "cuda" },
    &absent::Absent { name: "cutlass", bit: 4, needs: "cutlass" },
    &absent::Absent { name: "cublaslt", bit: 8, needs: "cuda" },
    &absent::Absent { name: "plain", bit: 16, needs: "cuda" },
    &cpu::Cpu,
];
