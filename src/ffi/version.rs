//! Versions, errors and the log.

use std::ffi::{CString, c_char, c_void};
use std::sync::LazyLock;

use crate::log;

use super::guard::{guard, last_cuda_error, last_message};
use super::types::{fp8rt_log_callback, fp8rt_status};

/// Version of the interface that this header describes: the number in `libfp8rt.so.0`.
pub const FP8RT_ABI_VERSION: u32 = 0;

/// Version of the interface that the loaded library has. Compare with FP8RT_ABI_VERSION after dlopen.
#[unsafe(no_mangle)]
pub extern "C" fn fp8rt_abi_version() -> u32 {
    FP8RT_ABI_VERSION
}

/// One line on this build: version, features, architectures and the versions of what is compiled in. Static.
#[unsafe(no_mangle)]
pub extern "C" fn fp8rt_build_info() -> *const c_char {
    static INFO: LazyLock<CString> = LazyLock::new(|| {
        let version = env!("CARGO_PKG_VERSION");
        let host = "x86_64 (sse2, avx2, avx512) or aarch64 (neon)";
        let text = format!("fp8rt {version}; abi {FP8RT_ABI_VERSION}; host: {host}; {}", env!("FP8RT_GPU"));
        CString::new(text).expect("no zero in it")
    });
    INFO.as_ptr()
}

/// What the last failed call of this thread said: function, argument, and both numbers where two disagree. Empty if none
/// failed. At most 511 bytes of UTF-8, valid until the thread's next failure or end. Success does not clear it.
#[unsafe(no_mangle)]
pub extern "C" fn fp8rt_last_error() -> *const c_char {
    last_message()
}

/// The CUDA driver's number for this thread's last FP8RT_STATUS_CUDA_ERROR; 0 if there was none.
#[unsafe(no_mangle)]
pub extern "C" fn fp8rt_last_cuda_error() -> i32 {
    last_cuda_error()
}

/// The name of a status, "FP8RT_STATUS_SHAPE" for 3; "unknown" for a number that this library does not have. Static.
#[unsafe(no_mangle)]
pub extern "C" fn fp8rt_status_name(status: i32) -> *const c_char {
    const NAMES: [&str; 21] = [
        "FP8RT_STATUS_OK\0",
        "FP8RT_STATUS_INVALID_ARGUMENT\0",
        "FP8RT_STATUS_NULL_POINTER\0",
        "FP8RT_STATUS_SHAPE\0",
        "FP8RT_STATUS_STRIDE\0",
        "FP8RT_STATUS_ALIGNMENT\0",
        "FP8RT_STATUS_DTYPE\0",
        "FP8RT_STATUS_DEVICE\0",
        "FP8RT_STATUS_BOUNDS\0",
        "FP8RT_STATUS_OVERLAP\0",
        "FP8RT_STATUS_WORKSPACE\0",
        "FP8RT_STATUS_STRUCT_SIZE\0",
        "FP8RT_STATUS_UNSUPPORTED\0",
        "FP8RT_STATUS_NOT_PREPARED\0",
        "FP8RT_STATUS_NO_DEVICE\0",
        "FP8RT_STATUS_FORKED\0",
        "FP8RT_STATUS_OUT_OF_MEMORY\0",
        "FP8RT_STATUS_CUDA_ERROR\0",
        "FP8RT_STATUS_INTERNAL\0",
        "FP8RT_STATUS_INCOMPLETE\0",
        "FP8RT_STATUS_STATE\0",
    ];
    let name = usize::try_from(status).ok().and_then(|index| NAMES.get(index)).unwrap_or(&"unknown\0");
    name.as_ptr().cast()
}

/// Sends the lines of FP8RT_VERBOSE=1, and all warnings, to `callback` with `user` instead of stderr. NULL: back to stderr
/// (and warnings only under FP8RT_VERBOSE). Process-wide, from any thread. When this returns, the callback before runs no
/// more; a callback must not call this function.
#[unsafe(no_mangle)]
pub extern "C" fn fp8rt_set_log(callback: fp8rt_log_callback, user: *mut c_void) -> fp8rt_status {
    guard("fp8rt_set_log", || {
        log::set(callback, user);
        Ok(())
    })
}
