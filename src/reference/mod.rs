//! The oracle: the definition in plain loops, one element at a time. No SIMD, no tiling, no threads, ever.

mod linear;
mod quantize;

pub use linear::linear;
pub use quantize::{dequantize, quantize};
