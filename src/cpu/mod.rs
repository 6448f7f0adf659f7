//! The fast CPU path: SIMD chosen at run time, the context's own threads. Held to `reference` bit for bit.

mod copy;
mod dequantize;
mod environment;
mod fingerprint;
mod fused;
mod isa;
mod lanes;
pub mod linear;
mod measure;
mod quantize;
mod segment;
#[cfg(test)]
mod tests;
mod threads;

use crate::error::Result;

pub use copy::copy;
pub use dequantize::dequantize;
pub use environment::Environment;
pub use fingerprint::fingerprint;
pub use fused::fused;
pub use isa::Isa;
pub use measure::measure;
pub use quantize::quantize;
pub use threads::{Threads, forks};

/// What a host context runs on.
pub struct Engine {
    pub isa: Isa,
    pub threads: Threads,
}

impl Engine {
    /// `num_threads` of 0 means as many as this process may use.
    pub fn new(num_threads: usize) -> Result<Engine> {
        Ok(Engine { isa: Isa::choose()?, threads: Threads::new(num_threads)? })
    }
}
