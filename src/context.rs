//! A context: the device that calls run on and what they need there.

use crate::cpu::{self, Engine};
use crate::error::{Result, ensure, fail};
use crate::quantize::{Dequantize, Quantize};

/// Host memory, as a device number.
pub const HOST: i32 = -1;

/// Shared by every plan that was made from it.
pub struct Context {
    pub device: i32,
    pub engine: Engine,
}

impl Context {
    /// `device` is [`HOST`] or a CUDA ordinal; `num_threads` of 0 means as many as this process may use.
    pub fn new(device: i32, num_threads: usize) -> Result<Context> {
        ensure!(device >= HOST, InvalidArgument, "device is {device}, must be -1 (host) or a CUDA ordinal");
        if device != HOST {
            fail!(
                Unsupported,
                "device is {device}, this build is for host memory only (built without the feature cuda)"
            );
        }
        Ok(Context { device, engine: Engine::new(num_threads)? })
    }

    /// Does now what the first call would otherwise do: starts the threads.
    pub fn prepare(&self) -> Result<()> {
        self.engine.threads.prepare()
    }

    /// Runs a checked quantization where the tensors are.
    pub fn quantize(&self, request: &Quantize) -> Result<()> {
        cpu::quantize(&self.engine, request)
    }

    /// Runs a checked dequantization where the tensors are.
    pub fn dequantize(&self, request: &Dequantize) -> Result<()> {
        cpu::dequantize(&self.engine, request)
    }
}
