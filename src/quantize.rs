//! A checked request to quantize, to compute scales or to dequantize. Weights and activations differ only in the bands of
//! rows that share a scale; what runs it is chosen by the device.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::blocks::{RowGrid, aligned_rows, groups, packed_words};
use crate::error::{Result, ensure, fail};
use crate::formats::e8m0;
use crate::recipe::{Factor, Formula, ScaleFormat};
use crate::tensor::{Dtype, FLOATS, Tensor};

/// Counts of what happened to the elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub non_finite: u64,
    pub saturated: u64,
    pub became_zero: u64,
    pub became_subnormal: u64,
}

/// The caller's counters, in the order of [`Health`]'s fields.
pub type HealthCounters = [AtomicU64; 4];

/// Where the caller's counters are: in the memory of the context's device, so not always readable here.
#[derive(Clone, Copy, Debug)]
pub struct HealthPointer(pub NonNull<HealthCounters>);

// SAFETY: an address; what dereferences it runs where the memory is, and adds atomically.
unsafe impl Send for HealthPointer {}
// SAFETY: as above.
unsafe impl Sync for HealthPointer {}

impl Health {
    /// The counts in the order of the counters.
    pub fn from_counts(counts: [u64; 4]) -> Health {
        let [non_finite, saturated, became_zero, became_subnormal] = counts;
        Health { non_finite, saturated, became_zero, became_subnormal }
    }

    /// The caller's counts.
    ///
    /// # Safety
    /// The counters lie in host memory, and nobody accesses them but atomically.
    pub unsafe fn read(counters: HealthPointer) -> Health {
        // SAFETY: the caller's promise.
        let counters = unsafe { counters.0.as_ref() };
        Health::from_counts(std::array::from_fn(|index| counters[index].load(Ordering::Relaxed)))
    }

    /// Adds these counts to the caller's.
    ///
    /// # Safety
    /// The counters lie in host memory, and nobody accesses them but atomically.
    pub unsafe fn add_to(&self, counters: HealthPointer) {
        // SAFETY: the caller's promise.
        let counters = unsafe { counters.0.as_ref() };
        let counts = [self.non_finite, self.saturated, self.became_zero, self.became_subnormal];
        for (counter, count) in counters.iter().zip(counts) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Whose tensor it is: how rows share scales, and which layouts its scales may have.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    Weight {
        part_rows: &'a [i64],
    },
    /// Whole bands of one part of a weight, whose scales lie among those of the others. `padding` rows below them read as
    /// zero if they are column-major.
    Bands {
        padding: usize,
    },
    Activation,
}

impl<'a> Subject<'a> {
    /// What messages call the tensor.
    pub fn name(&self) -> &'static str {
        match self {
            Subject::Weight { .. } | Subject::Bands { .. } => "weight",
            Subject::Activation => "activation",
        }
    }

    fn grid(&self, rows: usize) -> Result<RowGrid<'a>> {
        match self {
            Subject::Weight { part_rows } => RowGrid::of_weight(rows, part_rows),
            Subject::Bands { .. } => RowGrid::of_weight(rows, &[]),
            Subject::Activation => Ok(RowGrid::of_activation(rows)),
        }
    }

    /// Shape of the scales of a tensor of these extents.
    pub fn scales_shape(&self, shape: [usize; 3], format: ScaleFormat) -> Result<[usize; 3]> {
        let grid = self.grid(shape[1])?;
        Ok(match format {
            ScaleFormat::Ue8m0Packed => [shape[0], shape[1], packed_words(shape[2])],
            _ => [shape[0], grid.bands(), groups(shape[2])],
        })
    }
}

/// A scale tensor that fits its matrix.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    pub tensor: &'a Tensor,
    pub format: ScaleFormat,
    /// Column-major: rows 1 apart, whatever the strides of few rows say.
    pub padded: bool,
    /// Rows below the last that must read as zero.
    pub padding: usize,
}

/// Where the rows of a band have their scale.
#[derive(Clone, Copy, Debug)]
pub struct ScaleRow {
    pub expert: usize,
    pub band: usize,
    pub row: usize,
}

