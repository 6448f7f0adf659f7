//! The structs of `arguments.cuh`. Both assert the sizes, so a field that only one side has fails the build.

use std::ffi::c_void;

/// One matrix whose blocks or groups are quantized.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Matrix {
    pub source: *const c_void,
    pub codes: *mut u8,
    pub scales: *mut c_void,
    pub source_stride: i64,
    pub codes_stride: i64,
    pub source_expert: i64,
    pub codes_expert: i64,
    pub scale_row: i64,
    pub scale_column: i64,
    pub scale_expert: i64,
    pub scale_limit: i64,
    pub rows: u32,
    pub columns: u32,
    pub experts: u32,
    pub padding: u32,
    pub first_tile: u32,
    pub aligned: u32,
}

// SAFETY: addresses of device memory; nothing here dereferences them.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// Fills the unused places of an array.
    pub const NONE: Matrix = Matrix {
        source: std::ptr::null(),
        codes: std::ptr::null_mut(),
        scales: std::ptr::null_mut(),
        source_stride: 0,
        codes_stride: 0,
        source_expert: 0,
        codes_expert: 0,
        scale_row: 0,
        scale_column: 0,
        scale_expert: 0,
        scale_limit: 0,
        rows: 0,
        columns: 0,
        experts: 0,
        padding: 0,
        first_tile: 0,
        aligned: 0,
    };
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    pub health: *mut c_void,
    pub table: *const Matrix,
    pub floor: f32,
    pub recipe: u32,
    pub format: u32,
    pub rule: u32,
    pub count: u32,
    pub tiles: u32,
}

/// What a launch with N matrices passes.
#[repr(C)]
pub struct Arguments<const N: usize> {
    pub header: Header,
    pub matrices: [Matrix; N],
}

/// Matrices of the kernels that take a few, and of those that take many.
pub const FEW: usize = 4;
pub const MANY: usize = 240;

#[repr(C)]
pub struct DequantizeArguments {
    pub matrix: Matrix,
    pub format: u32,
    pub band: u32,
}

/// A producer of an activation. The output of the matrix is codes or values.
#[repr(C)]
pub struct FusedArguments {
    pub header: Header,
    pub matrix: Matrix,
    pub residual: *mut c_void,
    pub weight: *const c_void,
    pub residual_stride: i64,
    pub epsilon: f32,
    pub reserved: u32,
}

/// What a kernel asks of L2 before its input is there: the beginning of each row of a weight, and its scales.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ahead {
    pub weight: *const u8,
    pub scales: *const u8,
    pub stride: i64,
    pub rows: u32,
    pub bytes: u32,
    pub scale_bytes: u32,
    pub blocks: u32,
}

/// An activation that a linear quantizes, and the weight that it multiplies then.
#[repr(C)]
pub struct AheadArguments {
    pub header: Header,
    pub matrix: Matrix,
    pub ahead: Ahead,
}

/// Values of the rule.
pub const COMPUTE: u32 = 0;
pub const GIVEN: u32 = 1;
pub const SCALES_ONLY: u32 = 2;

const _: () = {
    assert!(size_of::<Matrix>() == 112 && size_of::<Header>() == 40);
    assert!(size_of::<Arguments<FEW>>() == 40 + FEW * 112 && size_of::<DequantizeArguments>() == 120);
    assert!(size_of::<FusedArguments>() == 184 && size_of::<AheadArguments>() == 192);
};
