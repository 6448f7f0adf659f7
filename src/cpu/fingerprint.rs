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
            limbs.add(digest(request.origin.name, &place, scale, halves));
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
