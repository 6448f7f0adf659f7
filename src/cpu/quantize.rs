//! The drivers over a matrix: which piece of it a task takes, amax before codes while the piece is in the cache.

use std::marker::PhantomData;

use crate::blocks::{BLOCK, PACKED, groups};
use crate::error::Result;
use crate::formats::e8m0;
use crate::quantize::{Health, Quantize, Rule, ScaleRow};
use crate::recipe::{Factor, ScaleFormat};
use crate::tensor::Dtype;

use super::Engine;
use super::isa::Kernel;
use super::lanes::Instructions;
use super::segment::{Amax, Bf16, Divided, Element, F16, Given, InRange, Multiplied, Scaling, encode, examine};

/// Groups that a piece spans: of a block row of bf16, 128 x 1024 elements are 256 KiB, which the second-level cache
/// holds between the two passes, read in runs of 2 KiB. A multiple of [`PACKED`], so that no two pieces share a word.
const PIECE_GROUPS: usize = 4;
const _: () = assert!(PIECE_GROUPS.is_multiple_of(PACKED));

/// Bytes that memory is fetched in.
const CACHE_LINE: usize = 64;

/// Elements that a task takes at least, so that taking it costs little beside doing it.
const TASK_ELEMENTS: usize = 512 * 1024;

/// Runs a checked quantization. Equal to `reference::quantize` in every byte.
pub fn quantize(engine: &Engine, request: &Quantize) -> Result<()> {
    match request.source.dtype {
        Dtype::Bf16 => pieces::<Bf16>(engine, request)?,
        Dtype::F16 => pieces::<F16>(engine, request)?,
        _ => pieces::<f32>(engine, request)?,
    }
    if matches!(request.rule, Rule::Compute(_)) {
        // SAFETY: the tasks are done, and the caller gave the scales to this call alone.
        unsafe { request.scales.zero_padding() };
    }
    Ok(())
}

/// The cut of a matrix into pieces: [`PIECE_GROUPS`] groups of one band.
struct Cut {
    bands: usize,
    columns: usize,
    total: usize,
    /// Pieces of one task.
    run: usize,
}

impl Cut {
    fn new(request: &Quantize) -> Cut {
        let source = &request.source;
        let (bands, columns) = (request.grid.bands(), groups(source.columns()).div_ceil(PIECE_GROUPS));
        let total = source.experts() * bands * columns;
        let elements = source.experts() * source.rows() * source.columns();
        let piece = elements.checked_div(total).unwrap_or(0).max(1);
        Cut { bands, columns, total, run: (TASK_ELEMENTS / piece).max(1) }
    }
}

fn pieces<T: Element>(engine: &Engine, request: &Quantize) -> Result<()> {
    let cut = Cut::new(request);
    engine.threads.for_each(cut.total.div_ceil(cut.run), |_, task| {
        let range = task * cut.run..((task + 1) * cut.run).min(cut.total);
        let health = engine.isa.run(Pieces::<T> { request, cut: &cut, range, element: PhantomData });
        if let Some(counters) = request.health {
            // SAFETY: a host context has its counters in host memory.
            unsafe { health.add_to(counters) };
        }
    })
}

/// Asks for the memory at an address, where the architecture has a stable way to say so.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint; it faults on no address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}

/// Some neighboring pieces.
struct Pieces<'a, T> {
    request: &'a Quantize<'a>,
    cut: &'a Cut,
    range: std::ops::Range<usize>,
    element: PhantomData<T>,
}

impl<T: Element> Kernel for Pieces<'_, T> {
    type Output = Health;

    #[inline(always)]
    fn run<I: Instructions>(self) -> Health {
        let mut health = Health::default();
        for index in self.range.clone() {
            let next = (index + 1 < self.range.end).then(|| self.place(index + 1));
            self.piece(self.place(index), next, &mut health);
        }
        health
    }
}

/// Where a piece lies.
#[derive(Clone, Copy)]
struct Place {
    expert: usize,
    band: usize,
    /// First group.
    first: usize,
}

