//! An op as torch sees it: a schema, and a function that takes values and leaves results in their place.

use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Kind as Fault, Result, ensure};
use crate::log;

use super::arguments::{Arguments, Kinds};
use super::shim::{Handle, Shim, Value};

/// The results of an op. Handles become torch's.
pub enum Returned {
    Nothing,
    One(Handle),
    Two(Handle, Handle),
}

impl Returned {
    /// The values and how many they are. Torch would take freed arguments for results that are not there.
    fn expect(self, results: u64) -> Result<([Value; 2], usize)> {
        let (values, count) = match self {
            Returned::Nothing => ([0; 2], 0),
            Returned::One(first) => ([first as Value, 0], 1),
            Returned::Two(first, second) => ([first as Value, second as Value], 2),
        };
        ensure!(count as u64 == results, Internal, "has {count} results here, the schema has {results}");
        Ok((values, count))
    }
}

/// An op. Results that it returns are new; what it writes to is marked in the schema.
pub trait Op {
    const NAME: &'static CStr;
    const SCHEMA: &'static CStr;
    /// The types of the schema's arguments.
    const KINDS: Kinds = Kinds::of(Self::SCHEMA);

    fn run(arguments: &Arguments) -> Result<Returned>;

    /// What torch asks instead of `run` when it traces: results with a shape and without memory. Sizes may be symbols,
    /// so only torch's own ops may look at them. An op that returns nothing has nothing to say; one that returns must
    /// have its own.
    fn fake(_: &Arguments) -> Result<Returned> {
        Ok(Returned::Nothing)
    }
}

/// The kernel for tensors with memory.
///
/// # Safety
/// Called by torch: as many values as the schema has arguments or results.
pub unsafe extern "C-unwind" fn real<O: Op>(stack: *mut Value, count: u64, results: u64) {
    // SAFETY: the caller's promise.
    unsafe { call::<O>(stack, count, results, O::run) }
}

/// The kernel for tensors without.
///
/// # Safety
/// As [`real`].
pub unsafe extern "C-unwind" fn fake<O: Op>(stack: *mut Value, count: u64, results: u64) {
    // SAFETY: the caller's promise.
    unsafe { call::<O>(stack, count, results, O::fake) }
}

/// # Safety
/// As [`real`].
unsafe fn call<O: Op>(stack: *mut Value, count: u64, results: u64, body: fn(&Arguments) -> Result<Returned>) {
    log::quiet_panics();
    // A panic ends here; torch's exception begins after it, so neither meets the other.
    let result = catch_unwind(AssertUnwindSafe(|| {
        let kinds = const { O::KINDS.as_slice() };
        let known = kinds.len();
        ensure!(count == known as u64, Internal, "called with {count} arguments, the schema has {known}");
        // SAFETY: the caller's promise.
        let values = unsafe { std::slice::from_raw_parts(stack, known) };
        // SAFETY: the same, and torch keeps to the schema that this op was registered with.
        body(&unsafe { Arguments::new(values, kinds) })
    }));
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let message = format!("internal fault: {}", text.unwrap_or("no message"));
        Err(Error { kind: Fault::Internal, message })
    });
    match result.and_then(|returned| returned.expect(results)) {
        // SAFETY: the stack has room for the results of the schema.
        Ok((values, count)) => unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), stack, count) },
        Err(error) => throw(O::NAME, &error.message),
    }
}

/// Leaves the kernel by the exception that torch itself throws for a failed check. It passes through these frames and
/// is caught by torch, who is the caller.
#[cold]
fn throw(op: &CStr, message: &str) {
    let text = format!("fp8rt::{}: {message}", op.to_string_lossy()).replace('\0', "?");
    let text = CString::new(text).expect("no zero is left");
    // SAFETY: zero-terminated texts, which torch copies; the function may unwind.
    unsafe { (Shim::get().base.check)(false, op.as_ptr(), c"libfp8rt.so".as_ptr(), 0, text.as_ptr()) };
}
