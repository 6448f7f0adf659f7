//! Many weights in few launches: entries that travel with the launch, a table in device memory, and sources on the host.

use std::ffi::c_void;

use cudarc::driver::sys;

use crate::blocks::{BLOCK, Rows};
use crate::context::Staging;

use crate::error::{Result, ensure};
use crate::kernels::{self, FEW, Header, MANY, Matrix, Module};
use crate::quantize::{Health, HealthPointer, Quantize};
use crate::refit::{Entries, Manner, SOURCES, name_entry, staging_bytes};
use crate::tensor::{Dtype, Tensor};

use super::driver::check;
use super::quantize::{Batch, batch_size, header_of, is_general, matrix, tiles};
use super::{Copying, Device, Stream};

/// The matrices of one source dtype in device memory.
struct Part {
    address: sys::CUdeviceptr,
    count: u32,
    tiles: u32,
}

/// A table of weights in device memory.
pub struct DeviceTable {
    parts: [Option<Part>; SOURCES.len()],
}

impl Device {
    /// Enqueues checked entries: a launch for each source dtype and each batch of matrices.
    pub fn quantize_many(&self, entries: &dyn Entries, manner: Manner, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.check_entries(entries, true)?;
        self.check_pointer(header_of(manner).health, "health")?;
        for dtype in SOURCES {
            let mut batch = None;
            entries.visit(&mut |index, entry| {
                if entry.weight.dtype != dtype {
                    return Ok(());
                }
                let batch = batch.get_or_insert_with(|| Batch::<MANY>::new(self, stream, dtype, header_of(manner)));
                batch.add(&entry.request(manner)?).map_err(name_entry(entries.label(), index))
            })?;
            if let Some(batch) = &mut batch {
                batch.launch()?;
            }
        }
        Ok(())
    }

    /// Copies checked entries into device memory, in the form that the kernels read.
    pub fn upload(&self, entries: &dyn Entries, manner: Manner) -> Result<DeviceTable> {
        let _current = self.enter()?;
        self.check_entries(entries, true)?;
        let mut table = DeviceTable { parts: [const { None }; SOURCES.len()] };
        for (place, dtype) in table.parts.iter_mut().zip(SOURCES) {
            let mut matrices = Vec::new();
            let mut total = 0usize;
            let visited = entries.visit(&mut |index, entry| {
                if entry.weight.dtype != dtype {
                    return Ok(());
                }
                let request = entry.request(manner)?;
                for rows in request.grid.parts() {
                    let made = matrix(request.source, request.codes, &request.scales, &rows, total as u32);
                    let made = made.map_err(name_entry(entries.label(), index))?;
                    if tiles(&made) > 0 {
                        total += tiles(&made);
                        matrices.push(made);
                    }
                }
                let most = i32::MAX;
                ensure!(total <= most as usize, Unsupported, "the entries have {total} blocks, a GPU takes {most}");
                Ok(())
            });
            let stored = visited.and_then(|()| self.store(&matrices, total as u32));
            match stored {
                Ok(part) => *place = part,
                Err(error) => {
                    self.free_parts(&mut table);
                    return Err(error);
                }
            }
        }
        Ok(table)
    }

    fn store(&self, matrices: &[Matrix], tiles: u32) -> Result<Option<Part>> {
        if matrices.is_empty() {
            return Ok(None);
        }
        let (mut address, bytes) = (0, size_of_val(matrices));
        // SAFETY: our context is current; the copy is complete when the call returns.
        unsafe {
            check(sys::cuMemAlloc_v2(&mut address, bytes), "cuMemAlloc")?;
            let copied = check(sys::cuMemcpyHtoD_v2(address, matrices.as_ptr().cast(), bytes), "cuMemcpyHtoD");
            if let Err(error) = copied {
                sys::cuMemFree_v2(address);
                return Err(error);
            }
        }
        Ok(Some(Part { address, count: matrices.len() as u32, tiles }))
    }

