//! The tiles of DeepGEMM's kernel that are compiled ahead of time. The build makes a cubin of each; the library chooses.

/// Which operand the two thread blocks of a cluster share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// No cluster.
    One,
    /// Two tiles of neighboring columns share the activation.
    Activation,
    /// Two tiles of neighboring rows share the weight.
    Weight,
}

/// One instantiation: its part of y, and how thread blocks work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of y, BLOCK_M.
    pub rows: u32,
    /// Columns of y, BLOCK_N.
    pub columns: u32,
    pub cluster: Cluster,
    /// Thread blocks that share a multiprocessor. More of them hide one another's waits where tiles are small.
    pub per_processor: u32,
    /// Bytes that the compiler may spill: what it was seen to spill where that was measured to do no harm.
    pub spill: u32,
    /// Nanoseconds that a block of K takes on a full chip, and a tile beside them: measured, for the model of the choice.
    pub block_time: u32,
    pub tile_time: u32,
    /// N and K, compiled in; 0: what the call says. For shapes where that was measured to be faster.
    pub n: u32,
    pub k: u32,
}

/// Multiprocessors of an H100 or H200 SXM: the kernel strides over its tiles by this number, which is compiled in.
pub const PROCESSORS: u32 = 132;

/// K that the stages leave room for: the scales of the weight share the memory with them.
pub const MOST_K: u32 = 32768;

/// Columns of K that one stage holds, BLOCK_K.
pub const DEPTH: u32 = 128;

/// Shared memory of a thread block, less what a small one of the next kernel needs beside it.
const SHARED: u32 = 231_424;
const BARRIERS: u32 = 256;
const MOST_STAGES: u32 = 16;

const fn align(value: u32, alignment: u32) -> u32 {
    value.div_ceil(alignment) * alignment
}

#[allow(dead_code)] // the build uses some, the library others
impl Tile {
    const fn spills(self, spill: u32) -> Tile {
        Tile { spill, ..self }
    }

    const fn takes(self, block_time: u32, tile_time: u32) -> Tile {
        Tile { block_time, tile_time, ..self }
    }

    const fn shaped(self, n: u32, k: u32) -> Tile {
        Tile { n, k, ..self }
    }

    /// Whether the tile runs a weight of this shape.
    pub const fn fits(&self, n: usize, k: usize) -> bool {
        (self.n == 0 || self.n as usize == n) && (self.k == 0 || self.k as usize == k)
    }

    pub fn name(&self) -> String {
        let suffix = match self.cluster {
            Cluster::One => "",
            Cluster::Activation => "a",
            Cluster::Weight => "w",
        };
        let shared = if self.per_processor > 1 { format!("p{}", self.per_processor) } else { String::new() };
        let [n, k] = [("n", self.n), ("k", self.k)].map(|(of, number)| match number {
            0 => String::new(),
            _ => format!("{of}{number}"),
        });
        format!("{}x{}{suffix}{shared}{n}{k}", self.rows, self.columns)
    }

    /// Threads of a block: 128 load; one or two groups of 128 multiply.
    pub const fn threads(&self) -> u32 {
        128 + self.math_threads()
    }

    pub const fn math_threads(&self) -> u32 {
        if self.rows <= 64 { 128 } else { 256 }
    }

    pub const fn cluster_size(&self) -> u32 {
        match self.cluster {
            Cluster::One => 1,
            _ => 2,
        }
    }

    /// Bytes of a row of y in the swizzled store: the largest that divides a row of the tile.
    pub const fn output_swizzle(&self) -> u32 {
        let mut bytes = 128;
        while !(2 * self.columns).is_multiple_of(bytes) {
            bytes /= 2;
        }
        bytes
    }

    const fn output_bytes(&self) -> u32 {
        align(2 * self.rows * self.columns, 1024)
    }

    const fn stage_bytes(&self) -> u32 {
        (self.rows + self.columns) * DEPTH + align(4 * self.rows, 128)
    }

    /// A tile that does not divide 128 columns may need the scales of two blocks.
    const fn scale_bytes(&self, k: u32) -> u32 {
        let blocks = if DEPTH.is_multiple_of(self.columns) { 1 } else { 2 };
        align(k.div_ceil(DEPTH) * 4 * blocks, 8)
    }

    pub const fn stages(&self) -> u32 {
        let room = SHARED / self.per_processor - BARRIERS - self.output_bytes() - self.scale_bytes(MOST_K);
        let stages = room / self.stage_bytes();
        if stages < MOST_STAGES { stages } else { MOST_STAGES }
    }

    /// Dynamic shared memory of a launch.
    pub const fn shared_bytes(&self, k: u32) -> u32 {
        BARRIERS + self.output_bytes() + self.scale_bytes(k) + self.stages() * self.stage_bytes()
    }
}

const fn tile(rows: u32, columns: u32, cluster: Cluster, per_processor: u32) -> Tile {
    Tile { rows, columns, cluster, per_processor, spill: 0, block_time: 0, tile_time: 0, n: 0, k: 0 }
}

const fn one(rows: u32, columns: u32) -> Tile {
    tile(rows, columns, Cluster::One, 1)
}

const fn activation(rows: u32, columns: u32) -> Tile {
    tile(rows, columns, Cluster::Activation, 1)
}

const fn weight(rows: u32, columns: u32) -> Tile {
    tile(rows, columns, Cluster::Weight, 1)
}

const fn many(per_processor: u32, rows: u32, columns: u32) -> Tile {
    tile(rows, columns, Cluster::One, per_processor)
}

/// All of them: those that were the fastest, or within a hundredth of it, for some shape of the table of shapes on an H100
/// 80GB, of 95 that were measured; and the times that fit these measurements best. 256 rows need a cluster: without one the
/// kernel spills. N and K are compiled in for one weight of the table, whose K is short: that was 2 to 5% faster there.
pub const TILES: &[Tile] = &[
    one(16, 32).takes(178, 500),
    one(16, 48).takes(188, 500),
    one(16, 64).takes(178, 1000),
    one(16, 80).takes(251, 1000),
    many(2, 16, 32).takes(168, 1000),
    many(2, 16, 48).takes(211, 1500),
    many(2, 16, 64).takes(224, 0),
    many(4, 16, 32).takes(335, 500),
    one(32, 32).takes(158, 500),
    one(32, 64).takes(188, 1000),
    many(3, 32, 32).takes(251, 1000),
    many(2, 32, 64).takes(299, 1000),
    one(64, 32).takes(158, 500),
    one(64, 64).takes(199, 1000),
    one(64, 80).takes(237, 1000),
    one(64, 128).takes(299, 1000),
    many(2, 64, 32).takes(251, 500),
    many(2, 64, 64).takes(376, 500),
    weight(64, 64).takes(188, 1000),
    weight(64, 128).takes(282, 1000),
    one(128, 64).takes(335, 1000),
    one(128, 128).takes(474, 1000),
    weight(128, 64).takes(299, 1000),
    weight(128, 80).takes(355, 1500),
    weight(128, 96).takes(355, 1500),
    weight(128, 128).takes(422, 1500),
    weight(128, 160).takes(502, 1500),
    weight(128, 192).takes(596, 1500),
    activation(128, 160).takes(502, 1500),
    activation(128, 192).takes(596, 1500),
    weight(256, 128).spills(36).takes(796, 1500),
    activation(256, 128).spills(36).takes(796, 1500),
    weight(256, 128).shaped(32768, 512),
];
