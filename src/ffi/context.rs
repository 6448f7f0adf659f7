//! Contexts.

use std::ffi::c_void;
use std::sync::Arc;

use crate::context::{Context, HOST};
use crate::error::Result;

use super::convert::{descriptor, expect_flags, expect_stream, required, required_mut, shared_context};
use super::guard::guard;
use super::types::{fp8rt_context_desc, fp8rt_status};

/// The device that calls run on, with the threads that it owns. Any number of threads may use one at once; creating and
/// destroying are exclusive. It may be destroyed before the plans that were made from it.
#[allow(non_camel_case_types)] // the C name
pub struct fp8rt_context(Arc<Context>);

impl fp8rt_context {
    pub(super) fn shared(&self) -> &Context {
        &self.0
    }

    pub(super) fn share(&self) -> Arc<Context> {
        self.0.clone()
    }
}

/// Makes a context. `desc` NULL: host memory, all cores that the process may use. No thread is started before the first
/// call that needs one, or `fp8rt_context_prepare`. On a host context a forked child may go on: it starts its own threads.
///
/// Errors: UNSUPPORTED (the device needs a feature that this build lacks), NO_DEVICE, STRUCT_SIZE, INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_context_create(
    desc: *const fp8rt_context_desc,
    context: *mut *mut fp8rt_context,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_context_create", || unsafe {
        let context = required_mut(context, "context")?;
        let created = create(desc)?;
        *context = Box::into_raw(Box::new(fp8rt_context(Arc::new(created))));
        Ok(())
    })
}

unsafe fn create(desc: *const fp8rt_context_desc) -> Result<Context> {
    if desc.is_null() {
        return Context::new(HOST, 0);
    }
    // SAFETY: the caller's promise.
    let desc = unsafe { descriptor(desc, "desc") }?;
    expect_flags(desc.flags, 0)?;
    Context::new(desc.device, desc.num_threads as usize)
}

/// Destroys a context. NULL is nothing. No call may be using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_context_destroy(context: *mut fp8rt_context) -> fp8rt_status {
    guard("fp8rt_context_destroy", || {
        if !context.is_null() {
            // SAFETY: made by `fp8rt_context_create`, and used by nobody any more.
            drop(unsafe { Box::from_raw(context) });
        }
        Ok(())
    })
}

/// Does now what the first call would otherwise do: starts the threads; on a GPU, loads the kernels of every quantizing
/// function, which a captured graph then may use. May synchronize with the device; NOT_PREPARED if `stream` is being
/// captured.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_context_prepare(context: *mut fp8rt_context, stream: *mut c_void) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_context_prepare", || unsafe {
        let context = shared_context(context)?;
        expect_stream(context, stream)?;
        context.prepare(stream)
    })
}

/// The device of a context (-1: host) and the number of threads that it owns (0 on a GPU). Either pointer may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_context_query(
    context: *const fp8rt_context,
    device: *mut i32,
    num_threads: *mut u32,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_context_query", || unsafe {
        let context = required(context, "context")?.shared();
        let device = (!device.is_null()).then(|| required_mut(device, "device")).transpose()?;
        let num_threads = (!num_threads.is_null()).then(|| required_mut(num_threads, "num_threads")).transpose()?;
        if let Some(device) = device {
            *device = context.device;
        }
        if let Some(num_threads) = num_threads {
            *num_threads = context.engine().map_or(0, |engine| engine.threads.count() as u32);
        }
        Ok(())
    })
}
