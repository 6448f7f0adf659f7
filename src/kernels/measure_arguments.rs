//! The structs of `measure_arguments.cuh`. Both assert the sizes, so a field that only one side has fails the build.

use std::ffi::c_void;

use super::{MANY, Matrix};

/// Values, and the codes and scales that they became.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MeasuredMatrix {
    pub matrix: Matrix,
    pub sums: *mut c_void,
}

impl MeasuredMatrix {
    /// Fills the unused places of an array.
    pub const NONE: MeasuredMatrix = MeasuredMatrix { matrix: Matrix::NONE, sums: std::ptr::null_mut() };
}

/// What a launch passes.
#[repr(C)]
pub struct MeasureArguments {
    pub count: u32,
    pub tiles: u32,
    pub format: u32,
    pub reserved: u32,
    pub matrices: [MeasuredMatrix; MANY],
}

const _: () = {
    assert!(size_of::<crate::measure::ErrorSums>() == 64);
    assert!(size_of::<MeasureArguments>() == 16 + MANY * 120);
};
