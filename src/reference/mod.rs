//! The oracle: the definition in plain loops, one element at a time. No SIMD, no tiling, no threads, ever.

mod quantize;

pub use quantize::{dequantize, quantize};
