//! Fingerprints on the threads of a context: a task takes a row of blocks.

use crate::blocks::BLOCK;
use crate::error::Result;
use crate::fingerprint::{KEY_ROWS, Limbs, Request, SHIFT, WORDS, digest, key};

use super::Engine;
use super::isa::Kernel;
use super::lanes::Instructions;
use super::quantize::prefetch;

/// Pairs of words of a row.
const PAIRS: usize = WORDS / 2;
/// Sums that are gathered beside each other, so that they vectorize.
const LANES: usize = 8;

/// The keys of a row, a pair to a word.
type KeyRow = [u64; PAIRS];

static KEYS: [KeyRow; KEY_ROWS] = {
    let mut keys = [[0; PAIRS]; KEY_ROWS];
    let mut at = 0;
    while at < KEY_ROWS * PAIRS {
        keys[at / PAIRS][at % PAIRS] = key(2 * at) as u64 | (key(2 * at + 1) as u64) << 32;
        at += 1;
    }
    keys
};

/// Adds the blocks of checked requests to their sums. Equal to `reference::fingerprint` in every limb.
pub fn fingerprint(engine: &Engine, requests: &[Request]) -> Result<()> {
    let rows_of = |request: &Request| request.blocks().checked_div(request.block_columns()).unwrap_or(0);
    let mut ends = Vec::with_capacity(requests.len());
    let mut total = 0;
    for request in requests {
        total += rows_of(request);
        ends.push(total);
    }
    engine.threads.for_each(total, |_, task| {
        let index = ends.partition_point(|&end| end <= task);
        let request = &requests[index];
        let row = task - (ends[index] - rows_of(request));
        let limbs =
            engine.isa.run(BlockRow { request, expert: row / request.block_rows(), row: row % request.block_rows() });
        // SAFETY: a host context has its sums in host memory.
        unsafe { request.sum.add(&limbs) };
    })
}

/// One row of blocks.
struct BlockRow<'a> {
    request: &'a Request<'a>,
    expert: usize,
    row: usize,
}

impl Kernel for BlockRow<'_> {
    type Output = Limbs;

    #[inline(always)]
    fn run<I: Instructions>(self) -> Limbs {
        let BlockRow { request, expert, row } = self;
        let mut limbs = Limbs::default();
        for column in 0..request.block_columns() {
            let place = request.place(expert, row, column);
            let halves = self.halves(column, place.rows as usize, place.columns as usize);
            // SAFETY: within the matrix; the caller does not write to it during the call.
            let scale = unsafe { request.scale(expert, row, column) };
            limbs.add(digest(&request.origin, &place, scale, halves));
        }
        limbs
    }
}

impl BlockRow<'_> {
    #[inline(always)]
    fn halves(&self, column: usize, rows: usize, columns: usize) -> [u64; 2] {
        let (first, codes) = (self.request.rows.first + self.row * BLOCK, &self.request.codes);
        let mut sums = [[0u64; LANES]; 2];
        for row in 0..rows {
            // SAFETY: within the matrix; the caller does not write to it during the call.
            let bytes: &[u8] = unsafe { codes.run(self.expert, first + row, column * BLOCK, columns) };
            // The block after this one, which no hardware guesses from rows so far apart.
            prefetch(bytes.as_ptr().wrapping_add(BLOCK));
            prefetch(bytes.as_ptr().wrapping_add(BLOCK + BLOCK / 2));
            match bytes.first_chunk::<BLOCK>() {
                Some(whole) => add_row(whole, row, &mut sums),
                None => {
                    let mut filled = [0; BLOCK];
                    filled[..columns].copy_from_slice(bytes);
                    add_row(&filled, row, &mut sums);
                }
            }
        }
        sums.map(|lanes| lanes.iter().fold(0u64, |sum, &lane| sum.wrapping_add(lane)))
    }
}

