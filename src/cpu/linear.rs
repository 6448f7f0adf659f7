//! The linear in host memory.
//!
//! One output is defined without reference to tiles, threads or instruction sets, so that all of them give the same bits:
//! over each 128 columns, lane j of 16 adds the products of columns j, j + 16, ... in that order (the product of two codes
//! is exact in float32); the lane's sum times the two scales is added to the lane's total; the 16 totals are added by
//! halves (8 + 8, 4 + 4, 2 + 2, 1 + 1). `reference::linear` says the same in plain loops.
//!
//! How it runs: some rows of x at a time are quantized and decoded to float32 in the workspace. For few rows, codes of the
//! weight are decoded in registers as they stream by. For more, each worker decodes a panel of the weight into its scratch
//! and reuses it for all rows.

mod activation;
mod tile;

use std::marker::PhantomData;

use crate::blocks::{BLOCK, groups};
use crate::error::Result;
use crate::linear::{Input, LinearRun, LinearSpec, WORKSPACE_ALIGNMENT};
use crate::tensor::Dtype;

use super::Engine;
use super::lanes::LANES;
use super::segment::{Bf16, F16};
use activation::Rows;
use tile::{Tile, TilePlace};

/// Rows of x that are worked on at a time: their totals, for a tile of the weight, stay in the second-level cache.
const CHUNK_ROWS: usize = 64;
/// Up to this many rows, the weight is decoded in registers.
const STREAMED_ROWS: usize = 4;
/// Rows of the weight in one task.
const TILE_ROWS: usize = 16;
/// Groups of columns of a panel: 32 x 512 float32 are 64 KiB.
const PANEL_GROUPS: usize = 4;
/// Rows of x that one task quantizes.
const ACTIVATION_ROWS: usize = 4;

/// Float32 elements of one worker's scratch: the panel, and the totals of a chunk.
const SCRATCH: usize = TILE_ROWS * PANEL_GROUPS * BLOCK + CHUNK_ROWS * TILE_ROWS * LANES;

/// Where things lie in the workspace, in float32 elements.
struct Layout {
    scales: usize,
    scratch: usize,
    total: usize,
}

impl Layout {
    fn new(engine: &Engine, k: usize, m: usize) -> Layout {
        const STEP: usize = WORKSPACE_ALIGNMENT / size_of::<f32>();
        let (rows, groups) = (m.min(CHUNK_ROWS), groups(k));
        let workers = if rows > STREAMED_ROWS { engine.threads.count() } else { 0 };
        let scales = rows * groups * BLOCK;
        let scratch = scales + (rows * groups).next_multiple_of(STEP);
        Layout { scales, scratch, total: scratch + workers * SCRATCH }
    }
}

/// Bytes of workspace for `m` rows.
pub fn workspace(engine: &Engine, spec: &LinearSpec, m: usize) -> usize {
    if m == 0 || spec.n == 0 {
        return 0;
    }
    Layout::new(engine, spec.k, m).total * size_of::<f32>()
}

/// Some rows of x in the workspace: codes as float32, rows padded with zeros to whole groups, and a scale a group.
#[derive(Clone, Copy)]
struct Chunk {
    /// First row, and number of rows.
    first: usize,
    rows: usize,
    groups: usize,
    codes: *mut f32,
    scales: *mut f32,
}

// SAFETY: addresses of the workspace; which task writes where is decided below.
unsafe impl Sync for Chunk {}

/// Runs a checked linear.
pub fn linear(engine: &Engine, run: &LinearRun) -> Result<()> {
    let (m, spec) = (run.m(), run.spec);
    if m == 0 || spec.n == 0 {
        return Ok(());
    }
    let layout = Layout::new(engine, spec.k, m);
    let base = run.workspace.cast::<f32>();
    for first in (0..m).step_by(CHUNK_ROWS) {
        let rows = (m - first).min(CHUNK_ROWS);
        let groups = groups(spec.k);
        let chunk = Chunk { first, rows, groups, codes: base, scales: base.wrapping_add(layout.scales) };
        quantize(engine, run, &chunk)?;
        multiply(engine, run, &chunk, Scratch(base.wrapping_add(layout.scratch)))?;
    }
    Ok(())
}

/// The scratch of all workers.
#[derive(Clone, Copy)]
struct Scratch(*mut f32);

// SAFETY: each worker uses its own part.
unsafe impl Sync for Scratch {}

impl Scratch {
    fn of(&self, worker: usize) -> *mut f32 {
        self.0.wrapping_add(worker * SCRATCH)
    }
}

/// Fills the chunk.
fn quantize(engine: &Engine, run: &LinearRun, chunk: &Chunk) -> Result<()> {
    engine.threads.for_each(chunk.rows.div_ceil(ACTIVATION_ROWS), |_, task| {
        let rows = task * ACTIVATION_ROWS..((task + 1) * ACTIVATION_ROWS).min(chunk.rows);
        match &run.input {
            Input::Values(x) if x.dtype == Dtype::Bf16 => {
                engine.isa.run(Rows::<Bf16> { run, chunk, rows, element: PhantomData })
            }
            Input::Values(x) if x.dtype == Dtype::F16 => {
                engine.isa.run(Rows::<F16> { run, chunk, rows, element: PhantomData })
            }
            _ => engine.isa.run(Rows::<f32> { run, chunk, rows, element: PhantomData }),
        }
    })
}

/// Multiplies the chunk by every tile of the weight.
fn multiply(engine: &Engine, run: &LinearRun, chunk: &Chunk, scratch: Scratch) -> Result<()> {
    const TILES: usize = BLOCK / TILE_ROWS;
    engine.threads.for_each(run.grid.bands() * TILES, |worker, task| {
        let (band, rows) = (task / TILES, run.grid.band(task / TILES));
        let first = rows.begin + task % TILES * TILE_ROWS;
        if first < rows.end {
            let place = TilePlace { band, first, rows: (rows.end - first).min(TILE_ROWS) };
            engine.isa.run(Tile { run, chunk, place, scratch: scratch.of(worker) });
        }
    })
}
