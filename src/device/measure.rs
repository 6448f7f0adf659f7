//! Measurements on a GPU: requests become the matrices of launches.

use crate::blocks::Rows;
use crate::error::{Result, ensure};
use crate::kernels::{self, MANY, MeasureArguments, MeasuredMatrix};
use crate::measure::Measurement;
use crate::recipe::ScaleFormat;
use crate::refit::SOURCES;
use crate::tensor::Dtype;

use super::quantize::{batch_size, format_number, index, matrix};
use super::{Device, Stream};

/// Blocks of one launch.
const MOST_TILES: usize = i32::MAX as usize;

impl Device {
    /// Enqueues checked requests: a launch for each source dtype and scale format, and each [`MANY`].
    pub fn measure(&self, requests: &[Measurement], stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        for request in requests {
            self.check_pointers(&[request.source, request.codes, request.scales.tensor])?;
            self.check_pointer(request.sums.0.as_ptr().cast(), "sums")?;
            let (blocks, name) = (request.blocks(), request.codes.name);
            ensure!(blocks <= MOST_TILES, Unsupported, "{name} has {blocks} blocks, a GPU takes {MOST_TILES}");
        }
        for dtype in SOURCES {
            for format in [ScaleFormat::Fp32, ScaleFormat::Pow2, ScaleFormat::Ue8m0Packed] {
                let alike = |request: &&Measurement| request.source.dtype == dtype && request.scales.format == format;
                self.measure_alike(requests.iter().filter(alike), dtype, format, stream)?;
            }
        }
        Ok(())
    }

    fn measure_alike<'a>(
        &self,
        requests: impl Iterator<Item = &'a Measurement<'a>>,
        dtype: Dtype,
        format: ScaleFormat,
        stream: Stream,
    ) -> Result<()> {
        let matrices = [MeasuredMatrix::NONE; MANY];
        let mut arguments =
            MeasureArguments { count: 0, tiles: 0, format: format_number(format), reserved: 0, matrices };
        for request in requests.filter(|request| request.blocks() > 0) {
            if arguments.count as usize == MANY || arguments.tiles as usize + request.blocks() > MOST_TILES {
                self.launch_measure(&mut arguments, dtype, stream)?;
            }
            let rows = Rows { first: 0, count: request.source.rows(), bands: 0 };
            let matrix = matrix(request.source, Some(request.codes), &request.scales, &rows, arguments.tiles)?;
            let sums = request.sums.0.as_ptr().cast();
            arguments.matrices[arguments.count as usize] = MeasuredMatrix { matrix, sums };
            arguments.count += 1;
            arguments.tiles += request.blocks() as u32;
        }
        self.launch_measure(&mut arguments, dtype, stream)
    }

    /// Launches what was added since the last launch.
    fn launch_measure(&self, arguments: &mut MeasureArguments, dtype: Dtype, stream: Stream) -> Result<()> {
        if arguments.count > 0 {
            self.launch(kernels::MEASURE_BLOCKS[index(dtype)], batch_size(arguments.tiles), arguments, stream)?;
            (arguments.count, arguments.tiles) = (0, 0);
        }
        Ok(())
    }
}
