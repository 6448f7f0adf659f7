//! Which tile runs how many rows: what was measured where it was, and a model of the kernel elsewhere.

use crate::kernels::{DEPTH, PROCESSORS, TILES, Tile};

use super::table::MEASURED;
use crate::backend::choices::measured;

/// The tile of a part of N = `n` and K = `k`, for `m` rows.
pub fn choose(m: usize, n: usize, k: usize) -> usize {
    // A tile that was measured for many more rows says little.
    let near = measured(MEASURED, m, n, k).filter(|(measured_m, _)| m <= 16 || 4 * m > 3 * measured_m);
    near.and_then(|(_, name)| position(name)).unwrap_or_else(|| modeled(m, n, k))
}

/// The place of a tile.
pub fn position(name: &str) -> Option<usize> {
    TILES.iter().position(|tile| tile.name() == name)
}

/// The tile that the model has as the fastest. One of more rows than there are reads what nobody needs. Those that are
/// compiled for one weight are the table's alone.
fn modeled(m: usize, n: usize, k: usize) -> usize {
    let rows = m.next_power_of_two().max(16);
    let candidates =
        TILES.iter().enumerate().filter(|(_, tile)| tile.rows as usize <= rows && tile.n == 0 && tile.k == 0);
    let best = candidates.min_by(|a, b| microseconds(a.1, m, n, k).total_cmp(&microseconds(b.1, m, n, k)));
    best.map_or(0, |(index, _)| index)
}

/// What an H100 takes, to a few percent: the longer of what memory needs for the weight and y, and what the waves of tiles
/// need, with a soft corner between.
fn microseconds(tile: &Tile, m: usize, n: usize, k: usize) -> f64 {
    const BYTES: f64 = 2.9e6;
    const CORNER: i32 = 6;
    let output = if m > DEPTH as usize { 2 * m * n } else { 0 };
    let memory = (n as f64 * k as f64 + output as f64) / BYTES;
    let tiles = m.div_ceil(tile.rows as usize) * n.div_ceil(tile.columns as usize);
    let waves = tiles.div_ceil((PROCESSORS * tile.per_processor) as usize) as f64;
    let blocks = k.div_ceil(DEPTH as usize) as f64;
    let multiplying = waves * (blocks * f64::from(tile.block_time) + f64::from(tile.tile_time)) / 1e3;
    (memory.powi(CORNER) + multiplying.powi(CORNER)).powf(1.0 / f64::from(CORNER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measured_tile_is_in_the_build() {
        for (n, k, rows) in MEASURED {
            for (m, name) in *rows {
                assert!(position(name).is_some(), "N = {n}, K = {k}, M = {m}: no tile {name}");
            }
        }
    }

    #[test]
    fn a_measured_shape_has_its_tile() {
        let (n, k, rows) = MEASURED[0];
        for (m, name) in rows {
            assert_eq!(TILES[choose(*m, n, k)].name(), *name, "M = {m}");
        }
        assert_eq!(choose(15, n, k), choose(16, n, k));
    }

    #[test]
    fn few_rows_have_tiles_of_few_rows_and_many_have_large_ones() {
        assert_eq!(TILES[modeled(1, 3072, 3072)].rows, 16);
        assert_eq!(TILES[modeled(30, 3072, 3072)].rows, 32);
        assert!(TILES[modeled(8192, 12_800, 5120)].rows >= 128);
    }

    #[test]
    fn every_shape_has_a_tile() {
        for (n, k) in [(8, 128), (100_000, 32_768), (576, 7168)] {
            for m in [1, 2, 17, 1000, 32_768] {
                assert!(choose(m, n, k) < TILES.len());
            }
        }
    }
}
