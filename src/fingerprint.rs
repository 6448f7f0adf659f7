//! Fingerprints: a sum over blocks, modulo 2^128, of a hash of each block's place, codes and scale.
//!
//! Because it is a sum, shards that are cut on blocks add up to the whole in any order, on any number of ranks, and a
//! trainer can compute the value that an engine must have. It finds faults, not forgers: the keys are known.
//!
//! The definition. Every integer is unsigned and wraps; `>>` shifts zeros in.
//!
//! - `mix(z)`: z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9; z = (z ^ (z >> 27)) * 0x94D049BB133111EB; z ^ (z >> 31), of 64
//!   bits: the output function of SplitMix64.
//! - Keys: `k[j]`, 0 <= j < 5120, the upper 32 bits of mix((j + 1) * 0x9E3779B97F4A7C15): the upper halves of SplitMix64's
//!   outputs for seed 0.
//! - A block is up to 128 rows of up to 128 bytes. Each row that exists is filled up with zeros to 128 bytes and read as 32
//!   little-endian words of 32 bits; word w of row r is `m[32 r + w]`.
//! - Two halves, p = 0 and 1, of 64 bits each (NH, with Toeplitz keys):
//!   `nh[p]` = the sum over even j of the rows that exist of
//!   ((m[j] + k[j + 1024 p]) mod 2^32) * ((m[j + 1] + k[j + 1 + 1024 p]) mod 2^32).
//! - `scale`, 32 bits: the bits of the block's float32 scale. For packed exponents those of the scale that the exponent
//!   stands for, or 0xFFFFFFFF where the rows of the block disagree. 0 for tensors that are not FP8.
//! - The name: the first 16 bytes of SHA-256 of the name's UTF-8 bytes, a zero byte and the part as 4 little-endian bytes,
//!   read as two little-endian words of 64 bits: a and b.
//! - Five words follow: block_row | block_column << 32; expert | rows << 32 | row_offset << 40 | columns << 48 |
//!   column_offset << 56, with the rows and columns (in bytes) of the block that exist; scale; nh[0]; nh[1]. Each word x
//!   does a = mix(a ^ x); b = mix(b + a); a = a + b.
//! - The block's hash is a | b << 64.
//!
//! For one place and scale the map from (nh[0], nh[1]) to the hash is one to one, so two blocks there collide only where
//! both halves do.
//!
//! Rows and columns of blocks are counted in the named tensor, from the beginning of its part and expert; the offsets are
//! where in them a matrix begins that was not cut on blocks, and 0 otherwise. Only then do shards add up. Tensors that are
//! not FP8 count as bytes: a row of n elements of s bytes is a row of n s bytes.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use crate::blocks::{BLOCK, Rows, groups};
use crate::error::{Result, ensure};
use crate::formats::e8m0;
use crate::quantize::{ScaleRow, Scales};
use crate::recipe::ScaleFormat;
use crate::tensor::{Dtype, Tensor};

/// Words of a row of a block.
pub const WORDS: usize = BLOCK / 4;
/// Rows of keys by which the second half's are shifted.
pub const SHIFT: usize = 32;
/// Rows of keys.
pub const KEY_ROWS: usize = BLOCK + SHIFT;
/// The scale of rows that disagree.
pub const MIXED_SCALES: u32 = u32::MAX;

/// The output function of SplitMix64.
pub const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Key number `index`.
pub const fn key(index: usize) -> u32 {
    (mix((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 32) as u32
}

/// What a tensor and a part are called, of fixed length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    pub low: u64,
    pub high: u64,
}

impl Name {
    pub fn new(name: &str, part: u32) -> Name {
        let hash = Sha256::new().chain_update(name).chain_update([0]).chain_update(part.to_le_bytes()).finalize();
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| hash[at + byte]));
        Name { low: word(0), high: word(8) }
    }
}

/// Where a matrix lies in the tensor that is named: the first expert, block row and block column.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub name: Name,
    pub expert: u32,
    pub block_row: u32,
    pub block_column: u32,
    /// Row and byte of the first block at which it begins, below [`BLOCK`].
    pub offset: [u32; 2],
}

impl Origin {
    /// The offsets as they stand beside the rows and columns of a block.
    #[inline(always)]
    pub fn packed_offset(&self) -> u32 {
        self.offset[0] << 8 | self.offset[1] << 24
    }
}

/// One block, without its contents.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub expert: u32,
    pub block_row: u32,
    pub block_column: u32,
    /// Rows and bytes of a row that exist.
    pub rows: u32,
    pub columns: u32,
}

/// The hash of a block.
#[inline(always)]
pub fn digest(origin: &Origin, place: &Place, scale: u32, halves: [u64; 2]) -> u128 {
    let words = [
        place.block_row as u64 | (place.block_column as u64) << 32,
        place.expert as u64 | ((place.rows | place.columns << 16 | origin.packed_offset()) as u64) << 32,
        scale as u64,
        halves[0],
        halves[1],
    ];
    let (mut a, mut b) = (origin.name.low, origin.name.high);
    for word in words {
        a = mix(a ^ word);
        b = mix(b.wrapping_add(a));
        a = a.wrapping_add(b);
    }
    a as u128 | (b as u128) << 64
}

/// A sum as it is gathered: limb i adds bits 32 i to 32 i + 31 of each hash, without carries, so that 2^32 blocks fit and
/// every order of adding gives the same limbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limbs(pub [u64; 4]);

impl Limbs {
    #[inline(always)]
    pub fn add(&mut self, hash: u128) {
        for (index, limb) in self.0.iter_mut().enumerate() {
            *limb = limb.wrapping_add((hash >> (32 * index)) as u32 as u64);
        }
    }

