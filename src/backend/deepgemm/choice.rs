//! Which tile runs how many rows: what was measured where it was, and a model of the kernel elsewhere.

use crate::kernels::{DEPTH, PROCESSORS, TILES, Tile};

use super::table::MEASURED;

/// Tiles by the number of rows, in steps.
pub struct Choices {
    /// Up to so many rows, this tile. The last one holds for all above.
    steps: Vec<(usize, usize)>,
}

impl Choices {
    /// One tile for every number of rows.
    pub fn only(tile: usize) -> Choices {
        Choices { steps: vec![(usize::MAX, tile)] }
    }

    /// The tiles of a part of N = `n` and K = `k`, for up to `max_m` rows.
    pub fn new(max_m: usize, n: usize, k: usize) -> Choices {
        let mut steps: Vec<(usize, usize)> = Vec::new();
        let mut m = 0;
        while m < max_m.max(1) {
            m = next_step(m);
            let tile = choose(m, n, k);
            match steps.last_mut() {
                Some(last) if last.1 == tile => last.0 = m,
                _ => steps.push((m, tile)),
            }
        }
        Choices { steps }
    }

    pub fn tile(&self, m: usize) -> usize {
        let at = self.steps.partition_point(|&(up_to, _)| up_to < m);
        self.steps[at.min(self.steps.len() - 1)].1
    }

    pub fn tiles(&self) -> impl Iterator<Item = usize> + '_ {
        self.steps.iter().map(|&(_, tile)| tile)
    }
}

/// Rows are told apart in steps that grow with them, so that a plan for any number of rows has few.
fn next_step(m: usize) -> usize {
    let step = match m {
        0 => 1,
        1 => 15,
        2..128 => 16,
        128..1024 => 64,
        1024..4096 => 256,
        4096..16384 => 1024,
        _ => return usize::MAX,
    };
    m + step
}

/// Rows that stand for all above the last step.
const MANY_ROWS: usize = 32768;

fn choose(m: usize, n: usize, k: usize) -> usize {
    let m = m.min(MANY_ROWS);
    measured(m, n, k).unwrap_or_else(|| modeled(m, n, k))
}

/// The measured tile of this weight for the next number of rows that was measured, unless that is far.
fn measured(m: usize, n: usize, k: usize) -> Option<usize> {
    let (_, _, rows) = MEASURED.iter().find(|(measured_n, measured_k, _)| (*measured_n, *measured_k) == (n, k))?;
    let (measured_m, name) = rows.iter().find(|(measured_m, _)| m <= *measured_m)?;
    let near = m <= 16 || 4 * m > 3 * measured_m;
    near.then(|| TILES.iter().position(|tile| tile.name() == *name)).flatten()
}

/// The tile that the model has as the fastest. One of more rows than there are reads what nobody needs.
fn modeled(m: usize, n: usize, k: usize) -> usize {
    let rows = m.next_power_of_two().max(16);
    let candidates = TILES.iter().enumerate().filter(|(_, tile)| tile.rows as usize <= rows);
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

/// The tile that `FP8RT_DEEPGEMM_TILE` names, for measuring.
pub fn forced() -> Result<Option<usize>, String> {
    let Ok(name) = std::env::var("FP8RT_DEEPGEMM_TILE") else { return Ok(None) };
    if name.is_empty() {
        return Ok(None);
    }
    match TILES.iter().position(|tile| tile.name() == name) {
        Some(tile) => Ok(Some(tile)),
        None => Err(format!("FP8RT_DEEPGEMM_TILE names \"{name}\", which is not among the tiles of this build")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measured_tile_is_in_the_build() {
        for (n, k, rows) in MEASURED {
            for (m, name) in *rows {
                assert!(TILES.iter().any(|tile| tile.name() == *name), "N = {n}, K = {k}, M = {m}: no tile {name}");
            }
        }
    }

    #[test]
    fn a_measured_shape_has_its_tile_and_its_neighbors_too() {
        let (n, k, rows) = MEASURED[0];
        let choices = Choices::new(8192, n, k);
        for (m, name) in rows {
            assert_eq!(TILES[choices.tile(*m)].name(), *name, "M = {m}");
        }
        assert_eq!(choices.tile(15), choices.tile(16));
    }

    #[test]
    fn a_choice_holds_for_any_number_of_rows() {
        for (n, k) in [(8, 128), (100_000, 32_768), (576, 7168)] {
            let choices = Choices::new(usize::MAX, n, k);
            for m in [1, 2, 16, 17, 100, 1000, 100_000, 1 << 30, usize::MAX] {
                assert!(choices.tile(m) < TILES.len());
            }
            assert!(choices.steps.len() < 80, "{} steps", choices.steps.len());
        }
    }

    #[test]
    fn few_rows_have_tiles_of_few_rows_and_many_have_large_ones() {
        assert_eq!(TILES[modeled(1, 3072, 3072)].rows, 16);
        assert_eq!(TILES[modeled(30, 3072, 3072)].rows, 32);
        assert!(TILES[modeled(8192, 12_800, 5120)].rows >= 128);
    }

    #[test]
    fn plans_of_fewer_rows_make_the_same_choices() {
        let (few, many) = (Choices::new(100, 5120, 5120), Choices::new(8192, 5120, 5120));
        assert!((1..=100).all(|m| few.tile(m) == many.tile(m)));
    }
}
