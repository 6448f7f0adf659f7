//! From what a caller passes to what the library works with. Nothing is trusted; nothing is written.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::context::{Context, HOST, Staging};
use crate::error::{Result, ensure, fail};
use crate::quantize::{HealthCounters, HealthPointer, Subject};
use crate::recipe::{Formula, Recipe, ScaleFormat};
use crate::tensor::{Description, Dtype, Tensor};

use super::context::fp8rt_context;
use super::types::*;

/// A descriptor struct: begins with `struct_size`, and is valid with all bytes zero.
///
/// # Safety
/// `repr(C)`, first field `struct_size: u32`, every field valid as zero bytes.
pub unsafe trait Descriptor: Copy {}

// SAFETY: integers, floats and raw pointers only, struct_size first.
unsafe impl Descriptor for fp8rt_context_desc {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_quantize_desc {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_linear_desc {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_linear_plan_info {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_policy_desc {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_policy_decision {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_policy_info {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_shard_desc {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_shard_info {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_refit_desc {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_refit_info {}
// SAFETY: as above.
unsafe impl Descriptor for fp8rt_refit_receipt {}

// SAFETY: as above.
unsafe impl Descriptor for fp8rt_fingerprint_desc {}

/// No descriptor will ever be longer, so a larger number is garbage.
const LONGEST_DESCRIPTOR: usize = 4096;

/// A pointer that must not be NULL.
///
/// # Safety
/// If it is not NULL and aligned, it points to a valid T for the time of the call.
pub unsafe fn required<'a, T>(pointer: *const T, name: &str) -> Result<&'a T> {
    expect_aligned(pointer, name)?;
    // SAFETY: aligned; the rest is the caller's promise.
    let Some(value) = (unsafe { pointer.as_ref() }) else { fail!(NullPointer, "{name} is NULL") };
    Ok(value)
}

/// As [`required`], for an output.
///
/// # Safety
/// As [`required`], and nobody else uses it.
pub unsafe fn required_mut<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T> {
    expect_aligned(pointer, name)?;
    // SAFETY: aligned; the rest is the caller's promise.
    let Some(value) = (unsafe { pointer.as_mut() }) else { fail!(NullPointer, "{name} is NULL") };
    Ok(value)
}

/// A pointer that must not be NULL, of a struct that may be shorter than ours: it is not looked at.
pub fn expect_present<T>(pointer: *const T, name: &str) -> Result<()> {
    ensure!(!pointer.is_null(), NullPointer, "{name} is NULL");
    expect_aligned(pointer, name)
}

/// A dimension.
pub fn extent(value: i64, name: &str) -> Result<usize> {
    ensure!(value >= 0, Shape, "{name} is {value}, must be at least 0");
    Ok(value as usize)
}

pub fn expect_aligned<T>(pointer: *const T, name: &str) -> Result<()> {
    let (address, align) = (pointer as usize, align_of::<T>());
    ensure!(
        address.is_multiple_of(align),
        Alignment,
        "{name} is at address {address:#x}, needs {align}-byte alignment"
    );
    Ok(())
}

/// Reads and checks `struct_size`, the caller's idea of the size.
///
/// # Safety
/// `pointer` is not NULL, aligned, and points to a descriptor whose `struct_size` is its true size.
unsafe fn struct_size<T: Descriptor>(pointer: *const T, name: &str) -> Result<usize> {
    // SAFETY: the first field of every descriptor.
    let size = unsafe { pointer.cast::<u32>().read() } as usize;
    // Any true size is a multiple of the alignment, so none ends inside a pointer.
    ensure!(
        (4..=LONGEST_DESCRIPTOR).contains(&size) && size.is_multiple_of(align_of::<T>()),
        StructSize,
        "{name} has struct_size {size}, this library's is {}",
        size_of::<T>()
    );
    Ok(size)
}

/// Fails unless a descriptor can be written.
///
/// # Safety
/// Not NULL; if it is aligned, `struct_size` is its true size.
pub unsafe fn expect_descriptor<T: Descriptor>(pointer: *const T, name: &str) -> Result<()> {
    expect_aligned(pointer, name)?;
    // SAFETY: the caller's promise.
    unsafe { struct_size(pointer, name) }.map(drop)
}

/// Copies a descriptor: a shorter one is filled up with zeros, a longer one must have zeros where we know nothing.
///
/// # Safety
/// NULL or a descriptor whose `struct_size` is its true size.
pub unsafe fn descriptor<T: Descriptor>(pointer: *const T, name: &str) -> Result<T> {
    expect_aligned(pointer, name)?;
    // SAFETY: a descriptor is valid as zeros.
    let mut value: T = unsafe { std::mem::zeroed() };
    if pointer.is_null() {
        return Ok(value);
    }
    // SAFETY: the caller's promise: `size` bytes are readable, and the copy stays within both.
    unsafe {
        let size = struct_size(pointer, name)?;
        let known = size.min(size_of::<T>());
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), (&raw mut value).cast(), known);
        let tail = std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known);
        if let Some(at) = tail.iter().position(|&byte| byte != 0) {
            fail!(
                StructSize,
                "{name} has struct_size {size} and a field at byte {}, this library knows {} bytes",
                known + at,
                size_of::<T>()
            );
        }
    }
    Ok(value)
}

/// Writes as much of a descriptor as the caller has room for. `struct_size` stays the caller's.
///
/// # Safety
/// Not NULL, aligned, and `struct_size` is its true size.
pub unsafe fn write_descriptor<T: Descriptor>(pointer: *mut T, name: &str, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe {
        let known = struct_size(pointer, name)?.min(size_of::<T>());
        let (from, to) = ((value as *const T).cast::<u8>(), pointer.cast::<u8>());
        std::ptr::copy_nonoverlapping(from.add(4), to.add(4), known - 4);
    }
    Ok(())
}

/// The context behind a handle.
///
/// # Safety
/// NULL or a live handle.
pub unsafe fn shared_context<'a>(handle: *const fp8rt_context) -> Result<&'a Context> {
    // SAFETY: the caller's promise.
    Ok(unsafe { required(handle, "context") }?.shared())
}

pub fn dtype(number: u32) -> Option<Dtype> {
    const BF16: u32 = fp8rt_dtype::BF16 as u32;
    const F16: u32 = fp8rt_dtype::F16 as u32;
    const F32: u32 = fp8rt_dtype::F32 as u32;
    const E4M3: u32 = fp8rt_dtype::E4M3 as u32;
    const INT32: u32 = fp8rt_dtype::INT32 as u32;
    match number {
        BF16 => Some(Dtype::Bf16),
        F16 => Some(Dtype::F16),
        F32 => Some(Dtype::F32),
        E4M3 => Some(Dtype::E4m3),
        INT32 => Some(Dtype::Int32),
        _ => None,
    }
}

/// The number of a dtype.
pub fn dtype_number(dtype: Dtype) -> u32 {
    (match dtype {
        Dtype::Bf16 => fp8rt_dtype::BF16,
        Dtype::F16 => fp8rt_dtype::F16,
        Dtype::F32 => fp8rt_dtype::F32,
        Dtype::E4m3 => fp8rt_dtype::E4M3,
        Dtype::Int32 => fp8rt_dtype::INT32,
    }) as u32
}

/// The recipe of a number; 0 gives `default`.
pub fn recipe(number: u32, name: &str, default: Recipe) -> Result<Recipe> {
    match number {
        0 => Ok(default),
        1..=4 => Ok(Recipe::NUMBERED[number as usize - 1]),
        _ => fail!(InvalidArgument, "{name} is {number}, the largest recipe is 4"),
    }
}

pub fn scale_format(number: u32, name: &str) -> Result<ScaleFormat> {
    match ScaleFormat::NUMBERED.get(number as usize) {
        Some(&format) => Ok(format),
        None => fail!(InvalidArgument, "{name} is {number}, the largest scale format is 2"),
    }
}

/// The caller's floor, if the flag says that there is one.
pub fn floor(set: bool, floor: f32) -> Result<Option<f32>> {
    ensure!(
        !set || floor.is_finite() && floor >= 0.0,
        InvalidArgument,
        "floor is {floor}, must be finite and at least 0"
    );
    Ok(set.then_some(floor))
}

pub fn expect_flags(flags: u32, known: u32) -> Result<()> {
    ensure!(flags & !known == 0, InvalidArgument, "flags is {flags:#x}, known flags are {known:#x}");
    Ok(())
}

/// An array of part sizes.
///
/// # Safety
/// `count` readable integers, if not NULL.
pub unsafe fn part_rows<'a>(pointer: *const i64, count: u32) -> Result<&'a [i64]> {
    const MOST_PARTS: u32 = 1 << 16;
    if count == 0 {
        return Ok(&[]);
    }
    ensure!(count <= MOST_PARTS, InvalidArgument, "num_parts is {count}, at most {MOST_PARTS} are taken");
    ensure!(!pointer.is_null(), NullPointer, "part_rows is NULL, num_parts is {count}");
    expect_aligned(pointer, "part_rows")?;
    // SAFETY: aligned and not NULL; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count as usize) })
}

/// An array of the caller.
///
/// # Safety
/// `count` readable values, if not NULL.
pub unsafe fn array<'a, T>(pointer: *const T, count: u32, name: &str, count_name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    ensure!(!pointer.is_null(), NullPointer, "{name} is NULL, {count_name} is {count}");
    expect_aligned(pointer, name)?;
    // SAFETY: aligned and not NULL; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count as usize) })
}

/// A name.
///
/// # Safety
/// NULL or zero-terminated.
pub unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    ensure!(!pointer.is_null(), NullPointer, "{name} is NULL");
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(pointer) };
    match bytes.to_str() {
        Ok("") => fail!(InvalidArgument, "{name} is empty"),
        Ok(text) => Ok(text),
        Err(error) => fail!(InvalidArgument, "{name} is no UTF-8 at byte {}", error.valid_up_to()),
    }
}

/// As [`text`], where NULL means none.
///
/// # Safety
/// As [`text`].
pub unsafe fn optional_text<'a>(pointer: *const c_char, name: &str) -> Result<Option<&'a str>> {
    // SAFETY: the caller's promise.
    if pointer.is_null() { Ok(None) } else { unsafe { text(pointer, name) }.map(Some) }
}

/// Whether [`write_text`] would fail: asked before another output is written.
pub fn expect_text(text: *const c_char, capacity: u64, length: *const u64) -> Result<()> {
    ensure!(capacity == 0 || !text.is_null(), NullPointer, "text is NULL, capacity is {capacity}");
    expect_aligned(length, "length")
}

/// Writes text for the caller: zero-terminated, cut to `capacity` bytes. `length`, if not NULL, gets all of its length.
///
/// # Safety
/// `capacity` writable bytes, and a writable or NULL `length`.
pub unsafe fn write_text(line: &str, text: *mut c_char, capacity: u64, length: *mut u64) -> Result<()> {
    ensure!(capacity == 0 || !text.is_null(), NullPointer, "text is NULL, capacity is {capacity}");
    // SAFETY: the caller's promise.
    unsafe {
        let length = (!length.is_null()).then(|| required_mut(length, "length")).transpose()?;
        if capacity > 0 {
            let mut room = line.len().min((capacity - 1) as usize);
            while !line.is_char_boundary(room) {
                room -= 1;
            }
            std::ptr::copy_nonoverlapping(line.as_ptr(), text.cast::<u8>(), room);
            text.add(room).write(0);
        }
        if let Some(length) = length {
            *length = line.len() as u64;
        }
    }
    Ok(())
}

/// Staging memory.
pub fn staging(address: *mut c_void, bytes: u64) -> Staging {
    Staging { address: address.cast(), bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }
}

/// Where [`tensor`] puts what it made: a result of this size, moved twice, would cost as much as the checks.
pub type Place = MaybeUninit<Tensor>;

/// A checked tensor on the context's device.
///
/// # Safety
/// NULL or a readable struct; its `data` is valid for `bytes` for the time of the call.
#[inline]
pub unsafe fn tensor<'a>(
    context: &Context,
    pointer: *const fp8rt_tensor,
    name: &'static str,
    place: &'a mut Place,
) -> Result<&'a Tensor> {
    // SAFETY: the caller's promise.
    unsafe { tensor_on(context.device, pointer, name, place) }
}

/// As [`tensor`], on another device than the context's.
///
/// # Safety
/// As [`tensor`].
#[inline]
pub unsafe fn tensor_on<'a>(
    device: i32,
    pointer: *const fp8rt_tensor,
    name: &'static str,
    place: &'a mut Place,
) -> Result<&'a Tensor> {
    // SAFETY: the caller's promise.
    let given = unsafe { required(pointer, name) }?;
    ensure!(given.reserved == 0, InvalidArgument, "{name} has reserved = {}, must be 0", given.reserved);
    let Some(dtype) = dtype(given.dtype) else { fail!(Dtype, "{name} has dtype {}, the largest is 5", given.dtype) };
    let description = Description {
        data: given.data.cast(),
        bytes: given.bytes,
        dtype,
        device: given.device,
        rank: given.rank,
        shape: &given.shape,
        stride: &given.stride,
    };
    let tensor = Tensor::new_in(name, &description, place)?;
    tensor.expect_device(device)?;
    Ok(tensor)
}

