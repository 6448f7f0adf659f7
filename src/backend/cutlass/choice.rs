//! Which kernel multiplies how many rows: what was measured where it was, and a model of the kernels elsewhere.

use crate::backend::choices::measured;
use crate::kernels::cutlass::{GEMMS, Gemm, Operands, Output};

use super::table::MEASURED;

/// The largest number of rows that was measured, which stands for all above.
const MOST_MEASURED: usize = 8192;

/// The kernel of [`GEMMS`] for y of `m` rows and `n` columns, on a device of this capability and so many
/// multiprocessors. None: there is none for it.
pub fn choose(capability: u32, processors: u32, output: Output, [m, n, k]: [usize; 3]) -> Option<usize> {
    let known = capability == 90 && output == Output::Bf16;
    let row = if known { measured(MEASURED, m.min(MOST_MEASURED), n, k) } else { None };
    row.and_then(|(_, name)| position(name)).or_else(|| {
        let fitting = GEMMS.iter().enumerate().filter(|(_, gemm)| fits(gemm, capability, output, n, k));
        let times = fitting.map(|(index, gemm)| (index, cycles(gemm, f64::from(processors), m, n, k)));
        times.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(index, _)| index)
    })
}

fn fits(gemm: &Gemm, capability: u32, output: Output, n: usize, k: usize) -> bool {
    // CUTLASS's kernel for 120 reads whole blocks.
    let whole = n.is_multiple_of(128) && k.is_multiple_of(128);
    gemm.architecture == capability && gemm.output == output && (capability != 120 || whole)
}

/// The place of a kernel.
pub fn position(name: &str) -> Option<usize> {
    GEMMS.iter().position(|gemm| gemm.name() == name)
}

/// Roughly how long it takes. Tiles run in waves; where the last has few, each gets more of the memory. Each step of
/// 128 along K takes as long as its loads, its products, or the way from one barrier to the next, whichever is longest.
fn cycles(gemm: &Gemm, processors: f64, m: usize, n: usize, k: usize) -> f64 {
    /// Bytes that all multiprocessors together, and one alone, get in a cycle.
    const ALL_LOAD: f64 = 2600.0;
    const ONE_LOADS: f64 = 48.0;
    /// Products of two codes in a cycle of one multiprocessor, with the scaling of their sums between.
    const PRODUCTS: f64 = 2700.0;
    const STEP: f64 = 260.0;
    /// A tile's way in and out.
    const ENDS: f64 = 1500.0;
    let [cluster_rows, cluster_columns] = gemm.cluster;
    let (row_tiles, column_tiles) = (m.div_ceil(gemm.rows as usize), n.div_ceil(gemm.columns as usize));
    let whole = |tiles: usize, cluster: u32| tiles.next_multiple_of(cluster as usize) as f64;
    let tiles = whole(row_tiles, cluster_rows) * whole(column_tiles, cluster_columns);
    // Tiles beyond y share nothing.
    let sharing = |tiles: usize, cluster: u32| tiles.min(cluster as usize) as f64;
    let (rows, columns) = (f64::from(gemm.rows), f64::from(gemm.columns));
    let bytes = 128.0 * (rows / sharing(column_tiles, cluster_columns) + columns / sharing(row_tiles, cluster_rows));
    // The scales of a swapped tile are as many as its rows, in every thread.
    let work = if gemm.operands == Operands::Swapped { 1.1 } else { 1.0 };
    let products = work * 128.0 * rows * columns / PRODUCTS;
    let wave = |tiles: f64| {
        let loads = bytes / (ALL_LOAD / tiles).min(ONE_LOADS);
        k.div_ceil(128) as f64 * loads.max(products).max(STEP) + ENDS
    };
    let (full, rest) = ((tiles / processors).floor(), tiles % processors);
    full * wave(processors) + if rest > 0.0 { wave(rest) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(output: Output, shape: [usize; 3]) -> String {
        GEMMS[choose(90, 132, output, shape).expect("a kernel")].name()
    }

    #[test]
    fn few_rows_take_few_and_many_take_many() {
        for n in [4096, 6144, 28672] {
            assert!(GEMMS[choose(90, 132, Output::Bf16, [1, n, 4096]).expect("a kernel")].rows <= 32);
            assert!(GEMMS[choose(90, 132, Output::Bf16, [8192, n, 4096]).expect("a kernel")].rows >= 128);
        }
    }

    #[test]
    fn every_output_has_a_kernel_for_every_shape() {
        for output in [Output::Bf16, Output::F16, Output::F32] {
            for shape in [[1, 1, 1], [3, 72, 100], [77, 4096, 14336], [1 << 20, 57344, 8192]] {
                let chosen = GEMMS[choose(90, 132, output, shape).expect("a kernel")];
                assert_eq!((chosen.output, chosen.architecture), (output, 90), "{}", name(output, shape));
            }
        }
    }

    #[test]
    fn other_architectures_have_their_own() {
        let chosen = choose(100, 148, Output::Bf16, [16, 4096, 4096]).expect("a kernel");
        assert_eq!(GEMMS[chosen].architecture, 100);
        assert!(choose(120, 188, Output::Bf16, [16, 4096, 4096]).is_some());
        assert!(choose(120, 188, Output::Bf16, [16, 4096, 4100]).is_none());
        assert!(choose(100, 148, Output::F32, [16, 4096, 4096]).is_none());
        assert!(choose(89, 142, Output::Bf16, [16, 4096, 4096]).is_none());
    }

    #[test]
    fn every_measured_kernel_is_in_the_build() {
        for (n, k, rows) in MEASURED {
            assert_eq!(rows.last().map(|row| row.0), Some(MOST_MEASURED), "N = {n}, K = {k}");
            for (m, name) in *rows {
                assert!(position(name).is_some(), "N = {n}, K = {k}, M = {m}: no kernel {name}");
            }
        }
    }
}
