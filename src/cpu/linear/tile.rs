//! A chunk of x times some rows of the weight.

use crate::blocks::BLOCK;
use crate::cpu::isa::Kernel;
use crate::formats::{e4m3, half};
use crate::linear::LinearRun;
use crate::quantize::ScaleRow;
use crate::tensor::Dtype;

use super::{Chunk, LANES, PANEL_GROUPS, STREAMED_ROWS, TILE_ROWS};

/// Which rows of the weight. All lie in one band.
#[derive(Clone, Copy)]
pub struct TilePlace {
    pub band: usize,
    pub first: usize,
    pub rows: usize,
}

pub struct Tile<'a> {
    pub run: &'a LinearRun<'a>,
    pub chunk: &'a Chunk,
    pub place: TilePlace,
    /// This worker's: a panel, then totals.
    pub scratch: *mut f32,
}

type Lanes = [f32; LANES];

/// The sums of M rows of x by N rows of the weight.
type Sums<const M: usize, const N: usize> = [[Lanes; N]; M];

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        match self.chunk.rows {
            1 => self.stream::<FMA, 1, 4>(),
            2 => self.stream::<FMA, 2, 4>(),
            3 => self.stream::<FMA, 3, 2>(),
            STREAMED_ROWS => self.stream::<FMA, 4, 2>(),
            _ => self.panels::<FMA>(),
        }
    }
}

