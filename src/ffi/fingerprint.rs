//! Fingerprints of weights.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::blocks::RowGrid;
use crate::context::Context;
use crate::error::{Result, ensure, fail};
use crate::fingerprint::{Limbs, Name, Origin, Request, SumPointer};
use crate::quantize::{Scales, Subject};
use crate::recipe::ScaleFormat;
use crate::tensor::{Dtype, Tensor};

use super::context::fp8rt_context;
use super::convert::{
    Place, descriptor, expect_aligned, expect_flags, expect_present, expect_stream, optional_tensor, part_rows,
    required, required_mut, scale_format, shared_context, tensor, text,
};
use super::guard::guard;
use super::refit_plan::fp8rt_refit;
use super::types::{fp8rt_fingerprint, fp8rt_fingerprint_desc, fp8rt_fingerprint_sum, fp8rt_status, fp8rt_tensor};

/// Adds the blocks of a weight to `sum`: for each a hash of its name, part, expert, block row, block column, codes and
/// scale, which the README defines. Sums add up modulo 2^128: the shards of a weight that is cut on blocks give the sum of
/// the whole, in any order and on any devices.
///
/// `codes`: E4M3 [N, K] or [experts, N, K], with `scales` as fp8rt_weight_scales_layout says for `desc->scale_format` and
/// the parts. POW2 and UE8M0_PACKED give the same sum. Or a tensor of BF16, F16 or F32 of rank 1 to 3 that is not
/// quantized, with `scales` NULL: its bytes are hashed. Elements of a row are 1 apart, rows any stride, any alignment.
///
/// `sum`: 8-byte aligned, in the memory of the context's device, zeroed by the caller before the first call that adds to
/// it. On a GPU one launch, which may be captured if fp8rt_context_prepare was called before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_fingerprint_weight(
    context: *mut fp8rt_context,
    desc: *const fp8rt_fingerprint_desc,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    sum: *mut fp8rt_fingerprint_sum,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_fingerprint_weight", || unsafe {
        let context = shared_context(context)?;
        expect_present(desc, "desc")?;
        let manner = Manner::new(&descriptor(desc, "desc")?)?;
        let mut places = [Place::uninit(); 2];
        let [codes_place, scales_place] = &mut places;
        let codes = tensor(context, codes, "codes", codes_place)?;
        let scales = optional_tensor(context, scales, "scales", scales_place)?;
        let sum = sum_pointer(sum, "sum")?;
        expect_stream(context, stream)?;
        context.fingerprint(&manner.requests(codes, scales, sum)?, stream)
    })
}

/// Copies `count` sums out of the memory of the context's device and folds them. Synchronizes with `stream`.
///
/// `values`: NULL, or room for `count` fingerprints. `total`: NULL, or the fingerprint of all sums together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_fingerprint_read(
    context: *mut fp8rt_context,
    sums: *const fp8rt_fingerprint_sum,
    count: u32,
    values: *mut fp8rt_fingerprint,
    total: *mut fp8rt_fingerprint,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_fingerprint_read", || unsafe {
        let context = shared_context(context)?;
        expect_stream(context, stream)?;
        read(context, sums, count, values, total, stream)
    })
}

/// Adds what the destinations of a plan hold to `sums`, one for each of its num_sources sources: the sum of
/// fp8rt_fingerprint_weight over the regions of the source, each at its place in the source. What no region fills does not
/// count. In any state; whether a refit is complete says fp8rt_refit_finish.
///
/// A region that nobody recorded counts by the name of its destination and its part, rows from the beginning of the part. A
/// recorded one counts by the name of its source, part 0, experts, rows and columns in the source: so engines that pack and
/// shard alike or not, and a trainer with the names of a checkpoint, compute the same, if all are cut on blocks of the
/// source (cut_on_blocks of fp8rt_refit_info). What several ranks hold is counted by each.
///
/// `sums`: as for fp8rt_fingerprint_weight. On a GPU one launch for each 240 regions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_fingerprint(
    refit: *const fp8rt_refit,
    sums: *mut fp8rt_fingerprint_sum,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_fingerprint", || unsafe {
        let refit = &required(refit, "refit")?.0;
        expect_stream(refit.context(), stream)?;
        if refit.model().sources.is_empty() {
            return Ok(());
        }
        refit.fingerprint(sum_pointer(sums, "sums")?, stream)
    })
}

/// As fp8rt_fingerprint_read, of a plan's sums. `count` must be its num_sources; value i is that of source i, which
/// fp8rt_refit_source_name names. Synchronizes with `stream`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_fingerprint_read(
    refit: *const fp8rt_refit,
    sums: *const fp8rt_fingerprint_sum,
    count: u32,
    values: *mut fp8rt_fingerprint,
    total: *mut fp8rt_fingerprint,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_fingerprint_read", || unsafe {
        let refit = &required(refit, "refit")?.0;
        let sources = refit.model().sources.len();
        ensure!(count as usize == sources, InvalidArgument, "count is {count}, the plan has {sources} sources");
        expect_stream(refit.context(), stream)?;
        read(refit.context(), sums, count, values, total, stream)
    })
}

