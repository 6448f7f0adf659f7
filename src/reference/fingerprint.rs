//! The hash of blocks as `fingerprint` defines it, one byte at a time.

use crate::blocks::BLOCK;
use crate::fingerprint::{Limbs, Request, SHIFT, WORDS, digest, key};

/// Byte `column` of a row, 0 beyond the last.
fn byte(request: &Request, expert: usize, row: usize, column: usize) -> u32 {
    if column >= request.codes.columns() {
        return 0;
    }
    // SAFETY: the loops stay within the part.
    (unsafe { *request.codes.at::<u8>(expert, request.rows.first + row, column) }) as u32
}

fn word(request: &Request, expert: usize, row: usize, column: usize) -> u32 {
    (0..4).fold(0, |word, at| word | byte(request, expert, row, column + at) << (8 * at))
}

fn half(request: &Request, expert: usize, row: usize, column: usize, shift: usize) -> u64 {
    let mut sum = 0u64;
    for r in 0..(request.rows.count - row * BLOCK).min(BLOCK) {
        for w in (0..WORDS).step_by(2) {
            let keyed = |w: usize| {
                let m = word(request, expert, row * BLOCK + r, column * BLOCK + 4 * w);
                m.wrapping_add(key(WORDS * (r + shift) + w)) as u64
            };
            sum = sum.wrapping_add(keyed(w).wrapping_mul(keyed(w + 1)));
        }
    }
    sum
}

/// Adds the blocks of a request to its sum.
pub fn fingerprint(request: &Request) {
    let mut limbs = Limbs::default();
    for expert in 0..request.codes.experts() {
        for row in 0..request.block_rows() {
            for column in 0..request.block_columns() {
                let halves = [0, SHIFT].map(|shift| half(request, expert, row, column, shift));
                // SAFETY: within the matrix.
                let scale = unsafe { request.scale(expert, row, column) };
                limbs.add(digest(&request.origin, &request.place(expert, row, column), scale, halves));
            }
        }
    }
    // SAFETY: the oracle is called with a sum in host memory.
    unsafe { request.sum.add(&limbs) };
}