impl Tile<'_> {
    /// Few rows of x: N rows of the weight at a time, over all of K, decoded on the way.
    #[inline(always)]
    fn stream<const FMA: bool, const M: usize, const N: usize>(&self) {
        let mut row = 0;
        while row + N <= self.place.rows {
            self.stream_rows::<FMA, M, N>(row);
            row += N;
        }
        while row < self.place.rows {
            self.stream_rows::<FMA, M, 1>(row);
            row += 1;
        }
    }

    #[inline(always)]
    fn stream_rows<const FMA: bool, const M: usize, const N: usize>(&self, row: usize) {
        let mut totals: Sums<M, N> = [[[0.0; LANES]; N]; M];
        for group in 0..self.chunk.groups {
            let mut padded = [[0u8; BLOCK]; N];
            let mut codes = [std::ptr::null::<u8>(); N];
            let length = (self.run.spec.k - group * BLOCK).min(BLOCK);
            for n in 0..N {
                // SAFETY: within the weight.
                let run: &[u8] = unsafe { self.run.weight.run(0, self.place.first + row + n, group * BLOCK, length) };
                codes[n] = run.as_ptr();
                if length < BLOCK {
                    padded[n][..length].copy_from_slice(run);
                    codes[n] = padded[n].as_ptr();
                }
            }
            // SAFETY: each pointer has BLOCK codes behind it.
            let lanes = |n: usize, step: usize| unsafe { decode_lanes(codes[n].add(step * LANES)) };
            self.block::<FMA, M, N>(0, row, group, lanes, &mut totals);
        }
        self.store(0, row, &totals);
    }

    /// Many rows of x: the tile is decoded panel by panel; totals wait in the scratch between panels.
    #[inline(always)]
    fn panels<const FMA: bool>(&self) {
        // SAFETY: the scratch holds a panel and the totals of a chunk, and is this worker's.
        let totals = unsafe { self.scratch.add(TILE_ROWS * PANEL_GROUPS * BLOCK).cast::<Lanes>() };
        let count = self.chunk.rows * TILE_ROWS;
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(totals, count) }.fill([0.0; LANES]);
        for first in (0..self.chunk.groups).step_by(PANEL_GROUPS) {
            let groups = first..(first + PANEL_GROUPS).min(self.chunk.groups);
            self.decode_panel(groups.clone());
            self.over_rows::<FMA>(groups, totals);
        }
        for m in 0..self.chunk.rows {
            for n in 0..self.place.rows {
                // SAFETY: within the totals.
                self.store(m, n, &[[unsafe { *totals.add(m * TILE_ROWS + n) }]]);
            }
        }
    }

    /// Decodes the tile's codes of some groups into the scratch: rows of PANEL_GROUPS groups, zeros after the last column.
    #[inline(always)]
    fn decode_panel(&self, groups: std::ops::Range<usize>) {
        for n in 0..self.place.rows {
            for group in groups.clone() {
                let length = (self.run.spec.k - group * BLOCK).min(BLOCK);
                let place = (n * PANEL_GROUPS + group - groups.start) * BLOCK;
                // SAFETY: within the weight, and within the panel.
                unsafe {
                    let codes: &[u8] = self.run.weight.run(0, self.place.first + n, group * BLOCK, length);
                    let panel = &mut *self.scratch.add(place).cast::<[f32; BLOCK]>();
                    for (value, &code) in panel.iter_mut().zip(codes) {
                        *value = e4m3::to_f32(code);
                    }
                    panel[length..].fill(0.0);
                }
            }
        }
    }

    #[inline(always)]
    fn over_rows<const FMA: bool>(&self, groups: std::ops::Range<usize>, totals: *mut Lanes) {
        let mut m = 0;
        while m + 4 <= self.chunk.rows {
            self.over_columns::<FMA, 4>(m, groups.clone(), totals);
            m += 4;
        }
        while m < self.chunk.rows {
            self.over_columns::<FMA, 1>(m, groups.clone(), totals);
            m += 1;
        }
    }

    #[inline(always)]
    fn over_columns<const FMA: bool, const M: usize>(&self, m: usize, groups: std::ops::Range<usize>, totals: *mut Lanes) {
        let mut n = 0;
        while n + 2 <= self.place.rows {
            self.over_panel::<FMA, M, 2>(m, n, groups.clone(), totals);
            n += 2;
        }
        if n < self.place.rows {
            self.over_panel::<FMA, M, 1>(m, n, groups, totals);
        }
    }

    #[inline(always)]
    fn over_panel<const FMA: bool, const M: usize, const N: usize>(
        &self,
        m: usize,
        n: usize,
        groups: std::ops::Range<usize>,
        totals: *mut Lanes,
    ) {
        // SAFETY: within the totals, and within the panel that `decode_panel` filled; both are this worker's.
        unsafe {
            let mut sums: Sums<M, N> = [[[0.0; LANES]; N]; M];
            for i in 0..M {
                for j in 0..N {
                    sums[i][j] = *totals.add((m + i) * TILE_ROWS + n + j);
                }
            }
            for group in groups.clone() {
                let lanes = |j: usize, step: usize| {
                    let place = ((n + j) * PANEL_GROUPS + group - groups.start) * BLOCK + step * LANES;
                    *self.scratch.add(place).cast::<Lanes>()
                };
                self.block::<FMA, M, N>(m, n, group, lanes, &mut sums);
            }
            for i in 0..M {
                for j in 0..N {
                    *totals.add((m + i) * TILE_ROWS + n + j) = sums[i][j];
                }
            }
        }
    }

    /// Adds one group of columns: products by lanes, then the scales.
    #[inline(always)]
    fn block<const FMA: bool, const M: usize, const N: usize>(
        &self,
        m: usize,
        n: usize,
        group: usize,
        lanes: impl Fn(usize, usize) -> Lanes,
        totals: &mut Sums<M, N>,
    ) {
        let mut partial: Sums<M, N> = [[[0.0; LANES]; N]; M];
        for step in 0..BLOCK / LANES {
            let mut weight = [[0.0; LANES]; N];
            for j in 0..N {
                weight[j] = lanes(j, step);
            }
            for i in 0..M {
                let x = self.x_lanes(m + i, group, step);
                for j in 0..N {
                    for lane in 0..LANES {
                        partial[i][j][lane] = multiply_add::<FMA>(x[lane], weight[j][lane], partial[i][j][lane]);
                    }
                }
            }
        }
        for i in 0..M {
            // SAFETY: within the chunk.
            let x_scale = unsafe { *self.chunk.scales.add((m + i) * self.chunk.groups + group) };
            for j in 0..N {
                let scale = finite(x_scale * self.weight_scale(n + j, group));
                for lane in 0..LANES {
                    totals[i][j][lane] += partial[i][j][lane] * scale;
                }
            }
        }
    }

    #[inline(always)]
    fn x_lanes(&self, row: usize, group: usize, step: usize) -> Lanes {
        // SAFETY: within the chunk, whose rows are whole groups.
        unsafe { *self.chunk.codes.add((row * self.chunk.groups + group) * BLOCK + step * LANES).cast::<Lanes>() }
    }

    #[inline(always)]
    fn weight_scale(&self, n: usize, group: usize) -> f32 {
        let at = ScaleRow { expert: 0, band: self.place.band, row: self.place.first + n };
        // SAFETY: within the weight.
        unsafe { self.run.weight_scales.read(at, group) }
    }

    /// Adds the lanes and the bias, rounds, writes.
    #[inline(always)]
    fn store<const M: usize, const N: usize>(&self, m: usize, n: usize, totals: &Sums<M, N>) {
        for i in 0..M {
            for j in 0..N {
                let column = self.place.first + n + j;
                let sum = add_lanes(totals[i][j]);
                let value = match &self.run.bias {
                    Some(bias) => sum + load(bias, column),
                    None => sum,
                };
                let (output, row) = (&self.run.output, self.chunk.first + m + i);
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
    }
}

/// Values of as many codes as there are lanes.
///
/// # Safety
/// LANES codes are readable.
#[inline(always)]
unsafe fn decode_lanes(codes: *const u8) -> Lanes {
    // SAFETY: the caller's promise.
    let codes = unsafe { *codes.cast::<[u8; LANES]>() };
    let mut values = [0.0; LANES];
    for lane in 0..LANES {
        values[lane] = e4m3::to_f32(codes[lane]);
    }
    values
}

/// The product of two codes is exact, so the fused form and the other give the same bits.
#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// A product of scales beyond float32 has no right result, but must not make an infinity of a finite input: any factor
/// will do that keeps every sum finite.
#[inline(always)]
pub fn finite(scale: f32) -> f32 {
    if scale == f32::INFINITY { f32::from_bits((127 + 64) << 23) } else { scale }
}

/// The 16 totals, by halves.
#[inline(always)]
fn add_lanes(mut lanes: Lanes) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn load(bias: &crate::tensor::Tensor, column: usize) -> f32 {
    // SAFETY: the bias has an element for each column.
    unsafe {
        match bias.dtype {
            Dtype::Bf16 => half::bf16_to_f32(*bias.at(0, 0, column)),
            Dtype::F16 => half::f16_to_f32(*bias.at(0, 0, column)),
            _ => *bias.at(0, 0, column),
        }
    }
}
