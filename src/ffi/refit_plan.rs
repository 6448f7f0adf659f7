//! The refit plan: a whole model by name, bucket after bucket, and the proof that nothing is missing.

use std::ffi::{c_char, c_void};

use crate::context::{Context, HOST};
use crate::error::{Error, Result, ensure, fail};
use crate::recipe::{Formula, Recipe};
use crate::refit::{DestinationSpec, Item, Items, Model, Refit, RegionSpec, State, Window};
use crate::tensor::{Dtype, Tensor};

use super::context::fp8rt_context;
use super::convert::{
    Place, array, descriptor, expect_descriptor, expect_flags, expect_present, expect_stream, extent, floor,
    health as counters, part_rows, recipe, required, required_mut, scale_format, shared_context, staging as staging_of,
    tensor, tensor_on, text, write_descriptor, write_text,
};
use super::guard::guard;
use super::refit::fp8rt_weight_table;
use super::types::*;

/// A whole model that is refitted in place, again and again: its parameters at fixed addresses, the names of the tensors
/// that fill them, and what is filled so far. One thread at a time uses one.
#[allow(non_camel_case_types)] // the C name
pub struct fp8rt_refit(pub(super) Refit);

/// Makes a refit plan. Names and descriptions are copied; the memory of the destinations must stay while the plan is used.
/// A destination that no region mentions is filled by tensors of its own name: whole, part by part, expert by expert.
///
/// Refused: a name that two destinations have; regions of one destination that overlap, or that leave some of it unfilled
/// (unless FP8RT_REFIT_DESTINATION_PARTLY); one that cuts through a block, naming the row. That the memory of different
/// destinations does not overlap is not checked. The context may be destroyed before the plan.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_create(
    context: *mut fp8rt_context,
    desc: *const fp8rt_refit_desc,
    refit: *mut *mut fp8rt_refit,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_create", || unsafe {
        let refit = required_mut(refit, "refit")?;
        let context = required(context, "context")?.share();
        expect_present(desc, "desc")?;
        let desc = descriptor(desc, "desc")?;
        expect_flags(desc.flags, 0)?;
        let given = array(desc.destinations, desc.num_destinations, "destinations", "num_destinations")?;
        let mut destinations = Vec::with_capacity(given.len());
        for (index, given) in given.iter().enumerate() {
            destinations.push(destination(&context, given).map_err(label("destinations", index))?);
        }
        let given = array(desc.regions, desc.num_regions, "regions", "num_regions")?;
        let mut regions = Vec::with_capacity(given.len());
        for (index, given) in given.iter().enumerate() {
            regions.push(region(given).map_err(label("regions", index))?);
        }
        let model = Model::new(&destinations, &regions)?;
        *refit = Box::into_raw(Box::new(fp8rt_refit(Refit::new(context, model))));
        Ok(())
    })
}

/// Destroys a refit plan. NULL is nothing. Work that it enqueued goes on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_destroy(refit: *mut fp8rt_refit) -> fp8rt_status {
    guard("fp8rt_refit_destroy", || {
        if !refit.is_null() {
            // SAFETY: made by `fp8rt_refit_create`, and used by nobody any more.
            drop(unsafe { Box::from_raw(refit) });
        }
        Ok(())
    })
}

/// Begins a refit: nothing counts as filled. In any state; what was begun before is given up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_begin(refit: *mut fp8rt_refit) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_begin", || unsafe {
        required_mut(refit, "refit")?.0.begin();
        Ok(())
    })
}

/// Brings `count` tensors, in any order: what they fill is enqueued on `stream` before this returns, in few launches, and
/// counts as filled. The bits are those of fp8rt_quantize_weight on each region by itself, in the recipe, format and parts
/// of its destination; what is kept, or quantized already, is copied. Items are read during the call only.
///
/// Tensors lie on the context's device, or on the host (device -1). From there values pass through `staging`, device
/// memory as for fp8rt_quantize_weights_from_host, and the rest is copied directly; not during capture. NULL and 0 if
/// there are none. The sources may be changed when the stream has passed this call.
///
/// What no region wants of a tensor is left alone: rows of other ranks. A name that nothing knows is an error, and so is a
/// cut through a block (the message names the row), and a block that is filled since fp8rt_refit_begin. If anything is
/// wrong, nothing is enqueued and nothing changes. If CUDA fails while the work is enqueued, the state is FAILED: then
/// fp8rt_refit_begin is the only way on.
///
/// `health`: NULL, or counters to add to. `regions_written`: NULL, or receives the number of boxes written. After the first
/// call of its size a run allocates nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_run(
    refit: *mut fp8rt_refit,
    items: *const fp8rt_refit_item,
    count: u32,
    staging: *mut c_void,
    staging_bytes: u64,
    health: *mut fp8rt_health,
    regions_written: *mut u64,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_run", || unsafe {
        let refit = &mut required_mut(refit, "refit")?.0;
        let health = counters(health)?;
        let written = (!regions_written.is_null()).then(|| required_mut(regions_written, "regions_written"));
        let written = written.transpose()?;
        expect_stream(refit.context(), stream)?;
        let given = Given::new(refit.context().device, items, count)?;
        let regions = refit.run(&given, staging_of(staging, staging_bytes), health, stream)?;
        if let Some(written) = written {
            *written = regions as u64;
        }
        Ok(())
    })
}

