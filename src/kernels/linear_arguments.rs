//! The structs of `linear_arguments.cuh`, and the grids of the kernels that take them. Both sides assert the sizes.

use std::ffi::c_void;

/// Values of a dtype.
pub const BF16: u32 = 0;
pub const F16: u32 = 1;
pub const F32: u32 = 2;

/// One value for each column of y.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bias {
    /// Or null, for the product alone.
    pub values: *const c_void,
    pub dtype: u32,
    pub reserved: u32,
}

/// Codes and scales: x, or a part of the weight. Any stride, any alignment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PlainOperand {
    pub codes: *const u8,
    pub scales: *const c_void,
    pub stride: i64,
    /// Strides of the scales, between rows and between columns. A row of float scales belongs to a row of x or to 128
    /// rows of the weight; a row of packed exponents belongs to one row of either.
    pub scale_row: i64,
    pub scale_column: i64,
    pub rows: u32,
    /// Whether the scales are exponents.
    pub packed: u32,
}

/// What `plain_{dtype of y}_few` and `_many` take.
#[repr(C)]
pub struct PlainArguments {
    pub activation: PlainOperand,
    pub weight: PlainOperand,
    pub bias: Bias,
    pub output: *mut c_void,
    pub output_stride: i64,
    /// K, at least 1.
    pub columns: u32,
    pub reserved: u32,
}

/// What `add_bias_{dtype of y}` takes. There is a bias.
#[repr(C)]
pub struct BiasArguments {
    pub bias: Bias,
    pub output: *mut c_void,
    pub stride: i64,
    pub rows: u32,
    pub columns: u32,
}

/// What `copy_scales` takes. Elements of the target beyond the source, up to the padded extents, become zero.
#[repr(C)]
pub struct CopyArguments {
    pub source: *const u32,
    pub target: *mut u32,
    pub source_row: i64,
    pub source_column: i64,
    pub target_row: i64,
    pub target_column: i64,
    pub rows: u32,
    pub columns: u32,
    pub padded_rows: u32,
    pub padded_columns: u32,
}

const _: () = {
    assert!(size_of::<Bias>() == 16 && size_of::<PlainOperand>() == 48);
    assert!(size_of::<PlainArguments>() == 136 && size_of::<BiasArguments>() == 40);
    assert!(size_of::<CopyArguments>() == 64);
};

/// Thread blocks, which may be more than a grid has, and threads of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    pub blocks: usize,
    pub threads: u32,
}

/// The two kernels of `plain.cu`. Both give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainSize {
    Few,
    Many,
}

/// Rows and columns of y that a thread block of each takes, and its threads.
const FEW_TILE: usize = 16;
const FEW_THREADS: u32 = 256;
const MANY_TILE: usize = 64;
const MANY_THREADS: u32 = 128;
/// Up to these rows of x, `few` reads the weight once, or twice where the tiles of `many` would leave processors idle.
const FEWEST_ROWS: usize = FEW_TILE;
const FEW_ROWS: usize = 2 * FEW_TILE;

/// Which kernel takes y[m, n], and its grid. None of m and n is 0.
pub fn plain_grid(m: usize, n: usize, processors: usize) -> (PlainSize, Grid) {
    let tiles = |side: usize| m.div_ceil(side) * n.div_ceil(side);
    if m <= FEWEST_ROWS || (m <= FEW_ROWS && tiles(MANY_TILE) < processors) {
        (PlainSize::Few, Grid { blocks: tiles(FEW_TILE), threads: FEW_THREADS })
    } else {
        (PlainSize::Many, Grid { blocks: tiles(MANY_TILE), threads: MANY_THREADS })
    }
}

/// Threads of a block that adds a bias; rows and columns that a thread takes.
const BIAS_THREADS: u32 = 128;
const BIAS_ROWS: usize = 4;
const BIAS_COLUMNS: usize = 8;

/// The grid of `add_bias` over y[m, n].
pub fn bias_grid(m: usize, n: usize) -> Grid {
    let columns_of_block = BIAS_THREADS as usize * BIAS_COLUMNS;
    Grid { blocks: m.div_ceil(BIAS_ROWS) * n.div_ceil(columns_of_block), threads: BIAS_THREADS }
}

/// Rows and columns that a thread block copies, and its threads.
const COPY_SIDE: usize = 32;
const COPY_THREADS: u32 = 256;

/// The grid of `copy_scales` to a target of these padded extents.
pub fn copy_grid(padded_rows: usize, padded_columns: usize) -> Grid {
    Grid { blocks: padded_rows.div_ceil(COPY_SIDE) * padded_columns.div_ceil(COPY_SIDE), threads: COPY_THREADS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_have_small_tiles() {
        assert_eq!(plain_grid(1, 1, 132), (PlainSize::Few, Grid { blocks: 1, threads: 256 }));
        assert_eq!(plain_grid(16, 4096, 132), (PlainSize::Few, Grid { blocks: 256, threads: 256 }));
        assert_eq!(plain_grid(16, 28672, 132).0, PlainSize::Few);
        assert_eq!(plain_grid(17, 4096, 132), (PlainSize::Few, Grid { blocks: 512, threads: 256 }));
    }

    #[test]
    fn many_rows_have_large_tiles() {
        assert_eq!(plain_grid(32, 28672, 132), (PlainSize::Many, Grid { blocks: 448, threads: 128 }));
        assert_eq!(plain_grid(33, 65, 132), (PlainSize::Many, Grid { blocks: 2, threads: 128 }));
        assert_eq!(plain_grid(8192, 28672, 132).1.blocks, 128 * 448);
    }

    #[test]
    fn passes_cover_every_element() {
        assert_eq!(bias_grid(1, 1), Grid { blocks: 1, threads: 128 });
        assert_eq!(bias_grid(5, 1025), Grid { blocks: 4, threads: 128 });
        assert_eq!(copy_grid(33, 32), Grid { blocks: 2, threads: 256 });
    }
}