    /// The sum modulo 2^128.
    pub fn fold(&self) -> u128 {
        self.0.iter().enumerate().fold(0, |sum, (index, &limb)| sum.wrapping_add((limb as u128) << (32 * index)))
    }
}

/// The caller's limbs: in the memory of the context's device, so not always readable here.
#[derive(Clone, Copy, Debug)]
pub struct SumPointer(pub NonNull<[AtomicU64; 4]>);

// SAFETY: an address; what dereferences it runs where the memory is, and adds atomically.
unsafe impl Send for SumPointer {}
// SAFETY: as above.
unsafe impl Sync for SumPointer {}

impl SumPointer {
    /// Adds limbs to the caller's.
    ///
    /// # Safety
    /// The limbs lie in host memory, and nobody accesses them but atomically.
    pub unsafe fn add(&self, limbs: &Limbs) {
        // SAFETY: the caller's promise.
        let ours = unsafe { self.0.as_ref() };
        for (limb, &value) in ours.iter().zip(&limbs.0) {
            limb.fetch_add(value, Ordering::Relaxed);
        }
    }
}

/// A checked request: the blocks of one part of a matrix are added to a sum.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Of bytes.
    pub codes: Tensor,
    /// `None`: not FP8.
    pub scales: Option<Scales<'a>>,
    /// Of the part.
    pub rows: Rows,
    pub origin: Origin,
    pub sum: SumPointer,
}

impl<'a> Request<'a> {
    /// `codes` of E4M3 fit their scales; those of another dtype have none.
    pub fn new(
        codes: &Tensor,
        scales: Option<Scales<'a>>,
        rows: Rows,
        origin: Origin,
        sum: SumPointer,
    ) -> Result<Request<'a>> {
        let name = codes.name;
        ensure!(
            (codes.dtype == Dtype::E4m3) == scales.is_some(),
            Dtype,
            "{name} has dtype {}, scales belong to e4m3 and to nothing else",
            codes.dtype
        );
        let codes = codes.as_bytes()?;
        let (address, bytes) = (sum.0.as_ptr() as usize, size_of::<[AtomicU64; 4]>());
        codes.expect_apart_from_memory("sum", address, bytes)?;
        if let Some(scales) = &scales {
            scales.tensor.expect_apart_from_memory("sum", address, bytes)?;
        }
        let last = |first: u32, count: usize, what: &'static str| {
            let most = u32::MAX;
            let fits = count as u64 + first as u64 <= most as u64;
            ensure!(fits, Unsupported, "{name} has {count} {what} from {first} on, the last may be {most}");
            Ok(())
        };
        if !codes.is_empty() {
            last(origin.expert, codes.experts(), "experts")?;
            last(origin.block_row, rows.count.div_ceil(BLOCK), "block rows")?;
            last(origin.block_column, groups(codes.columns()), "block columns")?;
        }
        Ok(Request { codes, scales, rows, origin, sum })
    }

    pub fn block_rows(&self) -> usize {
        self.rows.count.div_ceil(BLOCK)
    }

    pub fn block_columns(&self) -> usize {
        groups(self.codes.columns())
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        // Without elements the product of the other extents may be any number.
        if self.codes.is_empty() { 0 } else { self.codes.experts() * self.block_rows() * self.block_columns() }
    }

    /// Where block (row, column) of an expert lies.
    #[inline(always)]
    pub fn place(&self, expert: usize, row: usize, column: usize) -> Place {
        Place {
            expert: self.origin.expert + expert as u32,
            block_row: self.origin.block_row + row as u32,
            block_column: self.origin.block_column + column as u32,
            rows: (self.rows.count - row * BLOCK).min(BLOCK) as u32,
            columns: (self.codes.columns() - column * BLOCK).min(BLOCK) as u32,
        }
    }

    /// The bits of the scale of a block.
    ///
    /// # Safety
    /// The block lies within the matrix, and nobody writes its scale meanwhile.
    #[inline(always)]
    pub unsafe fn scale(&self, expert: usize, row: usize, column: usize) -> u32 {
        let Some(scales) = &self.scales else { return 0 };
        let first = self.rows.first + row * BLOCK;
        let at = |row_of_all| ScaleRow { expert, band: self.rows.bands + row, row: row_of_all };
        // SAFETY: the caller's promise.
        unsafe {
            if scales.format != ScaleFormat::Ue8m0Packed {
                return scales.read(at(first), column).to_bits();
            }
            let byte = |row: usize| (*scales.tensor.at::<u32>(expert, row, column / 4) >> (8 * (column % 4))) as u8;
            let rows = (self.rows.count - row * BLOCK).min(BLOCK);
            let exponent = byte(first);
            let agree = (first..first + rows).all(|row| byte(row) == exponent);
            if agree { e8m0::to_f32(exponent).to_bits() } else { MIXED_SCALES }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_splitmix64s() {
        // The first outputs of SplitMix64 for seed 0.
        assert_eq!([key(0), key(1), key(2)], [0xE220_A839, 0x6E78_9E6A, 0x06C4_5D18]);
    }

    #[test]
    fn limbs_fold_with_carries() {
        let hashes = [u128::MAX, 1, 0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF, u128::MAX - 5];
        let mut limbs = Limbs::default();
        hashes.iter().for_each(|&hash| limbs.add(hash));
        assert_eq!(limbs.fold(), hashes.iter().fold(0u128, |sum, &hash| sum.wrapping_add(hash)));
    }

    #[test]
    fn a_name_has_its_part() {
        let names = [Name::new("a", 0), Name::new("a", 1), Name::new("b", 0), Name::new("", 0)];
        for (index, name) in names.iter().enumerate() {
            assert!(names[..index].iter().all(|other| other != name));
        }
    }
}
