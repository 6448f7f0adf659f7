//! Finding libcuda, and its errors.

use std::ffi::CStr;
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::{Error, Kind, Result, fail, make};

/// Every function that is called. All are looked up at once, so that an old driver is an error here and no panic later.
const FUNCTIONS: [&CStr; 27] = [
    c"cuInit",
    c"cuDeviceGetCount",
    c"cuDeviceGet",
    c"cuDeviceGetAttribute",
    c"cuDevicePrimaryCtxRetain",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuCtxGetCurrent",
    c"cuCtxPushCurrent_v2",
    c"cuCtxPopCurrent_v2",
    c"cuModuleLoadData",
    c"cuModuleUnload",
    c"cuModuleGetFunction",
    c"cuLaunchKernelEx",
    c"cuStreamIsCapturing",
    c"cuPointerGetAttribute",
    c"cuMemAlloc_v2",
    c"cuMemFree_v2",
    c"cuMemcpyHtoD_v2",
    c"cuMemcpyHtoDAsync_v2",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamWaitEvent",
    c"cuEventCreate",
    c"cuEventDestroy_v2",
    c"cuEventRecord",
    c"cuGetErrorName",
    c"cuGetErrorString",
];

/// Opens libcuda and initializes it, once for the process.
pub fn load() -> Result<()> {
    static LOADED: OnceLock<()> = OnceLock::new();
    if LOADED.get().is_none() {
        open()?;
        let _ = LOADED.set(());
    }
    Ok(())
}

fn open() -> Result<()> {
    // SAFETY: opens a library that the system provides.
    if !unsafe { sys::is_culib_present() } {
        fail!(NoDevice, "no CUDA driver: libcuda.so.1 was not found");
    }
    for name in FUNCTIONS {
        // SAFETY: only asks whether the symbol is there.
        let found = unsafe { sys::culib().get::<*const ()>(name.to_bytes_with_nul()) }.is_ok();
        if !found {
            fail!(NoDevice, "the CUDA driver has no {}: it is older than this library needs", name.to_string_lossy());
        }
    }
    // SAFETY: found above.
    match unsafe { sys::cuInit(0) } {
        sys::cudaError_enum::CUDA_SUCCESS => Ok(()),
        sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => fail!(NoDevice, "the CUDA driver finds no device"),
        other => Err(error(other, "cuInit")),
    }
}

/// Turns a result of the driver into ours.
#[inline]
pub fn check(result: sys::CUresult, function: &'static str) -> Result<()> {
    if result == sys::cudaError_enum::CUDA_SUCCESS { Ok(()) } else { Err(error(result, function)) }
}

#[cold]
fn error(result: sys::CUresult, function: &'static str) -> Error {
    let text = |get: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = std::ptr::null();
        // SAFETY: gives a static string, or none for a number that it does not know.
        unsafe {
            get(result, &mut text);
            if text.is_null() { "unknown".to_owned() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    };
    let number = result as i32;
    make(Kind::Cuda(number), || {
        format!("{function} failed with {number}, {}: {}", text(sys::cuGetErrorName), text(sys::cuGetErrorString))
    })
}