/// Ends a refit, on the host: OK if every block of every region is filled. Otherwise INCOMPLETE: the message names the
/// first that is missing and says how many are, fp8rt_refit_missing lists them, and the refit stays open. `flags`: 0 or
/// FP8RT_REFIT_PARTIAL. `receipt`: NULL, or what was done, written on success; set receipt->struct_size first.
///
/// It does not wait: the destinations are new when the stream has passed the runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_finish(
    refit: *mut fp8rt_refit,
    flags: u32,
    receipt: *mut fp8rt_refit_receipt,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_finish", || unsafe {
        let refit = &mut required_mut(refit, "refit")?.0;
        expect_flags(flags, FP8RT_REFIT_PARTIAL)?;
        if !receipt.is_null() {
            // Before the state changes.
            expect_descriptor(receipt, "receipt")?;
        }
        refit.finish(flags & FP8RT_REFIT_PARTIAL != 0)?;
        if receipt.is_null() { Ok(()) } else { write_descriptor(receipt, "receipt", &receipt_of(refit)) }
    })
}

/// What the plan is, and where it stands. Set info->struct_size first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_query(refit: *const fp8rt_refit, info: *mut fp8rt_refit_info) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_query", || unsafe {
        let refit = &required(refit, "refit")?.0;
        expect_present(info, "info")?;
        write_descriptor(info, "info", &info_of(refit))
    })
}

/// Writes what is not filled to `text`, as JSON, zero-terminated and cut to `capacity` bytes: an array of objects, one for
/// each region of which something is missing, with `name` (of the destination), `source`, `part` (of a destination without
/// recorded regions), `expert`, `row` and `column` (the first that is missing, in the destination), `filled` and `total`
/// blocks. `length` (may be NULL) receives the whole length without the zero. `text` may be NULL if `capacity` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_missing(
    refit: *const fp8rt_refit,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_missing", || unsafe {
        let missing = required(refit, "refit")?.0.missing();
        write_text(&missing, text, capacity, length)
    })
}

/// Writes the name of source `index`, below num_sources, as fp8rt_refit_missing writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_source_name(
    refit: *const fp8rt_refit,
    index: u32,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_source_name", || unsafe {
        let sources = &required(refit, "refit")?.0.model().sources;
        let Some(source) = sources.get(index as usize) else {
            fail!(InvalidArgument, "index is {index}, there are {} sources", sources.len())
        };
        write_text(&source.name, text, capacity, length)
    })
}

/// Makes a table of items at fixed addresses, all on the context's device: fp8rt_weight_table_run then does what a run with
/// these items would, and may be captured and replayed. It knows nothing of begin and finish. As
/// fp8rt_weight_table_create.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_bind(
    refit: *const fp8rt_refit,
    items: *const fp8rt_refit_item,
    count: u32,
    table: *mut *mut fp8rt_weight_table,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_bind", || unsafe {
        let table = required_mut(table, "table")?;
        let refit = &required(refit, "refit")?.0;
        let given = Given { only_device: true, ..Given::new(refit.context().device, items, count)? };
        let bound = refit.bind(&given)?;
        *table = Box::into_raw(Box::new(fp8rt_weight_table(bound)));
        Ok(())
    })
}