/// Copies sums to the host, and folds them where the caller wants that.
///
/// # Safety
/// Pointers as the header asks.
pub(super) unsafe fn read(
    context: &Context,
    sums: *const fp8rt_fingerprint_sum,
    count: u32,
    values: *mut fp8rt_fingerprint,
    total: *mut fp8rt_fingerprint,
    stream: *mut c_void,
) -> Result<()> {
    ensure!(count == 0 || !sums.is_null(), NullPointer, "sums is NULL, count is {count}");
    expect_aligned(sums, "sums")?;
    expect_aligned(values, "values")?;
    let total = match total.is_null() {
        true => None,
        // SAFETY: the caller's promise.
        false => Some(unsafe { required_mut(total, "total") }?),
    };
    let mut read = vec![Limbs::default(); count as usize];
    // SAFETY: the caller's promise; limbs are four words, as the caller's are.
    unsafe { context.read(sums.cast(), read.as_mut_ptr().cast(), size_of_val(read.as_slice()), stream) }?;
    if !values.is_null() {
        for (index, limbs) in read.iter().enumerate() {
            // SAFETY: the caller has room for `count`.
            unsafe { values.add(index).write(fingerprint(limbs.fold())) };
        }
    }
    if let Some(total) = total {
        *total = fingerprint(read.iter().fold(0, |sum, limbs| limbs.fold().wrapping_add(sum)));
    }
    Ok(())
}

fn fingerprint(value: u128) -> fp8rt_fingerprint {
    fp8rt_fingerprint { low: value as u64, high: (value >> 64) as u64 }
}

/// A sum in the memory of the context's device: only the address is looked at.
pub(super) fn sum_pointer(sum: *mut fp8rt_fingerprint_sum, name: &'static str) -> Result<SumPointer> {
    const { assert!(size_of::<fp8rt_fingerprint_sum>() == size_of::<Limbs>()) };
    expect_aligned(sum, name)?;
    match NonNull::new(sum.cast()) {
        Some(pointer) => Ok(SumPointer(pointer)),
        None => fail!(NullPointer, "{name} is NULL"),
    }
}

/// What a descriptor says.
struct Manner<'a> {
    name: &'a str,
    part: u32,
    expert: u32,
    block_row: u32,
    block_column: u32,
    format: ScaleFormat,
    part_rows: &'a [i64],
}

impl<'a> Manner<'a> {
    /// # Safety
    /// The descriptor's pointers as the header asks.
    unsafe fn new(desc: &fp8rt_fingerprint_desc) -> Result<Manner<'a>> {
        expect_flags(desc.flags, 0)?;
        ensure!(desc.reserved == 0, InvalidArgument, "reserved is {}, must be 0", desc.reserved);
        let number = |value: i64, name: &'static str| match u32::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => fail!(InvalidArgument, "{name} is {value}, must be within 0 and {}", u32::MAX),
        };
        // SAFETY: the caller's promise.
        unsafe {
            Ok(Manner {
                name: text(desc.name, "name")?,
                part: desc.part,
                expert: number(desc.expert, "expert")?,
                block_row: number(desc.first_block_row, "first_block_row")?,
                block_column: number(desc.first_block_column, "first_block_column")?,
                format: scale_format(desc.scale_format, "scale_format")?,
                part_rows: part_rows(desc.part_rows, desc.num_parts)?,
            })
        }
    }

    /// A request for each part.
    fn requests<'b>(&self, codes: &'b Tensor, scales: Option<&'b Tensor>, sum: SumPointer) -> Result<Vec<Request<'b>>> {
        let subject = Subject::Weight { part_rows: self.part_rows };
        if codes.dtype == Dtype::E4m3 {
            ensure!(codes.rank >= 2, Shape, "codes has rank {}, must be 2 or, with experts, 3", codes.rank);
            ensure!(scales.is_some(), NullPointer, "scales is NULL, codes has dtype e4m3");
        } else {
            ensure!(scales.is_none(), Dtype, "codes has dtype {}, must be e4m3 where scales is not NULL", codes.dtype);
        }
        let scales = scales.map(|scales| Scales::new(scales, self.format, &subject, codes)).transpose()?;
        let parts = RowGrid::of_weight(codes.rows(), self.part_rows)?;
        let request = |(index, rows): (usize, _)| {
            let Some(part) = self.part.checked_add(index as u32) else {
                fail!(InvalidArgument, "part is {}, the part {index} after it has no number", self.part)
            };
            let name = Name::new(self.name, part);
            let Manner { expert, block_row, block_column, .. } = *self;
            Request::new(codes, scales, rows, Origin { name, expert, block_row, block_column, offset: [0; 2] }, sum)
        };
        parts.parts().enumerate().map(request).collect()
    }
}
