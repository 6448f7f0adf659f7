//! The structs of `fingerprint_arguments.cuh`. Both assert the sizes, so a field that only one side has fails the build.

use std::ffi::c_void;

use super::MANY;

/// A part of a matrix whose blocks are hashed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HashedMatrix {
    pub codes: *const u8,
    pub scales: *const c_void,
    pub sum: *mut c_void,
    pub name_low: u64,
    pub name_high: u64,
    pub codes_stride: i64,
    pub codes_expert: i64,
    pub scale_row: i64,
    pub scale_column: i64,
    pub scale_expert: i64,
    pub rows: u32,
    pub columns: u32,
    pub experts: u32,
    pub first_tile: u32,
    pub expert: u32,
    pub block_row: u32,
    pub block_column: u32,
    pub scale_kind: u32,
    pub aligned: u32,
    pub offsets: u32,
}

impl HashedMatrix {
    /// Fills the unused places of an array.
    pub const NONE: HashedMatrix = HashedMatrix {
        codes: std::ptr::null(),
        scales: std::ptr::null(),
        sum: std::ptr::null_mut(),
        name_low: 0,
        name_high: 0,
        codes_stride: 0,
        codes_expert: 0,
        scale_row: 0,
        scale_column: 0,
        scale_expert: 0,
        rows: 0,
        columns: 0,
        experts: 0,
        first_tile: 0,
        expert: 0,
        block_row: 0,
        block_column: 0,
        scale_kind: 0,
        aligned: 0,
        offsets: 0,
    };
}

/// What a launch passes.
#[repr(C)]
pub struct FingerprintArguments {
    pub count: u32,
    pub tiles: u32,
    pub matrices: [HashedMatrix; MANY],
}

/// Values of the scale kind.
pub const NO_SCALE: u32 = 0;
pub const FLOAT_SCALE: u32 = 1;
pub const PACKED_SCALE: u32 = 2;

const _: () = assert!(size_of::<HashedMatrix>() == 120 && size_of::<FingerprintArguments>() == 8 + MANY * 120);
