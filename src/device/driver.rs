//! Finding libcuda, and its errors.

use std::ffi::CStr;
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::error::{Error, Kind, Result, fail, make};

/// Every function that is called. All are looked up at once, so that an old driver is an error here and no panic later.
const FUNCTIONS: [&CStr; 33] = [
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
    c"cuFuncSetAttribute",
    c"cuTensorMapEncodeTiled",
    c"cuLaunchKernelEx",
    c"cuStreamIsCapturing",
    c"cuThreadExchangeStreamCaptureMode",
    c"cuPointerGetAttribute",
    c"cuMemAlloc_v2",
    c"cuMemFree_v2",
    c"cuMemcpyHtoD_v2",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemcpyDtoHAsync_v2",
    c"cuMemcpyDtoDAsync_v2",
    c"cuMemcpy2DAsync_v2",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamSynchronize",
    c"cuStreamWaitEvent",
    c"cuEventCreate",
    c"cuEventDestroy_v2",
    c"cuEventRecord",
    c"cuGetErrorName",
];

/// `cuTensorMapEncodeTiled`.
pub type EncodeTensorMap = unsafe extern "C" fn(
    *mut sys::CUtensorMap,
    sys::CUtensorMapDataType,
    u32,
    *mut std::ffi::c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    sys::CUtensorMapInterleave,
    sys::CUtensorMapSwizzle,
    sys::CUtensorMapL2promotion,
    sys::CUtensorMapFloatOOBfill,
) -> sys::CUresult;

/// The functions of a prepared call, by address: cudarc looks a function up, and allocates, when it is first called.
pub struct Functions {
    pub get_current: unsafe extern "C" fn(*mut sys::CUcontext) -> sys::CUresult,
    pub push_current: unsafe extern "C" fn(sys::CUcontext) -> sys::CUresult,
    pub pop_current: unsafe extern "C" fn(*mut sys::CUcontext) -> sys::CUresult,
    pub is_capturing: unsafe extern "C" fn(sys::CUstream, *mut sys::CUstreamCaptureStatus) -> sys::CUresult,
    pub launch: unsafe extern "C" fn(
        *const sys::CUlaunchConfig,
        sys::CUfunction,
        *mut *mut std::ffi::c_void,
        *mut *mut std::ffi::c_void,
    ) -> sys::CUresult,
    pub encode_tensor_map: EncodeTensorMap,
    pub pointer_attribute:
        unsafe extern "C" fn(*mut std::ffi::c_void, sys::CUpointer_attribute, sys::CUdeviceptr) -> sys::CUresult,
}

/// Opens libcuda and initializes it, once for the process.
pub fn load() -> Result<&'static Functions> {
    static LOADED: OnceLock<Functions> = OnceLock::new();
    match LOADED.get() {
        Some(functions) => Ok(functions),
        None => {
            let opened = open()?;
            Ok(LOADED.get_or_init(|| opened))
        }
    }
}

fn open() -> Result<Functions> {
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
        sys::cudaError_enum::CUDA_SUCCESS => {}
        sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => fail!(NoDevice, "the CUDA driver finds no device"),
        other => return Err(error(other, "cuInit")),
    }
    // SAFETY: the signatures of these functions.
    unsafe {
        Ok(Functions {
            get_current: address(c"cuCtxGetCurrent"),
            push_current: address(c"cuCtxPushCurrent_v2"),
            pop_current: address(c"cuCtxPopCurrent_v2"),
            is_capturing: address(c"cuStreamIsCapturing"),
            launch: address(c"cuLaunchKernelEx"),
            encode_tensor_map: address(c"cuTensorMapEncodeTiled"),
            pointer_attribute: address(c"cuPointerGetAttribute"),
        })
    }
}

/// # Safety
/// The function exists and has the type F.
unsafe fn address<F: Copy>(name: &CStr) -> F {
    // SAFETY: the caller's promise.
    unsafe { *sys::culib().get::<F>(name.to_bytes_with_nul()).expect("found before") }
}

/// Turns a result of the driver into ours.
#[inline]
pub fn check(result: sys::CUresult, function: &'static str) -> Result<()> {
    if result == sys::cudaError_enum::CUDA_SUCCESS { Ok(()) } else { Err(error(result, function)) }
}

#[cold]
fn error(result: sys::CUresult, function: &'static str) -> Error {
    let mut name = std::ptr::null();
    // SAFETY: gives a static string, or none for a number that it does not know.
    let name = unsafe {
        sys::cuGetErrorName(result, &mut name);
        if name.is_null() { "unknown".to_owned() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
    };
    let number = result as i32;
    make(Kind::Cuda(number), move || format!("{function} failed with {number}, {name}"))
}