impl<'a> Scales<'a> {
    /// Checks dtype, shape, strides and bounds against a matrix of these extents.
    pub fn new(tensor: &'a Tensor, format: ScaleFormat, subject: &Subject, matrix: &Tensor) -> Result<Scales<'a>> {
        let packed = format == ScaleFormat::Ue8m0Packed;
        tensor.expect_dtype(if packed { &[Dtype::Int32] } else { &[Dtype::F32] })?;
        tensor.expect_rank(matrix.rank)?;
        let shape = subject.scales_shape(matrix.shape, format)?;
        let (name, whose) = (tensor.name, subject.name());
        let (given, needed) = (tensor.shape, shape);
        ensure!(given[0] == needed[0], Shape, "{name} has {} experts, {whose} has {}", given[0], needed[0]);
        let rows_letter = if matches!(subject, Subject::Activation) { "M" } else { "N" };
        ensure!(
            given[1] == needed[1],
            Shape,
            "{name} has {} rows, {whose} with {rows_letter} = {} needs {}",
            given[1],
            matrix.rows(),
            needed[1]
        );
        ensure!(
            given[2] == needed[2],
            Shape,
            "{name} has {} columns, {whose} with K = {} needs {}",
            given[2],
            matrix.columns(),
            needed[2]
        );
        let padded = match (packed, subject) {
            (false, Subject::Weight { .. } | Subject::Bands { .. }) => false,
            (false, Subject::Activation) if tensor.stride[2] == 1 => false,
            _ => {
                expect_aligned_columns(tensor)?;
                true
            }
        };
        let padding = match (padded, subject) {
            (false, _) => 0,
            (true, &Subject::Bands { padding }) => padding,
            (true, _) => aligned_rows(tensor.rows()) - tensor.rows(),
        };
        let scales = Scales { tensor, format, padded, padding };
        scales.written().expect_no_self_overlap()?;
        Ok(scales)
    }

    /// All that a call which writes the scales writes: the padding too.
    pub fn written(&self) -> Tensor {
        if self.padded { self.tensor.padded(self.padding) } else { *self.tensor }
    }

    /// Zeroes the padding rows of a column-major tensor.
    ///
    /// # Safety
    /// Nobody else uses the memory of the tensor.
    pub unsafe fn zero_padding(&self) {
        if self.padded {
            // SAFETY: `new` saw a column stride that covers the padding; the rest is the caller's promise.
            unsafe { self.tensor.zero_padding(self.padding) };
        }
    }

    /// The scale of one group.
    ///
    /// # Safety
    /// The indices lie within the matrix, and nobody writes the scale meanwhile.
    #[inline(always)]
    pub unsafe fn read(&self, at: ScaleRow, group: usize) -> f32 {
        // SAFETY: `new` saw the shape that belongs to the matrix.
        unsafe {
            match self.format {
                ScaleFormat::Ue8m0Packed => {
                    let word = *self.tensor.at::<u32>(at.expert, at.row, group / 4);
                    e8m0::to_f32((word >> (8 * (group % 4))) as u8)
                }
                _ => *self.tensor.at::<f32>(at.expert, at.band, group),
            }
        }
    }
}

/// Column-major, with a column stride that TMA takes.
fn expect_aligned_columns(tensor: &Tensor) -> Result<()> {
    let (name, axis, step) = (tensor.name, tensor.rank - 1, tensor.stride[2]);
    ensure!(
        tensor.rows() <= 1 || tensor.stride[1] == 1 || tensor.is_empty(),
        Stride,
        "{name} has strides {} and {step}, must be row-major (columns 1 apart) or column-major (rows 1 apart)",
        tensor.stride[1]
    );
    if tensor.columns() > 1 && !tensor.is_empty() {
        ensure!(
            step.is_multiple_of(4) && step >= tensor.rows(),
            Stride,
            "{name} has stride[{axis}] = {step}, a column-major one needs a multiple of 4 that is at least {}",
            tensor.rows()
        );
    }
    Ok(())
}

/// Where scales come from.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// From amax, and stored.
    Compute(Formula),
    /// Read.
    Given,
}

/// A checked quantization.
pub struct Quantize<'a> {
    pub source: &'a Tensor,
    /// `None`: only the scales are wanted.
    pub codes: Option<&'a Tensor>,
    pub scales: Scales<'a>,
    pub rule: Rule,
    pub grid: RowGrid<'a>,
    pub health: Option<HealthPointer>,
}

/// A checked dequantization.
pub struct Dequantize<'a> {
    pub codes: &'a Tensor,
    pub scales: Scales<'a>,
    pub output: &'a Tensor,
    pub grid: RowGrid<'a>,
}

/// Checks of one matrix of values or codes.
#[inline]
fn expect_matrix(tensor: &Tensor, subject: &Subject, dtypes: &[Dtype]) -> Result<()> {
    tensor.expect_dtype(dtypes)?;
    match subject {
        Subject::Activation => tensor.expect_rank(2)?,
        Subject::Weight { .. } | Subject::Bands { .. } => {
            let (name, rank) = (tensor.name, tensor.rank);
            ensure!(rank >= 2, Shape, "{name} has rank {rank}, must be 2 or, with experts, 3");
        }
    }
    tensor.expect_rows_contiguous()
}

/// Checks of the codes and scales of a weight.
pub fn expect_weight(codes: &Tensor, scales: &Tensor, subject: &Subject, format: ScaleFormat) -> Result<()> {
    expect_matrix(codes, subject, &[Dtype::E4m3])?;
    let scales = Scales::new(scales, format, subject, codes)?;
    codes.expect_apart(&scales.written())
}