/// As [`tensor`], where NULL means none.
///
/// # Safety
/// As [`tensor`].
pub unsafe fn optional_tensor<'a>(
    context: &Context,
    pointer: *const fp8rt_tensor,
    name: &'static str,
    place: &'a mut Place,
) -> Result<Option<&'a Tensor>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    unsafe { tensor(context, pointer, name, place) }.map(Some)
}

/// The caller's counters, four of 64 bits in the order of `HealthCounters`. They may lie in device memory: only the address
/// is looked at.
pub fn health(pointer: *mut fp8rt_health) -> Result<Option<HealthPointer>> {
    const { assert!(size_of::<fp8rt_health>() == size_of::<HealthCounters>()) };
    expect_aligned(pointer, "health")?;
    Ok(NonNull::new(pointer.cast::<HealthCounters>()).map(HealthPointer))
}

/// A host context has no streams.
pub fn expect_stream(context: &Context, stream: *mut c_void) -> Result<()> {
    ensure!(
        context.device != HOST || stream.is_null(),
        InvalidArgument,
        "stream is {stream:p}, a host context takes NULL"
    );
    Ok(())
}

/// What a quantize descriptor says.
pub struct Quantization<'a> {
    pub formula: Formula,
    pub format: ScaleFormat,
    pub part_rows: &'a [i64],
}