    /// Enqueues a launch for each source dtype of the table.
    pub fn run_table(&self, table: &DeviceTable, manner: Manner, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.check_pointer(header_of(manner).health, "health")?;
        for (at, part) in table.parts.iter().enumerate() {
            let Some(part) = part else { continue };
            let header = Header {
                table: part.address as *const Matrix,
                count: part.count,
                tiles: part.tiles,
                ..header_of(manner)
            };
            let general = is_general(&header);
            let kernel = if general { kernels::BLOCKS_GENERAL_TABLE[at] } else { kernels::BLOCKS_TABLE[at] };
            self.launch(kernel, batch_size(part.tiles), &header, stream)?;
        }
        Ok(())
    }

    /// Frees a table whose runs have ended.
    pub fn free_table(&self, mut table: DeviceTable) {
        // In a forked child the memory is the parent's.
        if let Ok(_current) = self.enter() {
            self.free_parts(&mut table);
        }
    }

    fn free_parts(&self, table: &mut DeviceTable) {
        for part in table.parts.iter_mut().filter_map(Option::take) {
            // SAFETY: allocated by `store`, our context is current.
            unsafe { sys::cuMemFree_v2(part.address) };
        }
    }

    fn check_entries(&self, entries: &dyn Entries, sources: bool) -> Result<()> {
        entries.visit(&mut |index, entry| {
            let own = if sources { self.check_pointers(&[entry.weight]) } else { Ok(()) };
            own.and_then(|()| self.check_pointers(&[entry.codes, entry.scales]))
                .map_err(name_entry(entries.label(), index))
        })
    }

    /// Quantizes from host memory through the caller's staging memory.
    pub fn quantize_many_from_host(
        &self,
        entries: &dyn Entries,
        manner: Manner,
        staging: Staging,
        stream: Stream,
    ) -> Result<()> {
        self.expect_staging(entries, staging, stream)?;
        let _current = self.enter()?;
        self.check_entries(entries, false)?;
        self.check_pointer(header_of(manner).health, "health")?;
        let half = staging.bytes / 2 / 256 * 256;
        let mut copying = self.copying.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if copying.is_none() {
            *copying = Some(Copying::new()?);
        }
        let copying = copying.as_ref().expect("made above");
        // The staging memory is ours from this point of the caller's stream on.
        copying.begin(stream)?;
        let mut pieces = Pieces { device: self, copying, staging: staging.address, half, stream, next: 0 };
        entries.visit(&mut |index, entry| {
            pieces.add(&entry.request(manner)?, header_of(manner)).map_err(name_entry(entries.label(), index))
        })
    }
}

impl Device {
    /// Fails unless each weight can pass through the staging memory.
    pub fn expect_staging(&self, entries: &dyn Entries, staging: Staging, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        let (address, bytes) = (staging.address as usize, staging.bytes);
        self.check_pointer(staging.address.cast(), "staging")?;
        self.expect_not_capturing(stream, "copies through staging memory cannot be captured")?;
        ensure!(address.is_multiple_of(256), Alignment, "staging is at address {address:#x}, needs 256-byte alignment");
        entries.visit(&mut |index, entry| {
            let needed = staging_bytes(entry.weight.columns(), entry.weight.dtype);
            ensure!(
                entry.weight.is_empty() || (bytes >= needed && address != 0),
                Workspace,
                "{}[{index}]: staging has {bytes} bytes, two times 128 rows of K = {} need {needed}",
                entries.label(),
                entry.weight.columns()
            );
            Ok(())
        })
    }

    /// Fails if a refit on this stream could not begin.
    pub fn expect_ready(&self, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        [Module::Blocks, Module::Passes].into_iter().try_for_each(|module| {
            self.expect_loadable(&self.modules[module as usize], stream, "call fp8rt_context_prepare before")
        })
    }

    /// Under `FP8RT_CHECK=1`: fails unless tensors that claim to be on this device are.
    pub fn check_memory(&self, tensors: &[Option<&Tensor>]) -> Result<()> {
        let ours = |tensor: &&&Tensor| tensor.device == self.ordinal;
        tensors.iter().flatten().filter(ours).try_for_each(|tensor| self.check_pointers(&[tensor]))
    }

