//! Where a call runs: the library's context on the tensors' device, torch's current stream there, and memory of torch's
//! allocator, so that graphs see it in their pools.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::context::{Context, HOST};
use crate::error::{Kind, Result, ensure};
use crate::linear::WORKSPACE_ALIGNMENT;

use super::shim::{Handle, Shim};

/// Devices of a process, the host counted.
const MOST_DEVICES: usize = 65;

/// Made by the first call on a device, and never destroyed: plans and graphs may outlive everything that could.
static CONTEXTS: [OnceLock<Arc<Context>>; MOST_DEVICES] = [const { OnceLock::new() }; MOST_DEVICES];

/// The context of a device, ready to run what may be captured.
pub fn context(shim: &Shim, device: i32, stream: *mut c_void) -> Result<&'static Arc<Context>> {
    let index = (device + 1) as usize;
    ensure!(index < MOST_DEVICES, Device, "a tensor is on device {device}, at most {} are known", MOST_DEVICES - 1);
    match CONTEXTS[index].get() {
        Some(context) => Ok(context),
        None => open(shim, device, stream, &CONTEXTS[index]),
    }
}

#[cold]
fn open<'a>(
    shim: &Shim,
    device: i32,
    stream: *mut c_void,
    place: &'a OnceLock<Arc<Context>>,
) -> Result<&'a Arc<Context>> {
    static OPENING: Mutex<()> = Mutex::new(());
    let _one = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(context) = place.get() {
        return Ok(context);
    }
    let context = Context::new(device, if device == HOST { threads(shim)? } else { 0 })?;
    context.prepare(stream).map_err(|mut error| {
        if error.kind == Kind::NotPrepared {
            error.message.push_str("; call fp8rt::linear_prepare, or any op of fp8rt once");
        }
        error
    })?;
    Ok(place.get_or_init(|| Arc::new(context)))
}

/// As many threads on the host as torch uses.
fn threads(shim: &Shim) -> Result<usize> {
    let mut count = 0;
    // SAFETY: a place for the number.
    shim.expect(unsafe { (shim.base.num_threads)(&mut count) }, "torch_get_num_threads")?;
    Ok(count.max(1) as usize)
}

/// Torch's current stream of a device; null on the host.
pub fn stream(shim: &Shim, device: i32) -> Result<*mut c_void> {
    let mut stream = std::ptr::null_mut();
    if device != HOST {
        // SAFETY: a device that a tensor is on, and a place for the stream.
        let code = unsafe { (shim.cuda()?.current_stream)(device, &mut stream) };
        shim.expect(code, "aoti_torch_get_current_cuda_stream")?;
    }
    Ok(stream)
}

/// A device is torch's current one until this is dropped.
struct Guard<'a>(&'a Shim, Option<Handle>);

impl<'a> Guard<'a> {
    fn new(shim: &'a Shim, device: i32) -> Result<Guard<'a>> {
        let mut current = device;
        // SAFETY: a place for the number.
        let code = unsafe { (shim.base.current_device)(&mut current) };
        shim.expect(code, "aoti_torch_get_current_device_index")?;
        if current == device {
            return Ok(Guard(shim, None));
        }
        let mut guard = std::ptr::null_mut();
        // SAFETY: a device that a tensor is on, and a place for the guard.
        let code = unsafe { (shim.cuda()?.new_guard)(device, &mut guard) };
        shim.expect(code, "aoti_torch_create_cuda_guard")?;
        Ok(Guard(shim, Some(guard)))
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let (Some(guard), Some(cuda)) = (self.1, &self.0.cuda) {
            // SAFETY: made by `new`.
            unsafe { (cuda.delete_guard)(guard) };
        }
    }
}

/// Memory for one run. On a GPU it may be given back as soon as the run is enqueued: who gets it next on this stream
/// runs after it.
pub struct Workspace<'a> {
    shim: &'a Shim,
    memory: Memory,
    pub address: *mut u8,
    pub bytes: usize,
}

enum Memory {
    None,
    /// Of the caching allocator.
    Raw(*mut c_void),
    /// A tensor on the host.
    Tensor(Handle),
}

impl<'a> Workspace<'a> {
    pub fn new(shim: &'a Shim, device: i32, bytes: usize) -> Result<Workspace<'a>> {
        if bytes == 0 {
            return Ok(Workspace { shim, memory: Memory::None, address: std::ptr::null_mut(), bytes });
        }
        if device == HOST {
            return Workspace::on_host(shim, bytes);
        }
        let _guard = Guard::new(shim, device)?;
        let mut address = std::ptr::null_mut();
        // SAFETY: a place for the address. The allocator aligns to 512 bytes; every run checks the alignment.
        let code = unsafe { (shim.cuda()?.allocate)(bytes as u64, &mut address) };
        shim.expect(code, "aoti_torch_cuda_caching_allocator_raw_alloc")?;
        Ok(Workspace { shim, memory: Memory::Raw(address), address: address.cast(), bytes })
    }

    fn on_host(shim: &'a Shim, bytes: usize) -> Result<Workspace<'a>> {
        let types = (&shim.dtypes, &shim.device_types);
        let tensor = empty(shim, &[(bytes + WORKSPACE_ALIGNMENT) as i64], &[1], types.0.uint8, (types.1.cpu, 0))?;
        let mut data = std::ptr::null_mut();
        // SAFETY: a tensor just made, and a place for the address.
        let code = unsafe { (shim.base.data)(tensor, &mut data) };
        let data = data.cast::<u8>();
        let address = data.wrapping_add(data.align_offset(WORKSPACE_ALIGNMENT));
        let workspace = Workspace { shim, memory: Memory::Tensor(tensor), address, bytes };
        shim.expect(code, "aoti_torch_get_data_ptr")?;
        Ok(workspace)
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new`; what was enqueued with it runs before whoever gets it next.
        unsafe {
            match (&self.memory, &self.shim.cuda) {
                (Memory::Raw(address), Some(cuda)) => _ = (cuda.free)(*address),
                (Memory::Tensor(tensor), _) => _ = (self.shim.base.delete_tensor)(*tensor),
                _ => {}
            }
        }
    }
}

/// A new tensor of torch's number of a dtype, on (device type, index).
pub fn empty(
    shim: &Shim,
    shape: &[i64],
    stride: &[i64],
    dtype: i32,
    (device_type, index): (i32, i32),
) -> Result<Handle> {
    let mut tensor = std::ptr::null_mut();
    // SAFETY: as many numbers as dimensions, and a place for the tensor.
    let code = unsafe {
        let (dims, shape, stride) = (shape.len() as i64, shape.as_ptr(), stride.as_ptr());
        (shim.base.empty_strided)(dims, shape, stride, dtype, device_type, index, &mut tensor)
    };
    shim.expect(code, "aoti_torch_empty_strided")?;
    Ok(tensor)
}
