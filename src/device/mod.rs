//! A GPU: its driver, contexts, streams, modules and launches. The only part of the crate that names libcuda.

mod copy;
mod copying;
mod cublaslt;
#[cfg(feature = "cutlass")]
mod cutlass;
mod deepgemm;
mod driver;
mod fingerprint;
mod fused;
mod linear;
mod measure;
mod quantize;
mod reading;
mod refit;

use std::ffi::c_void;
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys;

use crate::cpu::forks;
use crate::error::{Result, ensure, fail};
use crate::kernels::{Kernel, MODULES, Module, TILES, expand};
use crate::tensor::Tensor;

use copying::Copying;
use driver::{Functions, check};

pub use cublaslt::{ROWS as CUBLASLT_ROWS, Shape as CublasLtShape};
pub use linear::{Ahead, Product, Quantized, bias_of};
pub use refit::DeviceTable;

/// Kernels of one module that were looked up so far, by name.
struct Loaded {
    module: sys::CUmodule,
    functions: Vec<(&'static std::ffi::CStr, sys::CUfunction)>,
}

/// One GPU with its primary context, which is torch's too.
pub struct Device {
    driver: &'static Functions,
    pub ordinal: i32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Multiprocessors.
    pub processors: u32,
    /// Compute capability times ten.
    pub capability: u32,
    /// Forks of this process when the device was opened: CUDA does not survive one.
    forks: u64,
    modules: [OnceLock<Loaded>; MODULES.len()],
    /// DeepGEMM's kernel, a tile each.
    tiles: [OnceLock<Loaded>; TILES.len()],
    #[cfg(feature = "cutlass")]
    cutlass: [OnceLock<Loaded>; crate::kernels::cutlass::GEMMS.len()],
    /// Made when a plan first asks.
    cublaslt: OnceLock<cublaslt::Handle>,
    /// For sources on the host; made when first used.
    copying: Mutex<Option<Copying>>,
    /// Whether every call asks if its pointers are device memory.
    check_pointers: bool,
}

// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for Device {}
// SAFETY: as above; modules are published through `OnceLock`.
unsafe impl Sync for Device {}

/// A stream of the caller.
#[derive(Clone, Copy)]
pub struct Stream(sys::CUstream);

impl Stream {
    pub fn new(stream: *mut c_void) -> Stream {
        Stream(stream.cast())
    }
}

/// The size of a launch.
pub struct Size {
    pub blocks: [u32; 3],
    pub threads: u32,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// Thread blocks of a cluster.
    pub cluster: [u32; 3],
}

impl Size {
    /// No shared memory, no cluster.
    pub fn new(blocks: u32, threads: u32) -> Size {
        Size { blocks: [blocks, 1, 1], threads, shared_bytes: 0, cluster: [1; 3] }
    }
}

/// Our context is current until this is dropped; then it is the caller's again.
pub struct Current {
    driver: &'static Functions,
    pushed: bool,
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.pushed {
            let mut ours = std::ptr::null_mut();
            // SAFETY: pops what `Device::enter` pushed on this thread.
            unsafe { (self.driver.pop_current)(&mut ours) };
        }
    }
}

/// While it lives, this thread may do what a capture of another stream would forbid.
struct RelaxedCapture(sys::CUstreamCaptureMode);

impl RelaxedCapture {
    fn new() -> RelaxedCapture {
        RelaxedCapture(exchange(sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED))
    }
}

impl Drop for RelaxedCapture {
    fn drop(&mut self) {
        exchange(self.0);
    }
}

/// Sets this thread's mode, and gives the one before.
fn exchange(mut mode: sys::CUstreamCaptureMode) -> sys::CUstreamCaptureMode {
    // SAFETY: swaps an enumeration.
    unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    mode
}

