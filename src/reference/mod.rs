//! The oracle: the definition in plain loops, one element at a time. No SIMD, no tiling, no threads, ever.

mod fingerprint;
mod linear;
mod quantize;

pub use fingerprint::fingerprint;
pub use linear::linear;
pub use quantize::{dequantize, quantize};
