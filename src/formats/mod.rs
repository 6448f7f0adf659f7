//! Bit-exact scalar conversions. No pointers, no devices, no C types.

pub mod e4m3;
pub mod e8m0;
pub mod half;