/// Quantizes items as a run would, each into the views of the same index in `codes` and `scales` instead of the
/// destinations: E4M3 of the item's shape, and scales as fp8rt_weight_scales_layout says, one grid a part if the item is a
/// whole destination with parts. For resharding libraries; nothing counts as filled, in any state. Items lie on the
/// context's device. Refused where the blocks of the item would not be those of the regions that want some of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_quantize_into(
    refit: *const fp8rt_refit,
    items: *const fp8rt_refit_item,
    codes: *const fp8rt_tensor,
    scales: *const fp8rt_tensor,
    count: u32,
    health: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_quantize_into", || unsafe {
        let refit = &required(refit, "refit")?.0;
        let health = counters(health)?;
        expect_stream(refit.context(), stream)?;
        let codes = array(codes, count, "codes", "count")?;
        let scales = array(scales, count, "scales", "count")?;
        let given = Given::new(refit.context().device, items, count)?;
        refit.quantize_into(&Given { only_device: true, targets: Some((codes, scales)), ..given }, health, stream)
    })
}

/// Synchronizes with `stream`, and copies counters of the context's device to `host`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_health_read(
    context: *mut fp8rt_context,
    device: *const fp8rt_health,
    host: *mut fp8rt_health,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_health_read", || unsafe {
        let context = shared_context(context)?;
        let Some(health) = counters(device.cast_mut())? else { fail!(NullPointer, "device is NULL") };
        let host = required_mut(host, "host")?;
        expect_stream(context, stream)?;
        let read = context.read_health(health, stream)?;
        *host = fp8rt_health {
            non_finite: read.non_finite,
            saturated: read.saturated,
            became_zero: read.became_zero,
            became_subnormal: read.became_subnormal,
        };
        Ok(())
    })
}

/// Puts the number of an argument before a message about it.
fn label(what: &'static str, index: usize) -> impl FnOnce(Error) -> Error {
    move |error| Error { message: format!("{what}[{index}]: {}", error.message), ..error }
}

/// # Safety
/// As the header asks.
unsafe fn destination<'a>(context: &Context, given: &'a fp8rt_refit_destination) -> Result<DestinationSpec<'a>> {
    ensure!(given.reserved == 0, InvalidArgument, "reserved is {}, must be 0", given.reserved);
    expect_flags(given.flags, FP8RT_REFIT_DESTINATION_FLOOR | FP8RT_REFIT_DESTINATION_PARTLY)?;
    let format = scale_format(given.scale_format, "scale_format")?;
    let recipe = recipe(given.recipe, "recipe", Recipe::NemoRl)?;
    let floor = floor(given.flags & FP8RT_REFIT_DESTINATION_FLOOR != 0, given.floor)?;
    // SAFETY: the caller's promise.
    unsafe {
        let name = text(given.name, "name")?;
        let mut places = [Place::uninit(); 2];
        let [codes_place, scales_place] = &mut places;
        let values = *tensor(context, &given.codes, "codes", codes_place)?;
        let scales = scales_of(&values, &given.scales, context.device, scales_place)?;
        Ok(DestinationSpec {
            name,
            values,
            scales: scales.copied(),
            part_rows: part_rows(given.part_rows, given.num_parts)?,
            formula: Formula::new(recipe, format, floor),
            format,
            partly: given.flags & FP8RT_REFIT_DESTINATION_PARTLY != 0,
        })
    }
}

/// The scales that belong to codes; `None` beside values.
///
/// # Safety
/// As the header asks.
unsafe fn scales_of<'a>(
    codes: &Tensor,
    given: &fp8rt_tensor,
    device: i32,
    place: &'a mut Place,
) -> Result<Option<&'a Tensor>> {
    if codes.dtype == Dtype::E4m3 {
        // SAFETY: the caller's promise.
        return unsafe { tensor_on(device, given, "scales", place) }.map(Some);
    }
    ensure!(given.data.is_null(), Dtype, "{} has dtype {}, scales belong to e4m3", codes.name, codes.dtype);
    Ok(None)
}

/// # Safety
/// As the header asks.
unsafe fn region(given: &fp8rt_refit_region) -> Result<RegionSpec<'_>> {
    ensure!(given.reserved == 0, InvalidArgument, "reserved is {}, must be 0", given.reserved);
    let all = |values: &[i64; 3], name: &str| -> Result<[usize; 3]> {
        let [first, second, third] = *values;
        Ok([extent(first, name)?, extent(second, name)?, extent(third, name)?])
    };
    Ok(RegionSpec {
        // SAFETY: the caller's promise.
        source: unsafe { text(given.source, "source") }?,
        destination: given.destination as usize,
        source_first: all(&given.source_first, "source_first")?,
        target: Window {
            first: all(&given.destination_first, "destination_first")?,
            extent: all(&given.extent, "extent")?,
        },
    })
}

