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
        format!("{}x{}{operands}{cluster}{output}{architecture}", self.rows, self.columns)
    }
}

const fn plain(rows: u32, columns: u32, cluster: [u32; 2]) -> Gemm {
    let (operands, output) = (Operands::Plain, Output::Bf16);
    Gemm { architecture: 90, operands, rows, columns, cluster, output, spill: 0 }
}

const fn swapped(rows: u32, columns: u32, cluster: [u32; 2]) -> Gemm {
    Gemm { operands: Operands::Swapped, ..plain(rows, columns, cluster) }
}

const fn output(output: Output, gemm: Gemm) -> Gemm {
    Gemm { output, ..gemm }
}

const fn architecture(architecture: u32, gemm: Gemm) -> Gemm {
    Gemm { architecture, ..gemm }
}

/// All of them: on Hopper those that were the fastest for some shape of the table of shapes, or have the only y in fp16 or
/// fp32. A swapped tile of 256 columns was wrong in every second 128 of them.
pub const GEMMS: &[Gemm] = &[
    swapped(16, 128, [1, 1]),
    swapped(32, 128, [1, 1]),
    swapped(32, 128, [2, 1]),
    swapped(64, 128, [1, 1]),
    swapped(64, 128, [2, 1]),
    plain(128, 128, [1, 1]),
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
