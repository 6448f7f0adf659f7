//! The grid of 128x128 blocks over a weight, and the sizes that follow from it.

use crate::error::{Result, ensure};

/// Rows and columns of a block, and columns of a group.
pub const BLOCK: usize = 128;
/// Groups whose exponents share an int32 in the packed format.
pub const PACKED: usize = 4;

/// How rows are cut into bands that share a scale in each group of columns: block rows of a weight, single rows of an
/// activation. Each part of a merged weight begins a grid of its own.
#[derive(Clone, Copy, Debug)]
pub struct RowGrid<'a> {
    rows: usize,
    /// Rows of a band: [`BLOCK`] or 1.
    height: usize,
    /// Empty means one part of all rows. Entries are >= 0 and add up to `rows`.
    parts: &'a [i64],
}

/// The rows of one band.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    pub begin: usize,
    pub end: usize,
}

/// Some rows of a matrix: all of an activation, a part of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub first: usize,
    pub count: usize,
    /// Bands before them.
    pub bands: usize,
}

impl<'a> RowGrid<'a> {
    /// The grid of an activation: each row is a band.
    pub fn of_activation(rows: usize) -> RowGrid<'static> {
        RowGrid { rows, height: 1, parts: &[] }
    }

    /// The grid of a weight. Checks that the parts add up to its rows.
    pub fn of_weight(rows: usize, parts: &'a [i64]) -> Result<RowGrid<'a>> {
        let mut sum = 0i64;
        for (index, &part) in parts.iter().enumerate() {
            ensure!(part >= 0, InvalidArgument, "part_rows[{index}] is {part}, must be at least 0");
            sum = sum.saturating_add(part);
        }
        ensure!(
            parts.is_empty() || sum as u64 == rows as u64,
            Shape,
            "part_rows adds up to {sum} rows, the weight has N = {rows}"
        );
        Ok(RowGrid { rows, height: BLOCK, parts })
    }

    /// Rows of a band.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Rows of each part.
    fn part_rows(&self) -> impl Iterator<Item = usize> + '_ {
        let whole = self.parts.is_empty().then_some(self.rows);
        whole.into_iter().chain(self.parts.iter().map(|&part| part as usize))
    }

    /// Each part, and where it is.
    pub fn parts(&self) -> impl Iterator<Item = Rows> + '_ {
        let (mut first, mut bands) = (0, 0);
        self.part_rows().map(move |count| {
            let rows = Rows { first, count, bands };
            first += count;
            bands += count.div_ceil(self.height);
            rows
        })
    }

    /// The parts that have rows, merged where one follows another on whole bands: one grid covers them.
    pub fn merged_parts(&self) -> Vec<Rows> {
        let mut merged: Vec<Rows> = Vec::new();
        for part in self.parts().filter(|part| part.count > 0) {
            match merged.last_mut() {
                Some(last) if last.count.is_multiple_of(self.height) => last.count += part.count,
                _ => merged.push(part),
            }
        }
        merged
    }

    /// Number of bands: the rows of the scale tensor.
    pub fn bands(&self) -> usize {
        self.part_rows().map(|part| part.div_ceil(self.height)).sum()
    }

    /// The rows of band `index`.
    pub fn band(&self, index: usize) -> Band {
        let (mut begin, mut left) = (0, index);
        for part in self.part_rows() {
            let bands = part.div_ceil(self.height);
            if left < bands {
                let first = begin + left * self.height;
                return Band { begin: first, end: (first + self.height).min(begin + part) };
            }
            (begin, left) = (begin + part, left - bands);
        }
        unreachable!("band {index} of {}", self.bands())
    }
}

/// Number of 128-column groups in a row of K elements.
pub fn groups(k: usize) -> usize {
    k.div_ceil(BLOCK)
}

/// Number of int32 words in a row of packed exponents.
pub fn packed_words(k: usize) -> usize {
    groups(k).div_ceil(PACKED)
}

/// Rows of a column-major scale tensor with its padding: the next multiple of 4.
pub fn aligned_rows(rows: usize) -> usize {
    rows.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_cuts_at_multiples_of_128() {
        let grid = RowGrid::of_weight(300, &[]).unwrap();
        assert_eq!(grid.bands(), 3);
        assert_eq!(grid.band(2), Band { begin: 256, end: 300 });
    }

    #[test]
    fn each_part_begins_a_grid() {
        let grid = RowGrid::of_weight(576, &[192, 0, 256, 128]).unwrap();
        assert_eq!(grid.bands(), 5);
        let rows: Vec<_> = (0..5).map(|i| (grid.band(i).begin, grid.band(i).end)).collect();
        assert_eq!(rows, [(0, 128), (128, 192), (192, 320), (320, 448), (448, 576)]);
    }

    fn merged(parts: &[i64]) -> Vec<Rows> {
        RowGrid::of_weight(parts.iter().sum::<i64>() as usize, parts).unwrap().merged_parts()
    }

    #[test]
    fn parts_on_whole_blocks_are_one() {
        assert_eq!(merged(&[4096, 1024, 1024]), [Rows { first: 0, count: 6144, bands: 0 }]);
        assert_eq!(merged(&[256, 0, 100]), [Rows { first: 0, count: 356, bands: 0 }]);
    }

    #[test]
    fn a_ragged_part_ends_its_grid() {
        let (first, second) = (Rows { first: 0, count: 192, bands: 0 }, Rows { first: 192, count: 64, bands: 2 });
        assert_eq!(merged(&[192, 64, 128, 8]), [first, second, Rows { first: 256, count: 136, bands: 3 }]);
    }

    #[test]
    fn parts_that_do_not_add_up_are_refused_with_both_numbers() {
        let message = RowGrid::of_weight(256, &[128, 64]).unwrap_err().message;
        assert!(message.contains("192") && message.contains("256"), "{message}");
        assert!(RowGrid::of_weight(0, &[-1, 1]).is_err());
        assert!(RowGrid::of_weight(1, &[i64::MAX, i64::MAX]).is_err());
    }

    #[test]
    fn no_rows_have_no_blocks() {
        assert_eq!(RowGrid::of_weight(0, &[]).unwrap().bands(), 0);
        assert_eq!((groups(0), groups(1), groups(129), packed_words(513), aligned_rows(5)), (0, 1, 2, 2, 8));
    }
}
