//! What a refit did to its weights: sums, and the report made of them.

use std::ffi::{c_char, c_void};
use std::ptr::NonNull;

use crate::error::{ensure, fail};
use crate::measure::{ErrorPointer, ErrorSums};
use crate::report::Report;

use super::context::fp8rt_context;
use super::convert::{array, expect_aligned, expect_stream, required, shared_context, write_text};
use super::guard::guard;
use super::refit_plan::{Given, fp8rt_refit};
use super::types::{fp8rt_error_sums, fp8rt_refit_item, fp8rt_report_format, fp8rt_status};

/// Compares `count` items with what the destinations of the plan hold, and adds to `sums`, one for each of the plan's
/// num_sources sources. Call it after the runs that brought them, with the values that they brought: on a GPU in the same
/// stream. For reports: it reads everything once, and is not made to be fast.
///
/// Items lie on the context's device and hold values, no codes. What the plan keeps as it is adds nothing. `sums`: 8-byte
/// aligned, in the memory of the context's device, zeroed by the caller before the first call that adds to them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_measure(
    refit: *const fp8rt_refit,
    items: *const fp8rt_refit_item,
    count: u32,
    sums: *mut fp8rt_error_sums,
    stream: *mut c_void,
) -> fp8rt_status {
    const { assert!(size_of::<fp8rt_error_sums>() == size_of::<ErrorSums>()) };
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_measure", || unsafe {
        let refit = &required(refit, "refit")?.0;
        expect_aligned(sums, "sums")?;
        let Some(sums) = NonNull::new(sums.cast()) else { fail!(NullPointer, "sums is NULL") };
        expect_stream(refit.context(), stream)?;
        let mut given = Given::new(refit.context().device, items, count)?;
        given.only_device = true;
        refit.measure(&given, ErrorPointer(sums), stream)
    })
}

/// Copies `count` sums from the memory of the context's device to `host`. Synchronizes with `stream`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_error_sums_read(
    context: *mut fp8rt_context,
    device: *const fp8rt_error_sums,
    count: u32,
    host: *mut fp8rt_error_sums,
    stream: *mut c_void,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_error_sums_read", || unsafe {
        let context = shared_context(context)?;
        for (pointer, name) in [(device, "device"), (host.cast_const(), "host")] {
            ensure!(count == 0 || !pointer.is_null(), NullPointer, "{name} is NULL, count is {count}");
            expect_aligned(pointer, name)?;
        }
        expect_stream(context, stream)?;
        context.read(device.cast(), host.cast(), count as usize * size_of::<fp8rt_error_sums>(), stream)
    })
}

/// Writes a report to `text`, zero-terminated and cut to `capacity` bytes: for each layer, projection and tensor the relative
/// error that FP8 adds, the shares of elements that became zero or subnormal, and of outlier blocks, the worst first; and
/// the num_first_layers_in_bf16 and num_last_layers_in_bf16 that this suggests, with the rule in words.
///
/// `sums`: host memory, those of fp8rt_refit_measure; `count` must be the plan's num_sources. `format`: an
/// fp8rt_report_format. `length` (may be NULL) receives the whole length without the zero; `text` may be NULL if `capacity`
/// is 0. Layers and projections are read from the names of the sources (`layers.N.`, `layer.N.`, `h.N.`, `blocks.N.`,
/// `block.N.`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_refit_report(
    refit: *const fp8rt_refit,
    sums: *const fp8rt_error_sums,
    count: u32,
    format: u32,
    text: *mut c_char,
    capacity: u64,
    length: *mut u64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_refit_report", || unsafe {
        let sources = &required(refit, "refit")?.0.model().sources;
        let known = sources.len();
        ensure!(count as usize == known, InvalidArgument, "count is {count}, the plan has {known} sources");
        let make = match format {
            _ if format == fp8rt_report_format::JSON as u32 => Report::to_json,
            _ if format == fp8rt_report_format::TEXT as u32 => Report::to_text,
            _ if format == fp8rt_report_format::HTML as u32 => Report::to_html,
            _ => fail!(InvalidArgument, "format is {format}, the largest report format is 2"),
        };
        let sums = array(sums.cast::<ErrorSums>(), count, "sums", "count")?;
        let named = sources.iter().zip(sums).map(|(source, sums)| (source.name.as_str(), *sums));
        write_text(&make(&Report::new(named)), text, capacity, length)
    })
}