impl<T: Element> Pieces<'_, T> {
    #[inline(always)]
    fn place(&self, index: usize) -> Place {
        let (band_of_all, column) = (index / self.cut.columns, index % self.cut.columns);
        let (expert, band) = (band_of_all / self.cut.bands, band_of_all % self.cut.bands);
        Place { expert, band, first: column * PIECE_GROUPS }
    }

    #[inline(always)]
    fn piece(&self, place: Place, next: Option<Place>, health: &mut Health) {
        let Place { expert, band, first } = place;
        let request = self.request;
        let rows = request.grid.band(band);
        let count = (groups(request.source.columns()) - first).min(PIECE_GROUPS);
        if let Rule::Given = request.rule {
            for row in rows.begin..rows.end {
                for group in first..first + count {
                    let at = ScaleRow { expert, band, row };
                    // SAFETY: the group lies within the matrix.
                    let scale = unsafe { request.scales.read(at, group) };
                    self.run_of_codes(expert, row, group, Given(scale), health);
                }
            }
            return;
        }
        let mut amax = [Amax::<T>::new(); PIECE_GROUPS];
        for row in rows.begin..rows.end {
            for (index, amax) in amax[..count].iter_mut().enumerate() {
                amax.add(self.source_run(expert, row, first + index));
            }
        }
        let mut finite = [true; PIECE_GROUPS];
        for index in 0..count {
            finite[index] = amax[index].get().is_finite();
            if !finite[index] {
                amax[index] = self.finite_amax(place, first + index);
            }
        }
        let mut scales = [0f32; PIECE_GROUPS];
        let mut factors = [Factor::Divide(0.0); PIECE_GROUPS];
        for index in 0..count {
            let at = ScaleRow { expert, band, row: rows.begin };
            // SAFETY: the group lies within the matrix.
            (scales[index], factors[index]) = unsafe { request.scale(at, first + index, || amax[index].get()) };
        }
        self.store_scales(expert, band, first, &scales[..count]);
        if request.codes.is_none() {
            return;
        }
        for row in rows.begin..rows.end {
            if let Some(next) = next {
                self.fetch(next, row - rows.begin);
            }
            for index in 0..count {
                let group = first + index;
                match (factors[index], finite[index]) {
                    (Factor::Divide(scale), true) => {
                        self.run_of_codes(expert, row, group, InRange(Divided(scale)), health)
                    }
                    (Factor::Divide(scale), false) => self.run_of_codes(expert, row, group, Divided(scale), health),
                    (Factor::Multiply(inverse), true) => {
                        self.run_of_codes(expert, row, group, InRange(Multiplied(inverse)), health)
                    }
                    (Factor::Multiply(inverse), false) => {
                        self.run_of_codes(expert, row, group, Multiplied(inverse), health)
                    }
                }
            }
        }
    }

    /// The amax of a group that holds an infinity or NaN, over the rest of it.
    #[cold]
    #[inline(never)]
    fn finite_amax(&self, place: Place, group: usize) -> Amax<T> {
        let rows = self.request.grid.band(place.band);
        let mut amax = Amax::new();
        for row in rows.begin..rows.end {
            amax.add_finite(self.source_run(place.expert, row, group));
        }
        amax
    }

    /// Has a row of a piece brought near while this one is encoded, so that its amax does not wait for memory.
    #[inline(always)]
    fn fetch(&self, place: Place, row: usize) {
        let source = &self.request.source;
        let band = self.request.grid.band(place.band);
        let columns = place.first * BLOCK..((place.first + PIECE_GROUPS) * BLOCK).min(source.columns());
        if band.begin + row < band.end {
            for column in columns.step_by(CACHE_LINE / size_of::<T>()) {
                // SAFETY: within the matrix.
                prefetch(unsafe { source.at::<T>(place.expert, band.begin + row, column) });
            }
        }
    }

    /// First column and length of a group.
    #[inline(always)]
    fn extent(&self, group: usize) -> (usize, usize) {
        let first = group * BLOCK;
        (first, (self.request.source.columns() - first).min(BLOCK))
    }

    #[inline(always)]
    fn source_run(&self, expert: usize, row: usize, group: usize) -> &[T] {
        let (first, length) = self.extent(group);
        // SAFETY: within the matrix, whose dtype chose T; the caller does not write to it during the call.
        unsafe { self.request.source.run(expert, row, first, length) }
    }

    #[inline(always)]
    fn run_of_codes(&self, expert: usize, row: usize, group: usize, scaling: impl Scaling, health: &mut Health) {
        let Some(codes) = &self.request.codes else { return };
        let (first, length) = self.extent(group);
        let source = self.source_run(expert, row, group);
        // SAFETY: within the matrix; no other task has this group of this row.
        let codes: &mut [u8] = unsafe { codes.run_mut(expert, row, first, length) };
        encode(source, scaling, codes);
        if self.request.health.is_some() {
            let counts = examine(source, scaling, codes);
            health.non_finite += counts.non_finite;
            health.saturated += counts.saturated;
            health.became_zero += counts.became_zero;
            health.became_subnormal += counts.became_subnormal;
        }
    }

    /// Writes the scales of neighboring groups of a band.
    #[inline(always)]
    fn store_scales(&self, expert: usize, band: usize, first: usize, scales: &[f32]) {
        let request = self.request;
        let tensor = request.scales.tensor;
        if request.scales.format != ScaleFormat::Ue8m0Packed {
            for (index, &scale) in scales.iter().enumerate() {
                // SAFETY: within the scales, which have a row for each band; this task owns these groups.
                unsafe { tensor.at::<f32>(expert, band, first + index).write(scale) };
            }
            return;
        }
        let rows = request.grid.band(band);
        for (index, four) in scales.chunks(PACKED).enumerate() {
            let byte = |(place, &scale): (usize, &f32)| (e8m0::from_pow2(scale) as u32) << (8 * place);
            let word = four.iter().enumerate().map(byte).fold(0, |word, byte| word | byte);
            for row in rows.begin..rows.end {
                // SAFETY: within the scales, which have a row for each row; a piece begins on a word.
                unsafe { tensor.at::<u32>(expert, row, first / PACKED + index).write(word) };
            }
        }
    }
}
