//! What each rank of a tensor-parallel group holds of a weight, and the blocks that follow from it.
//!
//! A shard is quantized from its own rows and columns, with its own edge blocks. Its scales are a slice of the whole's only
//! where the cuts lie on blocks.

use crate::blocks::{BLOCK, groups};
use crate::error::{Result, ensure};

/// Which dimension is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Every rank holds the whole.
    None,
    /// Out features: q, k, v, gate, up.
    Rows,
    /// In features: o, down.
    Columns,
}

/// A weight, and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut<'a> {
    /// Rows of each part of the whole weight. At least one part.
    pub part_rows: &'a [i64],
    /// Heads of each part: a head is never cut, and a part with fewer heads than ranks is held by several. 0, or an empty
    /// list: rows are cut anywhere.
    pub part_heads: &'a [i64],
    pub columns: usize,
    pub split: Split,
    pub ranks: usize,
}

/// What a rank holds of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First row in the part of the whole weight.
    pub first_row: usize,
    pub rows: usize,
    /// First row in the rank's weight.
    pub local_first_row: usize,
    /// First row of the rank's scales.
    pub first_scale_row: usize,
    /// Ranks that hold the same rows.
    pub replicas: usize,
    /// The rows and columns begin and end on blocks of the whole part, or at its ends.
    pub on_blocks: bool,
}

/// What a rank holds of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub parts: Vec<Part>,
    pub rows: usize,
    pub first_column: usize,
    pub columns: usize,
    /// Rows and columns of the scales, in the float formats.
    pub scale_rows: usize,
    pub scale_columns: usize,
    pub on_blocks: bool,
}

fn on_blocks(first: usize, count: usize, whole: usize) -> bool {
    let end = first + count;
    first.is_multiple_of(BLOCK) && (end.is_multiple_of(BLOCK) || end == whole)
}

