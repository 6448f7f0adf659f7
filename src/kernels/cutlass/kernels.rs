//! The kernels of CUTLASS that are compiled ahead of time. The build makes a cubin of each, and the C++ that fills its
//! parameters; the library chooses.

/// Which operand CUTLASS calls A, whose part of a tile has 128 rows or 256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// The activation.
    Plain,
    /// The weight: a tile may then have few rows of y.
    Swapped,
}

/// What two groups of 128 threads do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Groups {
    /// They share a tile.
    Cooperative,
    /// Each has tiles of its own; one writes while the other multiplies.
    Pingpong,
}

/// The type of y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Bf16,
    F16,
    F32,
}

/// One instantiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Compute capability times ten. Only 90 has been run.
    pub architecture: u32,
    pub operands: Operands,
    pub groups: Groups,
    /// Of y, in a tile.
    pub rows: u32,
    pub columns: u32,
    /// Tiles of rows that share a part of the weight, and tiles of columns that share a part of the activation.
    pub cluster: [u32; 2],
    pub output: Output,
    /// Bytes that the compiler may spill: what it was seen to spill.
    pub spill: u32,
}

#[allow(dead_code)] // the build uses some, the library others
impl Gemm {
    pub fn name(&self) -> String {
        let operands = if self.operands == Operands::Swapped { "s" } else { "" };
        let groups = if self.groups == Groups::Pingpong { "p" } else { "" };
        let cluster = match self.cluster {
            [1, 1] => String::new(),
            [rows, columns] => format!("_{rows}x{columns}"),
        };
        let output = match self.output {
            Output::Bf16 => "",
            Output::F16 => "_f16",
            Output::F32 => "_f32",
        };
        let architecture = match self.architecture {
            90 => String::new(),
            other => format!("_sm{other}"),
        };
        format!("{}x{}{operands}{groups}{cluster}{output}{architecture}", self.rows, self.columns)
    }
}

const fn plain(rows: u32, columns: u32, cluster: [u32; 2]) -> Gemm {
    let (operands, groups, output) = (Operands::Plain, Groups::Cooperative, Output::Bf16);
    Gemm { architecture: 90, operands, groups, rows, columns, cluster, output, spill: 0 }
}

const fn swapped(rows: u32, columns: u32, cluster: [u32; 2]) -> Gemm {
    Gemm { operands: Operands::Swapped, ..plain(rows, columns, cluster) }
}

const fn pingpong(gemm: Gemm) -> Gemm {
    Gemm { groups: Groups::Pingpong, ..gemm }
}

const fn output(output: Output, gemm: Gemm) -> Gemm {
    Gemm { output, ..gemm }
}

const fn architecture(architecture: u32, gemm: Gemm) -> Gemm {
    Gemm { architecture, ..gemm }
}

/// All of them.
pub const GEMMS: &[Gemm] = &[
    swapped(16, 128, [1, 1]),
    swapped(32, 128, [1, 1]),
    swapped(32, 128, [2, 1]),
    swapped(64, 128, [1, 1]),
    swapped(64, 128, [2, 1]),
    pingpong(swapped(64, 128, [1, 1])),
    swapped(64, 256, [1, 1]),
    plain(128, 128, [1, 1]),
    plain(128, 128, [1, 2]),
    plain(128, 128, [2, 1]),
    plain(256, 128, [1, 2]),
    plain(256, 128, [2, 1]),
    output(Output::F16, swapped(32, 128, [1, 1])),
    output(Output::F16, plain(128, 128, [1, 2])),
    output(Output::F32, swapped(32, 128, [1, 1])),
    output(Output::F32, plain(128, 128, [1, 2])),
    architecture(100, plain(128, 128, [1, 1])),
    architecture(120, plain(128, 128, [1, 1])),
];
