//! Many weights in one launch.

use std::ffi::c_void;
use std::sync::Arc;

use crate::context::Context;
use crate::error::{Result, ensure};
use crate::quantize::Subject;
use crate::recipe::Recipe;
use crate::refit::{Entries, Entry, Manner, name_entry};
use crate::table::WeightTable;

use super::context::fp8rt_context;
use super::convert::{
    Place, Quantization, array, expect_stream, health as counters, part_rows, required, required_mut,
    staging as staging_of, tensor, tensor_on,
};
use super::guard::guard;
use super::types::{fp8rt_health, fp8rt_quantize_desc, fp8rt_status, fp8rt_weight_entry};

/// Weights at fixed addresses, quantized together by one launch for each source dtype. Any number of threads may run one at
/// once; creating and destroying are exclusive.
#[allow(non_camel_case_types)] // the C name
pub struct fp8rt_weight_table(pub(super) WeightTable);

/// Quantizes `count` weights: as many calls of fp8rt_quantize_weight with one descriptor, and on a GPU one launch for each
/// source dtype (bf16, fp16, fp32) and each 240 parts. The entries travel with the launch: nothing is kept and nothing of
/// them is read after the call.
///
/// Every entry is checked before the first is enqueued; a message names the entry. That outputs of different entries do
/// not overlap is not checked. `desc` must have no parts: each entry has its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_quantize_weights(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    entries: *const fp8rt_weight_entry,
    count: u32,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_quantize_weights", || unsafe {
        let context = required(context, "context")?.shared();
        let mut manner = manner(desc)?;
        manner.health = counters(health)?;
        expect_stream(context, stream)?;
        let given = Given::new(context, entries, count, context.device)?;
        given.check(manner)?;
        context.quantize_many(&given, manner, stream)
    })
}

/// As fp8rt_quantize_weights, from host memory to a GPU: the weights (device -1, pinned if the copies shall not hold up the
/// host; elements of a row 1 apart, any row stride) are copied in pieces through `staging`, device memory of the caller,
/// 256-byte aligned, while the piece before is quantized. Its size is all the extra memory; half of it must hold 128 rows
/// of the widest weight. The sources may be changed when the stream has passed this call. One such call at a time runs on
/// a context; another waits.
///
/// Not during capture. On a host context it is fp8rt_quantize_weights, and `staging` is not used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_quantize_weights_from_host(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    entries: *const fp8rt_weight_entry,
    count: u32,
    staging: *mut c_void,
    staging_bytes: u64,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_quantize_weights_from_host", || unsafe {
        let context = required(context, "context")?.shared();
        let mut manner = manner(desc)?;
        manner.health = counters(health)?;
        expect_stream(context, stream)?;
        let given = Given::new(context, entries, count, crate::context::HOST)?;
        given.check(manner)?;
        context.quantize_many_from_host(&given, manner, staging_of(staging, staging_bytes), stream)
    })
}

/// Makes a table of `count` weights. On a GPU it allocates device memory for the table (about 120 bytes a part) and
/// synchronizes with the copy of it; not during capture. The context may be destroyed before the table.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_weight_table_create(
    context: *mut fp8rt_context,
    desc: *const fp8rt_quantize_desc,
    entries: *const fp8rt_weight_entry,
    count: u32,
    table: *mut *mut fp8rt_weight_table,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_weight_table_create", || unsafe {
        let table = required_mut(table, "table")?;
        let context = required(context, "context")?.share();
        let manner = manner(desc)?;
        let created = create(context, manner, entries, count)?;
        *table = Box::into_raw(Box::new(fp8rt_weight_table(created)));
        Ok(())
    })
}

/// # Safety
/// Pointers as the header asks.
unsafe fn create(
    context: Arc<Context>,
    manner: Manner,
    entries: *const fp8rt_weight_entry,
    count: u32,
) -> Result<WeightTable> {
    // SAFETY: the caller's promise.
    let given = unsafe { Given::new(&context, entries, count, context.device) }?;
    given.check(manner)?;
    let mut table = WeightTable::new(context.clone());
    table.add(&given, manner)?;
    Ok(table)
}

/// Quantizes every weight of the table from what its source holds when the stream comes to it. One launch for each source
/// dtype; no allocation; may be captured in a graph and replayed after the sources' contents changed, if
/// fp8rt_context_prepare was called before. `health`: NULL, or counters to add to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_weight_table_run(
    table: *mut fp8rt_weight_table,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_weight_table_run", || unsafe {
        let table = &required(table, "table")?.0;
        let health = counters(health)?;
        expect_stream(table.context(), stream)?;
        table.run(health, stream)
    })
}

/// Destroys a table. NULL is nothing. Its runs must have ended on the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_weight_table_destroy(table: *mut fp8rt_weight_table) -> fp8rt_status {
    guard("fp8rt_weight_table_destroy", || {
        if !table.is_null() {
            // SAFETY: made by `fp8rt_weight_table_create`, and used by nobody any more.
            drop(unsafe { Box::from_raw(table) });
        }
        Ok(())
    })
}

/// # Safety
/// As `Quantization::new`.
unsafe fn manner(desc: *const fp8rt_quantize_desc) -> Result<Manner> {
    // SAFETY: the caller's promise.
    let quantization = unsafe { Quantization::new(desc, Recipe::NemoRl) }?;
    let parts = quantization.part_rows.len();
    ensure!(parts == 0, InvalidArgument, "num_parts of desc is {parts}, must be 0: each entry has its own");
    Ok(Manner { formula: quantization.formula, format: quantization.format, health: None })
}

/// The caller's array.
struct Given<'a> {
    context: &'a Context,
    entries: &'a [fp8rt_weight_entry],
    /// Where the sources are.
    source_device: i32,
}

impl<'a> Given<'a> {
    /// # Safety
    /// `count` readable entries.
    unsafe fn new(
        context: &'a Context,
        entries: *const fp8rt_weight_entry,
        count: u32,
        source_device: i32,
    ) -> Result<Given<'a>> {
        // SAFETY: the caller's promise.
        let entries = unsafe { array(entries, count, "entries", "count") }?;
        Ok(Given { context, entries, source_device })
    }
}

impl Given<'_> {
    /// The entry's tensors, checked as to memory.
    ///
    /// # Safety
    /// Memory as the header asks.
    unsafe fn entry<'b>(&self, given: &'b fp8rt_weight_entry, places: &'b mut [Place; 3]) -> Result<Entry<'b>> {
        ensure!(given.reserved == 0, InvalidArgument, "reserved is {}, must be 0", given.reserved);
        let [weight_place, codes_place, scales_place] = places;
        // SAFETY: the caller's promise.
        unsafe {
            Ok(Entry {
                weight: tensor_on(self.source_device, &given.weight, "weight", weight_place)?,
                codes: tensor(self.context, &given.codes, "codes", codes_place)?,
                scales: tensor(self.context, &given.scales, "scales", scales_place)?,
                subject: Subject::Weight { part_rows: part_rows(given.part_rows, given.num_parts)? },
            })
        }
    }
}

impl Entries for Given<'_> {
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Entry) -> Result<()>) -> Result<()> {
        for (index, given) in self.entries.iter().enumerate() {
            let mut places = [Place::uninit(); 3];
            // SAFETY: a struct within the caller's array, with memory as the header asks.
            let entry = unsafe { self.entry(given, &mut places) }.map_err(name_entry(self.label(), index))?;
            visitor(index, &entry)?;
        }
        Ok(())
    }
}