impl Cut<'_> {
    /// What `rank` holds.
    pub fn shard(&self, rank: usize) -> Result<Shard> {
        let ranks = self.ranks;
        ensure!(ranks > 0, InvalidArgument, "ranks is 0, must be at least 1");
        ensure!(rank < ranks, InvalidArgument, "rank is {rank}, there are {ranks} ranks");
        ensure!(!self.part_rows.is_empty(), InvalidArgument, "num_parts is 0, must be at least 1");
        let (first_column, columns) = self.columns(rank)?;
        let columns_on_blocks = on_blocks(first_column, columns, self.columns);
        let (mut parts, mut rows, mut scale_rows) = (Vec::new(), 0usize, 0);
        for index in 0..self.part_rows.len() {
            let (whole, first_row, count, replicas) = self.rows(index, rank)?;
            let on_blocks = columns_on_blocks && on_blocks(first_row, count, whole);
            let part = Part {
                first_row,
                rows: count,
                local_first_row: rows,
                first_scale_row: scale_rows,
                replicas,
                on_blocks,
            };
            ensure!(rows.checked_add(count).is_some(), Shape, "part_rows adds up to more than 2^64 rows");
            rows += count;
            scale_rows += count.div_ceil(BLOCK);
            parts.push(part);
        }
        let on_blocks = parts.iter().all(|part| part.on_blocks);
        Ok(Shard { parts, rows, first_column, columns, scale_rows, scale_columns: groups(columns), on_blocks })
    }

    /// First column and their count.
    fn columns(&self, rank: usize) -> Result<(usize, usize)> {
        let (columns, ranks) = (self.columns, self.ranks);
        if self.split != Split::Columns {
            return Ok((0, columns));
        }
        ensure!(columns.is_multiple_of(ranks), Shape, "K = {columns} is not a multiple of ranks = {ranks}");
        Ok((rank * (columns / ranks), columns / ranks))
    }

    /// Rows of a part, the first and the count of those that the rank holds, and how many ranks hold them.
    fn rows(&self, index: usize, rank: usize) -> Result<(usize, usize, usize, usize)> {
        let (given, ranks) = (self.part_rows[index], self.ranks);
        ensure!(given >= 0, InvalidArgument, "part_rows[{index}] is {given}, must be at least 0");
        let rows = given as usize;
        if self.split != Split::Rows {
            return Ok((rows, 0, rows, ranks));
        }
        let heads = self.part_heads.get(index).copied().unwrap_or(0);
        ensure!(heads >= 0, InvalidArgument, "part_heads[{index}] is {heads}, must be at least 0");
        let heads = heads as usize;
        if heads == 0 {
            ensure!(
                rows.is_multiple_of(ranks),
                Shape,
                "part_rows[{index}] = {rows} is not a multiple of ranks = {ranks}"
            );
            return Ok((rows, rank * (rows / ranks), rows / ranks, 1));
        }
        ensure!(
            rows.is_multiple_of(heads),
            Shape,
            "part_rows[{index}] = {rows} is not a multiple of part_heads[{index}] = {heads}"
        );
        let fits = if heads >= ranks { heads.is_multiple_of(ranks) } else { ranks.is_multiple_of(heads) };
        ensure!(fits, Shape, "part_heads[{index}] = {heads} and ranks = {ranks}: neither is a multiple of the other");
        let replicas = (ranks / heads).max(1);
        let count = (heads / ranks).max(1) * (rows / heads);
        Ok((rows, rank / replicas * count, count, replicas))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut<'a>(part_rows: &'a [i64], part_heads: &'a [i64], split: Split, ranks: usize) -> Cut<'a> {
        Cut { part_rows, part_heads, columns: 4096, split, ranks }
    }

    #[test]
    fn heads_are_shared_where_there_are_fewer_than_ranks() {
        // Qwen2.5-7B: 28 heads and 4 key heads of 128, on 4 ranks and on 7... 28 / 4.
        let shard = cut(&[3584, 512, 512], &[28, 4, 4], Split::Rows, 4).shard(3).unwrap();
        let rows: Vec<_> = shard.parts.iter().map(|part| (part.first_row, part.rows, part.replicas)).collect();
        assert_eq!(rows, [(2688, 896, 1), (384, 128, 1), (384, 128, 1)]);
        assert!(shard.on_blocks);
        // Llama-3.1-8B's 8 key heads on 16 ranks: ranks 10 and 11 hold head 5.
        for rank in [10, 11] {
            let shard = cut(&[4096, 1024, 1024], &[32, 8, 8], Split::Rows, 16).shard(rank).unwrap();
            assert_eq!((shard.parts[1].first_row, shard.parts[1].rows, shard.parts[1].replicas), (640, 128, 2));
            assert_eq!(shard.parts[0].first_row, rank * 256);
        }
    }

    #[test]
    fn shards_cover_each_part_once() {
        for ranks in [1, 2, 4, 8] {
            let whole = cut(&[4096, 1024, 1024], &[32, 8, 8], Split::Rows, ranks);
            for part in 0..3 {
                let mut next = 0;
                for rank in 0..ranks {
                    let shard = whole.shard(rank).unwrap();
                    assert_eq!(shard.parts[part].first_row, next);
                    next += shard.parts[part].rows;
                }
                assert_eq!(next as i64, whole.part_rows[part]);
            }
        }
    }

    #[test]
    fn cuts_off_blocks_are_said() {
        // The intermediate size of Qwen2.5-7B, 18944, on 4 ranks: 4736 = 37 * 128; on 8: 2368 = 18.5 * 128.
        let at = |split, ranks, rank| {
            let cut = Cut { part_rows: &[18944, 18944], part_heads: &[], columns: 18944, split, ranks };
            cut.shard(rank).unwrap()
        };
        assert!(at(Split::Rows, 4, 1).on_blocks && at(Split::Columns, 4, 3).on_blocks);
        let shard = at(Split::Rows, 8, 1);
        assert!(!shard.on_blocks);
        assert_eq!((shard.rows, shard.scale_rows, shard.scale_columns), (4736, 38, 148));
        let shard = at(Split::Columns, 8, 7);
        assert!(!shard.on_blocks);
        assert_eq!((shard.first_column, shard.columns, shard.scale_columns), (16576, 2368, 19));
        assert!(at(Split::None, 8, 3).on_blocks);
    }

    #[test]
    fn what_does_not_divide_is_refused_with_both_numbers() {
        let refused = |cut: Cut, texts: [&str; 2]| {
            let message = cut.shard(0).unwrap_err().message;
            assert!(texts.iter().all(|text| message.contains(text)), "{message}");
        };
        refused(cut(&[100], &[], Split::Rows, 3), ["100", "3"]);
        refused(cut(&[4096], &[], Split::Columns, 3), ["4096", "3"]);
        refused(cut(&[768], &[6], Split::Rows, 4), ["6", "4"]);
        refused(cut(&[770], &[6], Split::Rows, 3), ["770", "6"]);
        refused(cut(&[-1], &[], Split::None, 1), ["part_rows[0]", "-1"]);
        refused(cut(&[], &[], Split::None, 1), ["num_parts", "0"]);
        assert!(cut(&[128], &[], Split::None, 2).shard(2).unwrap_err().message.contains('2'));
        assert!(cut(&[i64::MAX, i64::MAX, 8], &[], Split::None, 1).shard(0).is_err());
    }
}