impl<'a> Quantization<'a> {
    /// Reads a descriptor; `recipe` is what the default means.
    ///
    /// # Safety
    /// As [`descriptor`], and `part_rows` as in the descriptor.
    pub unsafe fn new(desc: *const fp8rt_quantize_desc, default: Recipe) -> Result<Quantization<'a>> {
        // SAFETY: the caller's promise.
        let desc = unsafe { descriptor(desc, "desc") }?;
        expect_flags(desc.flags, FP8RT_QUANTIZE_FLOOR)?;
        let recipe = recipe(desc.recipe, "recipe", default)?;
        let format = scale_format(desc.scale_format, "scale_format")?;
        let floor = floor(desc.flags & FP8RT_QUANTIZE_FLOOR != 0, desc.floor)?;
        // SAFETY: the caller's promise.
        let part_rows = unsafe { part_rows(desc.part_rows, desc.num_parts) }?;
        Ok(Quantization { formula: Formula::new(recipe, format, floor), format, part_rows })
    }

    /// The subject of a weight.
    pub fn weight(&self) -> Subject<'a> {
        Subject::Weight { part_rows: self.part_rows }
    }

    /// The subject of an activation, which has no parts.
    pub fn activation(&self) -> Result<Subject<'a>> {
        let count = self.part_rows.len();
        ensure!(count == 0, InvalidArgument, "num_parts is {count}, an activation has none");
        Ok(Subject::Activation)
    }
}
