//! Results without memory, for torch's tracing. Sizes may be symbols there, which the shim cannot name: so every shape
//! is made by ops of torch from the shapes of the arguments.

use std::ffi::CStr;

use crate::blocks::BLOCK;
use crate::error::Result;

use super::owned::Owned;
use super::shim::{Handle, Shim, VERSION, Value};

/// An optional argument that is not given.
const NONE: Value = 0;

/// Calls an op of torch that returns a tensor. It takes over the tensors among `arguments`, whether it fails or not.
fn call<'a, const COUNT: usize>(
    shim: &'a Shim,
    op: &'static CStr,
    overload: &CStr,
    mut arguments: [Value; COUNT],
) -> Result<Owned<'a>> {
    // SAFETY: the op's arguments in order; the first becomes its result.
    unsafe {
        let code = (shim.base.call)(op.as_ptr(), overload.as_ptr(), arguments.as_mut_ptr(), VERSION);
        shim.expect(code, op.to_str().unwrap_or("an op"))?;
        Ok(Owned::new(shim, arguments[0] as Handle))
    }
}

fn value(tensor: Owned) -> Value {
    tensor.release() as Value
}

/// A copy in another dtype.
fn cast<'a>(shim: &'a Shim, tensor: Owned, dtype: i32) -> Result<Owned<'a>> {
    let (blocking, copy) = (0, 1);
    call(shim, c"aten::to", c"dtype", [value(tensor), dtype as Value, blocking, copy, NONE])
}

fn contiguous<'a>(shim: &'a Shim, tensor: Owned) -> Result<Owned<'a>> {
    // SAFETY: gives a number.
    let format = unsafe { (shim.base.contiguous_format)() };
    call(shim, c"aten::contiguous", c"", [value(tensor), format as Value])
}

/// y [M, N] of x [M, K] and weight [N, K], of x's dtype.
pub fn product(shim: &Shim, x: Handle, weight: Handle) -> Result<Owned<'_>> {
    let (blocking, copy) = (0, 0);
    let like = [value(Owned::share(shim, weight)?), value(Owned::share(shim, x)?), blocking, copy, NONE];
    let weight = call(shim, c"aten::to", c"other", like)?;
    let transposed = call(shim, c"aten::t", c"", [value(weight)])?;
    call(shim, c"aten::mm", c"", [value(Owned::share(shim, x)?), value(transposed)]).map_err(|mut error| {
        error.message.insert_str(0, "x [M, K] and weight [N, K] do not fit: ");
        error
    })
}

/// Codes [M, K] and scales [M, ceil(K/128)] of x [M, K].
pub fn codes_and_scales(shim: &Shim, x: Handle) -> Result<(Owned<'_>, Owned<'_>)> {
    let codes = cast(shim, contiguous(shim, Owned::share(shim, x)?)?, shim.dtypes.e4m3)?;
    let columns = 1;
    let every = [value(Owned::share(shim, x)?), columns, NONE, NONE, BLOCK as Value];
    let firsts = call(shim, c"aten::slice", c"Tensor", every)?;
    let scales = cast(shim, contiguous(shim, firsts)?, shim.dtypes.f32)?;
    Ok((codes, scales))
}