    /// The same of counters.
    pub fn check_health(&self, health: Option<HealthPointer>) -> Result<()> {
        health.map_or(Ok(()), |health| self.check_pointer(health.0.as_ptr().cast(), "health"))
    }

    /// Reads counters when the stream has come here.
    pub fn read_health(&self, health: HealthPointer, stream: Stream) -> Result<Health> {
        let _current = self.enter()?;
        self.expect_not_capturing(stream, "counters cannot be read in a capture")?;
        let (mut counts, address) = ([0u64; 4], health.0.as_ptr() as u64);
        self.check_pointer(address as *const c_void, "device")?;
        // SAFETY: 32 bytes of the caller's, and a place that lives until the stream has passed the copy.
        unsafe {
            let to = counts.as_mut_ptr().cast();
            let copied =
                check(sys::cuMemcpyDtoHAsync_v2(to, address, size_of_val(&counts), stream.0), "cuMemcpyDtoHAsync");
            check(sys::cuStreamSynchronize(stream.0), "cuStreamSynchronize").and(copied)?;
        }
        Ok(Health::from_counts(counts))
    }
}

/// Pieces of weights, alternating between the halves of the staging memory.
struct Pieces<'a> {
    device: &'a Device,
    copying: &'a Copying,
    staging: *mut u8,
    half: usize,
    stream: Stream,
    next: usize,
}

impl Pieces<'_> {
    fn add(&mut self, request: &Quantize, header: Header) -> Result<()> {
        let row = request.source.columns() * request.source.dtype.bytes();
        if request.source.is_empty() {
            return Ok(());
        }
        let most = self.half / row / BLOCK * BLOCK;
        for expert in 0..request.source.experts() {
            for part in request.grid.parts() {
                for first in (0..part.count).step_by(most) {
                    let count = (part.count - first).min(most);
                    let rows = Rows { first: part.first + first, count, bands: part.bands + first / BLOCK };
                    self.piece(request, header, expert, &rows)?;
                }
            }
        }
        Ok(())
    }

    /// Copies some rows of an expert, and quantizes them when they are there.
    fn piece(&mut self, request: &Quantize, header: Header, expert: usize, rows: &Rows) -> Result<()> {
        let side = self.next % 2;
        let target = self.staging.wrapping_add(side * self.half);
        if self.next >= 2 {
            self.copying.wait_until_read(side)?;
        }
        self.next += 1;
        let source = request.source;
        let size = source.dtype.bytes();
        let row = source.columns() * size;
        let from = source.address().wrapping_add((expert * source.stride[0] + rows.first * source.stride[1]) * size);
        if source.stride[1] == source.columns() || rows.count == 1 {
            self.copying.copy(target, from, row * rows.count)?;
        } else {
            self.copying.copy_rows(target, from, source.stride[1] * size, [row, rows.count])?;
        }
        self.copying.copied(side, self.stream)?;
        let mut piece = matrix(source, request.codes, &request.scales, rows, 0)?;
        let expert = expert as i64;
        piece.source = target.cast::<c_void>();
        piece.source_stride = source.columns() as i64;
        piece.codes = piece.codes.wrapping_add((expert * piece.codes_expert) as usize);
        piece.scales = piece.scales.cast::<u32>().wrapping_add((expert * piece.scale_expert) as usize).cast();
        piece.scale_limit -= expert * piece.scale_expert;
        piece.experts = 1;
        let codes_aligned = (piece.codes as usize).is_multiple_of(8) && piece.codes_stride % 8 == 0;
        piece.aligned = (row.is_multiple_of(16) && codes_aligned) as u32;
        if is_general(&header) {
            self.launch::<MANY>(source.dtype, header, piece)?;
        } else {
            self.launch::<FEW>(source.dtype, header, piece)?;
        }
        self.copying.read(side, self.stream)
    }

    fn launch<const N: usize>(&self, dtype: Dtype, header: Header, piece: Matrix) -> Result<()> {
        let mut batch = Batch::<N>::new(self.device, self.stream, dtype, header);
        batch.push_one(piece)?;
        batch.launch()
    }
}