fn state_of(refit: &Refit) -> u32 {
    (match refit.state() {
        State::Idle => fp8rt_refit_state::IDLE,
        State::Open => fp8rt_refit_state::OPEN,
        State::Failed => fp8rt_refit_state::FAILED,
    }) as u32
}

fn info_of(refit: &Refit) -> fp8rt_refit_info {
    let model = refit.model();
    let (read, written) = refit.whole_bytes();
    fp8rt_refit_info {
        struct_size: 0,
        state: state_of(refit),
        num_destinations: model.destinations.len() as u32,
        num_sources: model.sources.len() as u32,
        num_regions: model.regions.len() as u32,
        destinations_filled: refit.destinations_filled() as u32,
        cut_on_blocks: model.cut_on_blocks() as u32,
        reserved: 0,
        blocks_filled: refit.blocks_filled() as u64,
        blocks_total: model.total_units() as u64,
        bytes_read: read as u64,
        bytes_written: written as u64,
        staging_bytes: refit.staging_bytes() as u64,
    }
}

fn receipt_of(refit: &Refit) -> fp8rt_refit_receipt {
    let (model, done) = (refit.model(), refit.receipt());
    fp8rt_refit_receipt {
        struct_size: 0,
        destinations_filled: refit.destinations_filled() as u32,
        num_destinations: model.destinations.len() as u32,
        reserved: 0,
        blocks_filled: refit.blocks_filled() as u64,
        blocks_total: model.total_units() as u64,
        items: done.items,
        regions_written: done.regions_written,
        bytes_read: done.bytes_read,
        bytes_written: done.bytes_written,
    }
}

/// The caller's items.
pub(super) struct Given<'a> {
    device: i32,
    items: &'a [fp8rt_refit_item],
    /// Whether the host is no place for them.
    pub(super) only_device: bool,
    /// Codes and scales that they become, item by item.
    targets: Option<(&'a [fp8rt_tensor], &'a [fp8rt_tensor])>,
}

impl<'a> Given<'a> {
    /// # Safety
    /// `count` readable items.
    pub(super) unsafe fn new(device: i32, items: *const fp8rt_refit_item, count: u32) -> Result<Given<'a>> {
        // SAFETY: the caller's promise.
        let items = unsafe { array(items, count, "items", "count") }?;
        Ok(Given { device, items, only_device: false, targets: None })
    }

    /// The item, checked as to memory.
    ///
    /// # Safety
    /// Memory as the header asks.
    unsafe fn item<'b>(&'b self, index: usize, name: &'b str, places: &'b mut [Place; 4]) -> Result<Item<'b>> {
        let given = &self.items[index];
        expect_flags(given.flags, FP8RT_REFIT_ITEM_PART | FP8RT_REFIT_ITEM_EXPERT)?;
        let [weight_place, scales_place, codes_place, target_scales_place] = places;
        let device = if given.weight.device == HOST && !self.only_device { HOST } else { self.device };
        // SAFETY: the caller's promise.
        unsafe {
            let weight = tensor_on(device, &given.weight, "weight", weight_place)?;
            let scales = scales_of(weight, &given.scales, device, scales_place)?;
            let target = match self.targets {
                None => None,
                Some((codes, scales)) => Some((
                    tensor_on(self.device, &codes[index], "codes", codes_place)?,
                    tensor_on(self.device, &scales[index], "scales", target_scales_place)?,
                )),
            };
            let part = (given.flags & FP8RT_REFIT_ITEM_PART != 0).then_some(given.part);
            let has_expert = given.flags & FP8RT_REFIT_ITEM_EXPERT != 0;
            let expert = has_expert.then(|| extent(given.expert, "expert")).transpose()?;
            let first = [extent(given.first_row, "first_row")?, extent(given.first_column, "first_column")?];
            Ok(Item { name, part, expert, first, weight, scales, target })
        }
    }
}

impl Items for Given<'_> {
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Item) -> Result<()>) -> Result<()> {
        for (index, given) in self.items.iter().enumerate() {
            let mut places = [Place::uninit(); 4];
            // SAFETY: a struct within the caller's array, with memory as the header asks.
            let item = unsafe {
                let name = text(given.name, "name").map_err(label("items", index))?;
                let named =
                    |error: Error| Error { message: format!("items[{index}] ({name}): {}", error.message), ..error };
                self.item(index, name, &mut places).map_err(named)?
            };
            visitor(index, &item)?;
        }
        Ok(())
    }
}