#[inline]
fn expect_same_shape(tensor: &Tensor, other: &Tensor) -> Result<()> {
    let shown = |t: &Tensor| format!("{:?}", &t.shape[3 - t.rank..]);
    ensure!(
        tensor.rank == other.rank && tensor.shape == other.shape,
        Shape,
        "{} has shape {}, {} has {}",
        tensor.name,
        shown(tensor),
        other.name,
        shown(other)
    );
    Ok(())
}

/// The tensors of a quantization, unchecked.
pub struct Operands<'a> {
    pub source: &'a Tensor,
    pub codes: Option<&'a Tensor>,
    pub scales: &'a Tensor,
}

impl<'a> Quantize<'a> {
    #[inline]
    pub fn new(
        subject: Subject<'a>,
        operands: Operands<'a>,
        format: ScaleFormat,
        rule: Rule,
        health: Option<HealthPointer>,
    ) -> Result<Quantize<'a>> {
        let Operands { source, codes, scales } = operands;
        expect_matrix(source, &subject, FLOATS)?;
        if let Some(codes) = codes {
            expect_matrix(codes, &subject, &[Dtype::E4m3])?;
            expect_same_shape(codes, source)?;
        }
        let scales = Scales::new(scales, format, &subject, source)?;
        let touched = if matches!(rule, Rule::Compute(_)) { scales.written() } else { *scales.tensor };
        if let Some(codes) = codes {
            codes.expect_apart(source)?;
            codes.expect_apart(&touched)?;
        }
        if matches!(rule, Rule::Compute(_)) {
            touched.expect_apart(source)?;
        }
        if let Some(health) = health {
            let (address, bytes) = (health.0.as_ptr() as usize, size_of::<HealthCounters>());
            for tensor in [Some(source), codes, Some(&touched)].into_iter().flatten() {
                tensor.expect_apart_from_memory("health", address, bytes)?;
            }
        }
        let grid = subject.grid(source.rows())?;
        Ok(Quantize { source, codes, scales, rule, grid, health })
    }

    /// Scale and factor of a group, from its amax or from memory.
    ///
    /// # Safety
    /// As [`Scales::read`].
    #[inline(always)]
    pub unsafe fn scale(&self, at: ScaleRow, group: usize, amax: impl FnOnce() -> f32) -> (f32, Factor) {
        match self.rule {
            Rule::Compute(formula) => formula.scale(amax()),
            Rule::Given => {
                // SAFETY: the caller's promise.
                let scale = unsafe { self.scales.read(at, group) };
                (scale, Factor::Divide(scale))
            }
        }
    }
}

impl<'a> Dequantize<'a> {
    pub fn new(
        subject: Subject<'a>,
        codes: &'a Tensor,
        scales: &'a Tensor,
        format: ScaleFormat,
        output: &'a Tensor,
    ) -> Result<Dequantize<'a>> {
        expect_matrix(codes, &subject, &[Dtype::E4m3])?;
        expect_matrix(output, &subject, FLOATS)?;
        expect_same_shape(output, codes)?;
        let scales = Scales::new(scales, format, &subject, codes)?;
        output.expect_apart(codes)?;
        output.expect_apart(scales.tensor)?;
        let grid = subject.grid(codes.rows())?;
        Ok(Dequantize { codes, scales, output, grid })
    }
}

/// A compact scale tensor for a matrix of these extents: shape, strides and bytes.
pub struct ScalesLayout {
    pub dtype: Dtype,
    pub shape: [usize; 3],
    pub stride: [usize; 3],
    pub bytes: usize,
}

impl ScalesLayout {
    /// `column_major` asks for the layout of TMA; packed scales have no other.
    pub fn new(subject: &Subject, shape: [usize; 3], format: ScaleFormat, column_major: bool) -> Result<ScalesLayout> {
        let packed = format == ScaleFormat::Ue8m0Packed;
        let extents = subject.scales_shape(shape, format)?;
        let [experts, rows, columns] = extents;
        let (rows_apart, columns_apart) = if column_major || packed { (1, aligned_rows(rows)) } else { (columns, 1) };
        let stored_rows = if column_major || packed { aligned_rows(rows) } else { rows };
        let per_expert = columns.checked_mul(stored_rows);
        let bytes = per_expert.and_then(|elements| elements.checked_mul(experts)).and_then(|e| e.checked_mul(4));
        let (Some(per_expert), Some(bytes)) = (per_expert, bytes) else {
            fail!(Shape, "the scales of {shape:?} exceed the address space");
        };
        let dtype = if packed { Dtype::Int32 } else { Dtype::F32 };
        Ok(ScalesLayout { dtype, shape: extents, stride: [per_expert, rows_apart, columns_apart], bytes })
    }
}