impl Device {
    /// Opens the driver and retains the primary context.
    pub fn open(ordinal: i32) -> Result<Device> {
        let driver = driver::load()?;
        let (mut count, mut device, mut context) = (0, 0, std::ptr::null_mut());
        // SAFETY: `load` found every function that is called; places for the results.
        unsafe {
            check(sys::cuDeviceGetCount(&mut count), "cuDeviceGetCount")?;
            ensure!(ordinal < count, NoDevice, "device is {ordinal}, this machine has {count}");
            check(sys::cuDeviceGet(&mut device, ordinal), "cuDeviceGet")?;
            let attribute = |which| {
                let mut value = 0;
                check(sys::cuDeviceGetAttribute(&mut value, which, device), "cuDeviceGetAttribute")
                    .map(|()| value as u32)
            };
            use sys::CUdevice_attribute_enum as Attribute;
            let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let capability = 10 * major + minor;
            for module in MODULES {
                let known = module.cubin(capability).is_some();
                ensure!(
                    known,
                    Unsupported,
                    "device {ordinal} has compute capability {major}.{minor}, this build has none of its code"
                );
            }
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "cuDevicePrimaryCtxRetain")?;
            let check_pointers = std::env::var_os("FP8RT_CHECK").is_some_and(|value| !value.is_empty() && value != "0");
            let modules = [const { OnceLock::new() }; MODULES.len()];
            let tiles = [const { OnceLock::new() }; TILES.len()];
            Ok(Device {
                driver,
                ordinal,
                device,
                context,
                processors,
                capability,
                forks: forks(),
                modules,
                tiles,
                #[cfg(feature = "cutlass")]
                cutlass: [const { OnceLock::new() }; crate::kernels::cutlass::GEMMS.len()],
                cublaslt: OnceLock::new(),
                copying: Mutex::new(None),
                check_pointers,
            })
        }
    }

    /// Makes our context current on this thread.
    pub fn enter(&self) -> Result<Current> {
        let now = forks();
        ensure!(
            now == self.forks,
            Forked,
            "the context on device {} was made before a fork ({} forks then, {now} now): make one in this process",
            self.ordinal,
            self.forks
        );
        let mut current = std::ptr::null_mut();
        // SAFETY: the context is retained.
        unsafe {
            check((self.driver.get_current)(&mut current), "cuCtxGetCurrent")?;
            let pushed = current != self.context;
            if pushed {
                check((self.driver.push_current)(self.context), "cuCtxPushCurrent")?;
            }
            Ok(Current { driver: self.driver, pushed })
        }
    }

    /// Loads every kernel, so that no call has to.
    pub fn prepare(&self, stream: Stream) -> Result<()> {
        let _current = self.enter()?;
        self.expect_not_capturing(stream, "prepare before the capture begins")?;
        MODULES.iter().try_for_each(|&module| self.load(module).map(drop))
    }

    /// A kernel, loaded if need be; refused while the stream is captured, where loading is illegal.
    fn function(&self, kernel: Kernel, stream: Stream) -> Result<sys::CUfunction> {
        self.expect_loadable(&self.modules[kernel.module as usize], stream, "call fp8rt_context_prepare before")?;
        let loaded = self.load(kernel.module)?;
        match loaded.functions.iter().find(|(name, _)| *name == kernel.name) {
            Some(&(_, function)) => Ok(function),
            None => fail!(Internal, "kernel {} is not in its module", kernel.name.to_string_lossy()),
        }
    }

    /// Fails if this code is not loaded and, because the stream is captured, may not be.
    fn expect_loadable(&self, place: &OnceLock<Loaded>, stream: Stream, instead: &str) -> Result<()> {
        if place.get().is_some() { Ok(()) } else { self.expect_not_capturing(stream, instead) }
    }

    fn expect_not_capturing(&self, stream: Stream, instead: &str) -> Result<()> {
        let mut status = sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the caller's stream.
        unsafe { check((self.driver.is_capturing)(stream.0, &mut status), "cuStreamIsCapturing") }?;
        let free = status == sys::CUstreamCaptureStatus_enum::CU_STREAM_CAPTURE_STATUS_NONE;
        ensure!(free, NotPrepared, "the stream is being captured: {instead}");
        Ok(())
    }

    fn load(&self, module: Module) -> Result<&Loaded> {
        let place = &self.modules[module as usize];
        if let Some(loaded) = place.get() {
            return Ok(loaded);
        }
        let Some(cubin) = module.cubin(self.capability) else { fail!(Internal, "no code of {}", module.name()) };
        let names = crate::kernels::all_of(module).map(|kernel| kernel.name);
        self.load_code(place, cubin.code, names, 0)
    }

    /// Loads a module once, whoever is first, and looks its kernels up. `shared_bytes`: what they may be launched with.
    fn load_code<'a>(
        &self,
        place: &'a OnceLock<Loaded>,
        compressed: &[u8],
        names: impl Iterator<Item = &'static std::ffi::CStr>,
        shared_bytes: u32,
    ) -> Result<&'a Loaded> {
        let code = expand(compressed)?;
        // Another stream of this thread may be captured: loading does not concern it.
        let _relaxed = RelaxedCapture::new();
        let mut handle = std::ptr::null_mut();
        // SAFETY: code that nvcc made for this architecture.
        unsafe { check(sys::cuModuleLoadData(&mut handle, code.as_ptr().cast()), "cuModuleLoadData") }?;
        let functions = look_up(handle, names, shared_bytes);
        let loaded = functions.map(|functions| place.set(Loaded { module: handle, functions }).is_ok());
        if !matches!(loaded, Ok(true)) {
            // SAFETY: nobody has seen it: it has no such kernel, or another thread was first.
            unsafe { sys::cuModuleUnload(handle) };
        }
        loaded?;
        Ok(place.get().expect("set by one of us"))
    }

    /// Enqueues a kernel whose only parameter is `arguments`.
    fn launch<A>(&self, kernel: Kernel, size: Size, arguments: &A, stream: Stream) -> Result<()> {
        let function = self.function(kernel, stream)?;
        let mut parameters = [(arguments as *const A).cast_mut().cast::<c_void>()];
        // SAFETY: the function takes one parameter of this layout.
        unsafe { self.launch_function(function, size, &mut parameters, stream) }
    }

    /// Enqueues a kernel. It may start before the one before it has ended, and waits by itself; the next one may do the
    /// same.
    ///
    /// # Safety
    /// The parameters point to what the function takes, in order. The driver copies them before this returns.
    unsafe fn launch_function(
        &self,
        function: sys::CUfunction,
        size: Size,
        parameters: &mut [*mut c_void],
        stream: Stream,
    ) -> Result<()> {
        use sys::CUlaunchAttributeID_enum as Attribute;
        // SAFETY: a union of plain numbers, and an enumeration that has a value 0.
        let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
        attributes[0].id = Attribute::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attributes[0].value.programmaticStreamSerializationAllowed = 1;
        attributes[1].id = Attribute::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        let [x, y, z] = size.cluster;
        attributes[1].value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
        let used = match (self.capability >= 90, size.cluster != [1; 3]) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => 2,
        };
        let config = sys::CUlaunchConfig {
            gridDimX: size.blocks[0],
            gridDimY: size.blocks[1],
            gridDimZ: size.blocks[2],
            blockDimX: size.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: size.shared_bytes,
            hStream: stream.0,
            attrs: attributes.as_mut_ptr(),
            numAttrs: used,
        };
        // SAFETY: the caller's promise.
        let result = unsafe { (self.driver.launch)(&config, function, parameters.as_mut_ptr(), std::ptr::null_mut()) };
        check(result, "cuLaunchKernelEx")
    }

    /// Under `FP8RT_CHECK=1`: fails unless each tensor is memory of this device.
    fn check_pointers(&self, tensors: &[&Tensor]) -> Result<()> {
        let used = tensors.iter().filter(|tensor| !tensor.is_empty());
        used.into_iter().try_for_each(|tensor| self.check_pointer(tensor.address().cast(), tensor.name))
    }

    /// The same of one address; NULL is nothing.
    fn check_pointer(&self, address: *const c_void, name: &str) -> Result<()> {
        if self.check_pointers { self.expect_pointer(address, name) } else { Ok(()) }
    }

    /// Fails unless each tensor is memory of this device.
    pub fn expect_memory(&self, tensors: &[Option<&Tensor>]) -> Result<()> {
        let _current = self.enter()?;
        let used = tensors.iter().flatten().filter(|tensor| !tensor.is_empty());
        used.into_iter().try_for_each(|tensor| self.expect_pointer(tensor.address().cast(), tensor.name))
    }

    fn expect_pointer(&self, address: *const c_void, name: &str) -> Result<()> {
        if address.is_null() {
            return Ok(());
        }
        use sys::CUpointer_attribute_enum as Attribute;
        let (mut kind, mut ordinal) = (0u32, -1i32);
        let ask = |place: *mut c_void, attribute| {
            // SAFETY: the driver only looks the address up, and writes 4 bytes to the place.
            let result = unsafe { (self.driver.pointer_attribute)(place, attribute, address as u64) };
            result == sys::cudaError_enum::CUDA_SUCCESS
        };
        let known = ask((&raw mut kind).cast(), Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
            && ask((&raw mut ordinal).cast(), Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
        let ours = self.ordinal;
        ensure!(
            known && kind == sys::CUmemorytype_enum::CU_MEMORYTYPE_DEVICE as u32,
            Device,
            "{name} at {address:p} is no memory of a GPU, the context is on device {ours}"
        );
        ensure!(
            ordinal == ours,
            Device,
            "{name} at {address:p} is memory of device {ordinal}, the context is on device {ours}"
        );
        Ok(())
    }

    /// "9.0".
    pub fn capability_name(&self) -> String {
        format!("{}.{}", self.capability / 10, self.capability % 10)
    }
}

/// The kernels of a module. More shared memory than every kernel may have must be asked for.
fn look_up(
    module: sys::CUmodule,
    names: impl Iterator<Item = &'static std::ffi::CStr>,
    shared_bytes: u32,
) -> Result<Vec<(&'static std::ffi::CStr, sys::CUfunction)>> {
    use sys::CUfunction_attribute_enum as Attribute;
    const FREE: u32 = 48 * 1024;
    names
        .map(|name| {
            let mut function = std::ptr::null_mut();
            // SAFETY: a loaded module and a name.
            unsafe {
                check(sys::cuModuleGetFunction(&mut function, module, name.as_ptr()), "cuModuleGetFunction")?;
                if shared_bytes > FREE {
                    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    let result = sys::cuFuncSetAttribute(function, attribute, shared_bytes as i32);
                    check(result, "cuFuncSetAttribute")?;
                }
            }
            Ok((name, function))
        })
        .collect()
}

impl Drop for Device {
    fn drop(&mut self) {
        // In a forked child the handles are the parent's.
        if let Ok(_current) = self.enter() {
            let modules = self.modules.iter_mut().chain(&mut self.tiles);
            #[cfg(feature = "cutlass")]
            let modules = modules.chain(&mut self.cutlass);
            for loaded in modules.filter_map(OnceLock::take) {
                // SAFETY: no plan or call uses it any more.
                unsafe { sys::cuModuleUnload(loaded.module) };
            }
            if let Some(handle) = self.cublaslt.take() {
                handle.destroy();
            }
            if let Some(copying) = self.copying.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) {
                copying.destroy();
            }
            drop(_current);
            // SAFETY: retained by `open`.
            unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}
