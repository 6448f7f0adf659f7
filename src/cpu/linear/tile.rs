//! A chunk of x times some rows of the weight.

// Rows and columns are indices into several arrays at once; an iterator over one of them says less.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::blocks::BLOCK;
use crate::cpu::isa::Kernel;
use crate::cpu::lanes::{Instructions, LANES, Lanes, add_lanes, all_normal};
use crate::formats::half;
use crate::linear::LinearRun;
use crate::quantize::ScaleRow;
use crate::tensor::{Dtype, Tensor};

use super::{Chunk, PANEL_GROUPS, STREAMED_ROWS, TILE_ROWS};

/// Which rows of the weight. All lie in one band.
#[derive(Clone, Copy)]
pub struct TilePlace {
    pub band: usize,
    pub first: usize,
    pub rows: usize,
}

/// The scales of a panel, by group and row of the tile.
type PanelScales = [[f32; TILE_ROWS]; PANEL_GROUPS];

pub struct Tile<'a> {
    pub run: &'a LinearRun<'a>,
    pub chunk: &'a Chunk,
    pub place: TilePlace,
    /// This worker's: a panel, then totals.
    pub scratch: *mut f32,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Instructions>(self) {
        match self.chunk.rows {
            1 => self.stream::<I::Lanes, 1, 4>(),
            2 => self.stream::<I::Lanes, 2, 4>(),
            3 => self.stream::<I::Lanes, 3, 2>(),
            STREAMED_ROWS => self.stream::<I::Lanes, 4, 2>(),
            _ => self.panels::<I::Lanes>(),
        }
    }
}

