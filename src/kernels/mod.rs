//! The kernels that nvcc compiled at build time, and the structs that are passed to them.

mod arguments;
#[cfg(feature = "cutlass")]
pub mod cutlass;
mod fingerprint_arguments;
mod linear_arguments;
mod measure_arguments;
mod tiles;

use std::ffi::CStr;

use crate::error::{Result, fail};

pub use arguments::*;
pub use fingerprint_arguments::*;
pub use linear_arguments::*;
pub use measure_arguments::*;
pub use tiles::{Cluster, DEPTH, MOST_K, PROCESSORS, TILES, Tile};

/// The machine code of one source file for one architecture, compressed.
pub struct Cubin {
    /// Compute capability times ten.
    pub architecture: u32,
    pub code: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// Machine code as the driver takes it.
pub fn expand(compressed: &[u8]) -> Result<Vec<u8>> {
    match miniz_oxide::inflate::decompress_to_vec_zlib(compressed) {
        Ok(code) => Ok(code),
        Err(error) => fail!(Internal, "embedded code does not expand: {error}"),
    }
}

/// A source file of kernels, loaded as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    Blocks,
    Groups,
    Dequantize,
    Fused,
    Plain,
    Passes,
    Fingerprint,
    Measure,
}

/// All of them.
pub const MODULES: [Module; 8] = [
    Module::Blocks,
    Module::Groups,
    Module::Dequantize,
    Module::Fused,
    Module::Plain,
    Module::Passes,
    Module::Fingerprint,
    Module::Measure,
];

impl Module {
    pub fn name(self) -> &'static str {
        match self {
            Module::Blocks => "blocks",
            Module::Groups => "groups",
            Module::Dequantize => "dequantize",
            Module::Fused => "fused",
            Module::Plain => "plain",
            Module::Passes => "passes",
            Module::Fingerprint => "fingerprint",
            Module::Measure => "measure",
        }
    }

    /// The newest code that a device of this capability runs: same major version, minor version not above. An
    /// architecture with an "a" runs on its own capability alone.
    pub fn cubin(self, capability: u32) -> Option<&'static Cubin> {
        let cubins = match self {
            Module::Blocks => BLOCKS,
            Module::Groups => GROUPS,
            Module::Dequantize => DEQUANTIZE,
            Module::Fused => FUSED,
            Module::Plain => PLAIN,
            Module::Passes => PASSES,
            Module::Fingerprint => FINGERPRINT,
            Module::Measure => MEASURE,
        };
        let runs = |cubin: &&Cubin| {
            let same_major = cubin.architecture / 10 == capability / 10;
            same_major && cubin.architecture <= capability && (cubin.architecture != 90 || capability == 90)
        };
        cubins.iter().filter(runs).max_by_key(|cubin| cubin.architecture)
    }
}

/// A kernel and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub module: Module,
    pub name: &'static CStr,
}

/// The three source types, by the place of their kernels.
macro_rules! by_dtype {
    ($module:ident, $prefix:expr, $suffix:literal) => {
        [
            Kernel { module: Module::$module, name: c_name(concat!($prefix, "bf16", $suffix, "\0")) },
            Kernel { module: Module::$module, name: c_name(concat!($prefix, "f16", $suffix, "\0")) },
            Kernel { module: Module::$module, name: c_name(concat!($prefix, "f32", $suffix, "\0")) },
        ]
    };
}

const fn c_name(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name ends with a zero"),
    }
}

pub const BLOCKS_FEW: [Kernel; 3] = by_dtype!(Blocks, "quantize_blocks_", "_few");
pub const BLOCKS_MANY: [Kernel; 3] = by_dtype!(Blocks, "quantize_blocks_", "_many");
pub const BLOCKS_TABLE: [Kernel; 3] = by_dtype!(Blocks, "quantize_blocks_", "_table");
pub const BLOCKS_GENERAL: [Kernel; 3] = by_dtype!(Blocks, "quantize_blocks_", "_general");
pub const BLOCKS_GENERAL_TABLE: [Kernel; 3] = by_dtype!(Blocks, "quantize_blocks_", "_general_table");
pub const GROUPS_SMALL: [Kernel; 3] = by_dtype!(Groups, "quantize_groups_", "_small");
pub const GROUPS_MEDIUM: [Kernel; 3] = by_dtype!(Groups, "quantize_groups_", "_medium");
pub const GROUPS_LARGE: [Kernel; 3] = by_dtype!(Groups, "quantize_groups_", "_large");
pub const GROUPS_GENERAL: [Kernel; 3] = by_dtype!(Groups, "quantize_groups_", "_general");
pub const GROUPS_AHEAD: [Kernel; 3] = by_dtype!(Groups, "quantize_groups_", "_ahead");
pub const DEQUANTIZE_ROWS: [Kernel; 3] = by_dtype!(Dequantize, "dequantize_", "");

pub const PLAIN_FEW: [Kernel; 3] = by_dtype!(Plain, "plain_", "_few");
pub const PLAIN_MANY: [Kernel; 3] = by_dtype!(Plain, "plain_", "_many");
pub const MEASURE_BLOCKS: [Kernel; 3] = by_dtype!(Measure, "measure_", "");
pub const ADD_BIAS: [Kernel; 3] = by_dtype!(Passes, "add_bias_", "");
pub const FINGERPRINT_BLOCKS: Kernel = Kernel { module: Module::Fingerprint, name: c"fingerprint_blocks" };
pub const COPY_SCALES: Kernel = Kernel { module: Module::Passes, name: c"copy_scales" };

/// Kernels of a producer: values, codes, codes with health.
macro_rules! by_target {
    ($prefix:literal, $suffix:literal) => {
        [
            by_dtype!(Fused, concat!($prefix, "_"), $suffix),
            by_dtype!(Fused, concat!($prefix, "_quantize_"), $suffix),
            by_dtype!(Fused, concat!($prefix, "_examine_"), $suffix),
        ]
    };
}

pub const SILU_AND_MUL_SMALL: [[Kernel; 3]; 3] = by_target!("silu_and_mul", "_small");
pub const SILU_AND_MUL_LARGE: [[Kernel; 3]; 3] = by_target!("silu_and_mul", "_large");
pub const RMS_NORM_TWO: [[Kernel; 3]; 3] = by_target!("rms_norm", "_two");
pub const RMS_NORM_FOUR: [[Kernel; 3]; 3] = by_target!("rms_norm", "_four");
pub const RMS_NORM_ANY: [[Kernel; 3]; 3] = by_target!("rms_norm", "_any");

/// Every kernel of a module.
pub fn all_of(module: Module) -> impl Iterator<Item = Kernel> {
    let all = [
        BLOCKS_FEW,
        BLOCKS_MANY,
        BLOCKS_TABLE,
        BLOCKS_GENERAL,
        BLOCKS_GENERAL_TABLE,
        GROUPS_SMALL,
        GROUPS_MEDIUM,
        GROUPS_LARGE,
        GROUPS_GENERAL,
        GROUPS_AHEAD,
        DEQUANTIZE_ROWS,
        PLAIN_FEW,
        PLAIN_MANY,
        ADD_BIAS,
        MEASURE_BLOCKS,
    ];
    let fused = [SILU_AND_MUL_SMALL, SILU_AND_MUL_LARGE, RMS_NORM_TWO, RMS_NORM_FOUR, RMS_NORM_ANY];
    all.into_iter()
        .chain(fused.into_iter().flatten())
        .flatten()
        .chain([COPY_SCALES, FINGERPRINT_BLOCKS])
        .filter(move |kernel| kernel.module == module)
}
