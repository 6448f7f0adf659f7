//! What every entry runs in: nothing unwinds out, and a failure leaves its message with the thread.

use std::cell::{Cell, UnsafeCell};
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Kind, Result};
use crate::log;

use super::types::fp8rt_status;

/// Bytes of a message, the zero at its end included.
const CAPACITY: usize = 512;

thread_local! {
    // Plain bytes: no destructor, so it works in any thread at any time.
    static LAST: UnsafeCell<[u8; CAPACITY]> = const { UnsafeCell::new([0; CAPACITY]) };
    static LAST_CUDA: Cell<i32> = const { Cell::new(0) };
}

/// The status of a kind of failure.
fn status(kind: Kind) -> fp8rt_status {
    match kind {
        Kind::InvalidArgument => fp8rt_status::INVALID_ARGUMENT,
        Kind::NullPointer => fp8rt_status::NULL_POINTER,
        Kind::Shape => fp8rt_status::SHAPE,
        Kind::Stride => fp8rt_status::STRIDE,
        Kind::Alignment => fp8rt_status::ALIGNMENT,
        Kind::Dtype => fp8rt_status::DTYPE,
        Kind::Device => fp8rt_status::DEVICE,
        Kind::Bounds => fp8rt_status::BOUNDS,
        Kind::Overlap => fp8rt_status::OVERLAP,
        Kind::Workspace => fp8rt_status::WORKSPACE,
        Kind::StructSize => fp8rt_status::STRUCT_SIZE,
        Kind::Unsupported => fp8rt_status::UNSUPPORTED,
        Kind::NotPrepared => fp8rt_status::NOT_PREPARED,
        Kind::NoDevice => fp8rt_status::NO_DEVICE,
        Kind::Forked => fp8rt_status::FORKED,
        Kind::OutOfMemory => fp8rt_status::OUT_OF_MEMORY,
        Kind::Cuda(_) => fp8rt_status::CUDA_ERROR,
        Kind::Internal => fp8rt_status::INTERNAL,
        Kind::Incomplete => fp8rt_status::INCOMPLETE,
        Kind::State => fp8rt_status::STATE,
    }
}

/// Runs the body of entry `function`.
#[inline]
pub fn guard(function: &str, body: impl FnOnce() -> Result<()>) -> fp8rt_status {
    log::quiet_panics();
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => fp8rt_status::OK,
        Ok(Err(error)) => fail(function, error.kind, &error.message),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            fail(function, Kind::Internal, &format!("internal fault: {}", text.unwrap_or("no message")))
        }
    }
}

#[cold]
fn fail(function: &str, kind: Kind, message: &str) -> fp8rt_status {
    LAST.with(|last| {
        // SAFETY: this thread's own bytes, and nothing here calls back.
        let last = unsafe { &mut *last.get() };
        let text = function.bytes().chain(*b": ").chain(message.bytes()).filter(|&byte| byte != 0);
        let mut length = 0;
        for (place, byte) in last[..CAPACITY - 1].iter_mut().zip(text) {
            *place = byte;
            length += 1;
        }
        // A message that was cut ends before the character that did not fit.
        if length == CAPACITY - 1 {
            length -= std::str::from_utf8(&last[..length]).map_or_else(|error| length - error.valid_up_to(), |_| 0);
        }
        last[length..].fill(0);
    });
    if let Kind::Cuda(number) = kind {
        LAST_CUDA.set(number);
    }
    status(kind)
}

/// The number of this thread's last failure of CUDA.
pub fn last_cuda_error() -> i32 {
    LAST_CUDA.get()
}

/// This thread's last message.
pub fn last_message() -> *const c_char {
    LAST.with(|last| last.get().cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::fail as fail_with;
    use std::ffi::CStr;

    fn message() -> String {
        // SAFETY: a zero-terminated buffer of this thread.
        unsafe { CStr::from_ptr(last_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_failure_names_the_function() {
        let result = guard("fp8rt_x", || fail_with!(Shape, "scales has {} columns", 31));
        assert_eq!((result, message()), (fp8rt_status::SHAPE, "fp8rt_x: scales has 31 columns".to_owned()));
        assert_eq!(guard("fp8rt_x", || Ok(())), fp8rt_status::OK);
    }

    #[test]
    fn a_panic_is_an_internal_fault() {
        let result = guard("fp8rt_x", || panic!("at {}", 7));
        assert_eq!((result, message()), (fp8rt_status::INTERNAL, "fp8rt_x: internal fault: at 7".to_owned()));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        guard("fp8rt_x", || fail_with!(Shape, "{}", "ä".repeat(CAPACITY)));
        assert!(message().len() >= CAPACITY - 3 && message().ends_with('ä'));
        guard("fp8rt_x", || fail_with!(Shape, "short"));
        assert_eq!(message(), "fp8rt_x: short");
    }
}