impl Tile<'_> {
    /// Few rows of x: N rows of the weight at a time, over all of K, decoded on the way.
    #[inline(always)]
    fn stream<L: Lanes, const M: usize, const N: usize>(&self) {
        let mut row = 0;
        while row + N <= self.place.rows {
            self.stream_rows::<L, M, N>(row);
            row += N;
        }
        while row < self.place.rows {
            self.stream_rows::<L, M, 1>(row);
            row += 1;
        }
    }

    #[inline(always)]
    fn stream_rows<L: Lanes, const M: usize, const N: usize>(&self, row: usize) {
        let mut totals = [[L::zero(); N]; M];
        for group in 0..self.chunk.groups {
            let mut padded = [[0u8; BLOCK]; N];
            let codes: [&[u8; BLOCK]; N] = self.group_codes(row, group, &mut padded);
            // SAFETY: a step lies within the codes of its group.
            let partial = unsafe {
                if codes.iter().all(|codes| all_normal(codes)) {
                    self.products::<L, M, N>(0, group, |n, step| L::decode_normal(codes[n].as_ptr().add(step)))
                } else {
                    self.products::<L, M, N>(0, group, |n, step| L::decode(codes[n].as_ptr().add(step)))
                }
            };
            let scales = self.scales::<M, N>(0, group, std::array::from_fn(|n| self.weight_scale(row + n, group)));
            for m in 0..M {
                for n in 0..N {
                    totals[m][n] = totals[m][n].add_rounded_product(partial[m][n], scales[m][n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                self.output(m, row + n, totals[m][n]);
            }
        }
    }

    /// The codes of a group in N rows of the tile, copied with zeros behind them if the group is short.
    #[inline(always)]
    fn group_codes<'a, const N: usize>(
        &self,
        row: usize,
        group: usize,
        padded: &'a mut [[u8; BLOCK]; N],
    ) -> [&'a [u8; BLOCK]; N] {
        let length = (self.run.spec.k - group * BLOCK).min(BLOCK);
        // SAFETY: within the weight, which nobody writes during the run.
        let codes = |n: usize| unsafe { self.run.weight.run(0, self.place.first + row + n, group * BLOCK, length) };
        if length < BLOCK {
            for n in 0..N {
                padded[n][..length].copy_from_slice(codes(n));
            }
            let padded: &'a [[u8; BLOCK]; N] = padded;
            return std::array::from_fn(|n| &padded[n]);
        }
        std::array::from_fn(|n| <&[u8; BLOCK]>::try_from(codes(n)).expect("a whole group"))
    }

    /// Many rows of x: the tile is decoded panel by panel; totals wait in the scratch between panels.
    #[inline(always)]
    fn panels<L: Lanes>(&self) {
        for m in 0..self.chunk.rows {
            for n in 0..self.place.rows {
                // SAFETY: within the totals, which are this worker's.
                unsafe { L::zero().store(self.total(m, n)) };
            }
        }
        for first in (0..self.chunk.groups).step_by(PANEL_GROUPS) {
            let groups = first..(first + PANEL_GROUPS).min(self.chunk.groups);
            let weight_scales = self.decode_panel::<L>(groups.clone());
            if L::MANY {
                self.over_rows::<L, 4, 4>(groups, &weight_scales);
            } else {
                self.over_rows::<L, 2, 2>(groups, &weight_scales);
            }
        }
        for m in 0..self.chunk.rows {
            for n in 0..self.place.rows {
                // SAFETY: as above.
                self.output(m, n, unsafe { L::load(self.total(m, n)) });
            }
        }
    }

    /// The totals of one output, in the scratch.
    #[inline(always)]
    fn total(&self, m: usize, n: usize) -> *mut f32 {
        self.scratch.wrapping_add(TILE_ROWS * PANEL_GROUPS * BLOCK + (m * TILE_ROWS + n) * LANES)
    }

    /// The values of a group of a row of the tile, in the scratch.
    #[inline(always)]
    fn panel(&self, n: usize, group_of_panel: usize) -> *mut f32 {
        self.scratch.wrapping_add((n * PANEL_GROUPS + group_of_panel) * BLOCK)
    }

    /// Fills the panel; gives its scales.
    #[inline(always)]
    fn decode_panel<L: Lanes>(&self, groups: Range<usize>) -> PanelScales {
        let mut scales = [[0.0; TILE_ROWS]; PANEL_GROUPS];
        for n in 0..self.place.rows {
            for group in groups.clone() {
                scales[group - groups.start][n] = self.weight_scale(n, group);
                let mut padded = [[0u8; BLOCK]; 1];
                let [codes] = self.group_codes(n, group, &mut padded);
                let values = self.panel(n, group - groups.start);
                let normal = all_normal(codes);
                for step in (0..BLOCK).step_by(LANES) {
                    // SAFETY: within the group, and within the panel, which is this worker's.
                    unsafe {
                        let codes = codes.as_ptr().add(step);
                        let lanes = if normal { L::decode_normal(codes) } else { L::decode(codes) };
                        lanes.store(values.add(step));
                    }
                }
            }
        }
        scales
    }

    #[inline(always)]
    fn over_rows<L: Lanes, const M: usize, const N: usize>(&self, groups: Range<usize>, scales: &PanelScales) {
        let mut m = 0;
        while m + M <= self.chunk.rows {
            self.over_columns::<L, M, N>(m, groups.clone(), scales);
            m += M;
        }
        while m < self.chunk.rows {
            self.over_columns::<L, 1, N>(m, groups.clone(), scales);
            m += 1;
        }
    }

    #[inline(always)]
    fn over_columns<L: Lanes, const M: usize, const N: usize>(
        &self,
        m: usize,
        groups: Range<usize>,
        scales: &PanelScales,
    ) {
        let mut n = 0;
        while n + N <= self.place.rows {
            self.over_panel::<L, M, N>(m, n, groups.clone(), scales);
            n += N;
        }
        while n < self.place.rows {
            self.over_panel::<L, M, 1>(m, n, groups.clone(), scales);
            n += 1;
        }
    }

    /// Adds the groups of the panel to M x N totals.
    #[inline(always)]
    fn over_panel<L: Lanes, const M: usize, const N: usize>(
        &self,
        m: usize,
        n: usize,
        groups: Range<usize>,
        scales: &PanelScales,
    ) {
        for group in groups.clone() {
            let of_weight = &scales[group - groups.start];
            let scales = self.scales::<M, N>(m, group, std::array::from_fn(|j| of_weight[n + j]));
            let panel = |j: usize| self.panel(n + j, group - groups.start);
            // SAFETY: within the panel that `decode_panel` filled.
            let partial = unsafe { self.products::<L, M, N>(m, group, |j, step| L::load(panel(j).add(step))) };
            for i in 0..M {
                for j in 0..N {
                    let total = self.total(m + i, n + j);
                    // SAFETY: within the totals, which are this worker's.
                    unsafe {
                        L::load(total).add_rounded_product(partial[i][j], scales[i][j]).store(total);
                    }
                }
            }
        }
    }

    /// Sums by lanes of the products of one group: M rows of x from `m` on with N rows of the weight, whose values from a
    /// column of the group on `weight` gives.
    ///
    /// # Safety
    /// `m + M` rows are in the chunk.
    #[inline(always)]
    unsafe fn products<L: Lanes, const M: usize, const N: usize>(
        &self,
        m: usize,
        group: usize,
        weight: impl Fn(usize, usize) -> L,
    ) -> [[L; N]; M] {
        let mut partial = [[L::zero(); N]; M];
        for step in (0..BLOCK).step_by(LANES) {
            let weight: [L; N] = std::array::from_fn(|n| weight(n, step));
            for i in 0..M {
                // SAFETY: within the chunk, whose rows are whole groups.
                let x = unsafe { L::load(self.chunk.codes.add(((m + i) * self.chunk.groups + group) * BLOCK + step)) };
                for n in 0..N {
                    partial[i][n] = partial[i][n].add_product(x, weight[n]);
                }
            }
        }
        partial
    }

    /// Products of the scales of M rows of x with those of N rows of the weight.
    #[inline(always)]
    fn scales<const M: usize, const N: usize>(&self, m: usize, group: usize, of_weight: [f32; N]) -> [[f32; N]; M] {
        std::array::from_fn(|i| {
            // SAFETY: within the chunk.
            let of_x = unsafe { *self.chunk.scales.add((m + i) * self.chunk.groups + group) };
            of_weight.map(|of_weight| finite(of_x * of_weight))
        })
    }

    #[inline(always)]
    fn weight_scale(&self, n: usize, group: usize) -> f32 {
        let at = ScaleRow { expert: 0, band: self.place.band, row: self.place.first + n };
        // SAFETY: within the weight.
        unsafe { self.run.weight_scales.read(at, group) }
    }

    /// Adds the lanes and the bias, rounds, writes.
    #[inline(always)]
    fn output<L: Lanes>(&self, m: usize, n: usize, total: L) {
        let mut lanes = [0f32; LANES];
        // SAFETY: a local.
        unsafe { total.store(lanes.as_mut_ptr()) };
        let (row, column) = (self.chunk.first + m, self.place.first + n);
        let sum = add_lanes(lanes);
        let value = match &self.run.bias {
            Some(bias) => sum + load(bias, column),
            None => sum,
        };
        let output = self.run.output;
        // SAFETY: within y; no other task has this column of this row.
        unsafe {
            match output.dtype {
                Dtype::Bf16 => *output.at(0, row, column) = half::bf16_from_f32(value),
                Dtype::F16 => *output.at(0, row, column) = half::f16_from_f32(value),
                _ => *output.at(0, row, column) = value,
            }
        }
    }
}

/// A product of scales beyond float32 has no right result, but must not make an infinity of a finite input, in no output
/// type: such a group counts for nothing.
#[inline(always)]
fn finite(scale: f32) -> f32 {
    if scale == f32::INFINITY { 0.0 } else { scale }
}

#[inline(always)]
fn load(bias: &Tensor, column: usize) -> f32 {
    // SAFETY: the bias has an element for each column.
    unsafe {
        match bias.dtype {
            Dtype::Bf16 => half::bf16_to_f32(*bias.at(0, 0, column)),
            Dtype::F16 => half::f16_to_f32(*bias.at(0, 0, column)),
            _ => *bias.at(0, 0, column),
        }
    }
}
