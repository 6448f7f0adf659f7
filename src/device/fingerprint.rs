//! Fingerprints on a GPU: requests become the matrices of a launch.

use crate::error::{Result, ensure};
use crate::fingerprint::Request;
use crate::kernels::{self, FLOAT_SCALE, FingerprintArguments, HashedMatrix, MANY, NO_SCALE, PACKED_SCALE};
use crate::recipe::ScaleFormat;

use super::quantize::extent;
use super::{Device, Size, Stream};

/// Threads of a thread block, and thread blocks that a multiprocessor has at once.
const THREADS: u32 = 256;
const RESIDENT: u32 = 3;
/// Blocks of one launch.
const MOST_TILES: usize = i32::MAX as usize;
/// Bytes of a vector load.
const VECTOR: usize = 16;

/// A request as the kernel takes it.
fn matrix(request: &Request, first_tile: u32) -> Result<HashedMatrix> {
    let Request { codes, rows, origin, .. } = request;
    let first = codes.address().wrapping_add(rows.first * codes.stride[1]);
    let aligned = [first as usize, codes.stride[1], codes.stride[0]].iter().all(|value| value % VECTOR == 0);
    let mut matrix = HashedMatrix {
        codes: first,
        sum: request.sum.0.as_ptr().cast(),
        name_low: origin.name.low,
        name_high: origin.name.high,
        codes_stride: codes.stride[1] as i64,
        codes_expert: codes.stride[0] as i64,
        rows: extent(rows.count, codes)?,
        columns: extent(codes.columns(), codes)?,
        experts: extent(codes.experts(), codes)?,
        first_tile,
        expert: origin.expert,
        block_row: origin.block_row,
        block_column: origin.block_column,
        scale_kind: NO_SCALE,
        offsets: origin.packed_offset(),
        aligned: aligned as u32,
        ..HashedMatrix::NONE
    };
    if let Some(scales) = &request.scales {
        let (table, packed) = (scales.tensor, scales.format == ScaleFormat::Ue8m0Packed);
        // A column-major tensor of one row has its rows 1 apart, whatever its stride says.
        let row = if scales.padded { 1 } else { table.stride[1] };
        let first = row * if packed { rows.first } else { rows.bands };
        matrix.scales = table.address().wrapping_add(4 * first).cast_const().cast();
        matrix.scale_row = row as i64;
        matrix.scale_column = table.stride[2] as i64;
        matrix.scale_expert = table.stride[0] as i64;
        matrix.scale_kind = if packed { PACKED_SCALE } else { FLOAT_SCALE };
    }
    Ok(matrix)
}

impl Device {
    /// Enqueues checked requests: a launch for each [`MANY`].
    pub fn fingerprint(&self, requests: &[Request], stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        for request in requests {
            self.check_pointers(&[&request.codes])?;
            request.scales.iter().try_for_each(|scales| self.check_pointers(&[scales.tensor]))?;
            self.check_pointer(request.sum.0.as_ptr().cast(), "sum")?;
            let blocks = request.blocks();
            let name = request.codes.name;
            ensure!(blocks <= MOST_TILES, Unsupported, "{name} has {blocks} blocks, a GPU takes {MOST_TILES}");
        }
        let mut arguments = FingerprintArguments { count: 0, tiles: 0, matrices: [HashedMatrix::NONE; MANY] };
        for request in requests.iter().filter(|request| request.blocks() > 0) {
            if arguments.count as usize == MANY || arguments.tiles as usize + request.blocks() > MOST_TILES {
                self.launch_fingerprint(&mut arguments, stream)?;
            }
            arguments.matrices[arguments.count as usize] = matrix(request, arguments.tiles)?;
            arguments.count += 1;
            arguments.tiles += request.blocks() as u32;
        }
        self.launch_fingerprint(&mut arguments, stream)
    }

    /// Launches what was added since the last launch.
    fn launch_fingerprint(&self, arguments: &mut FingerprintArguments, stream: Stream) -> Result<()> {
        if arguments.count == 0 {
            return Ok(());
        }
        let size = Size::new(arguments.tiles.min(self.processors * RESIDENT), THREADS);
        self.launch(kernels::FINGERPRINT_BLOCKS, size, arguments, stream)?;
        (arguments.count, arguments.tiles) = (0, 0);
        Ok(())
    }
}