#[inline(always)]
fn add_row(bytes: &[u8; BLOCK], row: usize, sums: &mut [[u64; LANES]; 2]) {
    for (half, lanes) in sums.iter_mut().enumerate() {
        let keys = &KEYS[row + half * SHIFT];
        for (index, (pair, &key)) in bytes.chunks_exact(8).zip(keys).enumerate() {
            let pair = u64::from_le_bytes(pair.try_into().expect("eight bytes"));
            let even = (pair as u32).wrapping_add(key as u32) as u64;
            let odd = ((pair >> 32) as u32).wrapping_add((key >> 32) as u32) as u64;
            let lane = &mut lanes[index % LANES];
            *lane = lane.wrapping_add(even.wrapping_mul(odd));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::blocks::RowGrid;
    use crate::cpu::{Isa, Threads};
    use crate::fingerprint::{Name, Origin, SumPointer};
    use crate::quantize::{Scales, ScalesLayout, Subject};
    use crate::recipe::ScaleFormat;
    use crate::reference;
    use crate::tensor::{Description, Dtype, Tensor};

    fn view(name: &'static str, memory: &mut [u32], dtype: Dtype, shape: [usize; 3], stride: [usize; 3]) -> Tensor {
        let signed = |values: [usize; 3]| values.map(|value| value as i64);
        let (data, bytes) = (memory.as_mut_ptr().cast(), size_of_val(memory) as u64);
        let (shape, stride) = (&signed(shape), &signed(stride));
        Tensor::new(name, &Description { data, bytes, dtype, device: -1, rank: 3, shape, stride }).unwrap()
    }

    fn limbs_of(run: impl Fn(SumPointer)) -> [u64; 4] {
        let mut sum = [const { AtomicU64::new(0) }; 4];
        run(SumPointer(NonNull::from(&mut sum)));
        sum.map(AtomicU64::into_inner)
    }

    #[test]
    fn every_instruction_set_gives_the_oracles_limbs() {
        let cases: [(usize, usize, usize, &[i64]); 4] =
            [(1, 130, 300, &[]), (2, 257, 128, &[]), (1, 200, 131, &[64, 136]), (3, 5, 1, &[])];
        // An interpreter takes the smallest alone.
        let first = if cfg!(miri) { 3 } else { 0 };
        for &(experts, rows, columns, parts) in &cases[first..] {
            for format in [ScaleFormat::Fp32, ScaleFormat::Ue8m0Packed] {
                let random = |index: usize| key(index % 4000).wrapping_mul(index as u32 | 1);
                let stride = columns + 3;
                let mut codes: Vec<u32> = (0..experts * rows * stride / 4 + 2).map(random).collect();
                let codes =
                    view("codes", &mut codes, Dtype::E4m3, [experts, rows, columns], [rows * stride, stride, 1]);
                let subject = Subject::Weight { part_rows: parts };
                let layout = ScalesLayout::new(&subject, codes.shape, format, false).unwrap();
                let mut scales: Vec<u32> = (0..layout.bytes / 4).map(|index| random(index) | 0x3F80_0000).collect();
                let scales = view("scales", &mut scales, layout.dtype, layout.shape, layout.stride);
                let scales = Scales::new(&scales, format, &subject, &codes).unwrap();
                let grid = RowGrid::of_weight(rows, parts).unwrap();
                let requests = |sum| -> Vec<Request> {
                    let origin = |part| Origin {
                        name: Name::new("w", part),
                        expert: 3,
                        block_row: 1,
                        block_column: 2,
                        offset: [5, 64],
                    };
                    let parts = grid.parts().zip(0u32..);
                    parts
                        .map(|(rows, part)| Request::new(&codes, Some(scales), rows, origin(part), sum).unwrap())
                        .collect()
                };
                let want = limbs_of(|sum| requests(sum).iter().for_each(reference::fingerprint));
                assert_ne!(want, [0; 4]);
                for isa in Isa::available() {
                    let engine = Engine { isa, threads: Threads::new(2).unwrap() };
                    let got = limbs_of(|sum| fingerprint(&engine, &requests(sum)).unwrap());
                    assert_eq!(got, want, "{rows}x{columns}, {}", isa.name());
                }
            }
        }
    }
}
