//! What an op makes and gives to torch.

use crate::context::HOST;
use crate::error::Result;
use crate::tensor::{Dtype, Tensor};

use super::arguments::view;
use super::place;
use super::shim::{Handle, Shim};

/// A tensor that is freed unless it is released.
pub struct Owned<'a> {
    shim: &'a Shim,
    handle: Handle,
}

impl<'a> Owned<'a> {
    /// # Safety
    /// A tensor that nobody else frees.
    pub unsafe fn new(shim: &'a Shim, handle: Handle) -> Owned<'a> {
        Owned { shim, handle }
    }

    /// A compact matrix, contents undefined, of torch's number of a dtype.
    pub fn empty(shim: &'a Shim, shape: [i64; 2], dtype: i32, device: i32) -> Result<Owned<'a>> {
        let types = &shim.device_types;
        let on = if device == HOST { (types.cpu, 0) } else { (types.cuda, device) };
        let handle = place::empty(shim, &shape, &[shape[1].max(1), 1], dtype, on)?;
        Ok(Owned { shim, handle })
    }

    /// Another reference to a tensor.
    pub fn share(shim: &'a Shim, tensor: Handle) -> Result<Owned<'a>> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a live tensor, and a place for the reference.
        let code = unsafe { (shim.base.new_tensor_handle)(tensor, &mut handle) };
        shim.expect(code, "aoti_torch_new_tensor_handle")?;
        Ok(Owned { shim, handle })
    }

    pub fn view(&self, name: &'static str) -> Result<Tensor> {
        view(self.shim, self.handle, name)
    }

    /// It is the receiver's from now on.
    pub fn release(self) -> Handle {
        let handle = self.handle;
        std::mem::forget(self);
        handle
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: owned, and not released.
        unsafe { (self.shim.base.delete_tensor)(self.handle) };
    }
}

/// Torch's number of a dtype.
pub fn number(shim: &Shim, dtype: Dtype) -> i32 {
    match dtype {
        Dtype::Bf16 => shim.dtypes.bf16,
        Dtype::F16 => shim.dtypes.f16,
        Dtype::F32 => shim.dtypes.f32,
        Dtype::E4m3 => shim.dtypes.e4m3,
        Dtype::Int32 => shim.dtypes.int32,
    }
}

/// A text for torch.
pub fn string(shim: &Shim, text: &str) -> Result<Handle> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: a text of that many bytes, and a place for the handle.
    let code = unsafe { (shim.base.new_string)(text.as_ptr().cast(), text.len(), &mut handle) };
    shim.expect(code, "torch_new_string_handle")?;
    Ok(handle)
}
