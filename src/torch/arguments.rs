//! The arguments of a kernel: owned, freed when it ends, and read by position.

use std::ffi::{CStr, c_void};

use crate::error::{Result, ensure, fail};
use crate::tensor::{Description, Dtype, Tensor};

use super::shim::{Handle, Shim, Value};

/// The types of arguments that the schemas use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tensor,
    OptionalTensor,
    Tensors,
    Int,
    Bool,
    Float,
    OptionalFloat,
    OptionalInts,
    OptionalDtype,
}

/// The types of a schema's arguments, in order.
pub struct Kinds {
    list: [Kind; MOST_ARGUMENTS],
    count: usize,
}

const MOST_ARGUMENTS: usize = 16;

impl Kinds {
    /// Read from a schema, "op(Tensor x, Tensor(a!) y, int n=0) -> ()". A type that is not known does not compile.
    pub const fn of(schema: &CStr) -> Kinds {
        let text = schema.to_bytes();
        let mut kinds = Kinds { list: [Kind::Int; MOST_ARGUMENTS], count: 0 };
        let mut at = 0;
        while text[at] != b'(' {
            at += 1;
        }
        // From one type to the next: each stands after the parenthesis, or after a comma and spaces.
        loop {
            at += 1;
            while text[at] == b' ' {
                at += 1;
            }
            let begin = at;
            while text[at] != b' ' {
                at += 1;
            }
            kinds.list[kinds.count] = Kind::named(text.split_at(begin).1.split_at(at - begin).0);
            kinds.count += 1;
            while text[at] != b',' && text[at] != b')' {
                at += 1;
            }
            if text[at] == b')' {
                return kinds;
            }
        }
    }

    pub const fn as_slice(&self) -> &[Kind] {
        self.list.split_at(self.count).0
    }
}

impl Kind {
    /// Of a type as schemas write it, with or without the mark of what is written to.
    const fn named(name: &[u8]) -> Kind {
        match name {
            b"Tensor" | [b'T', b'e', b'n', b's', b'o', b'r', b'(', _, b'!', b')'] => Kind::Tensor,
            b"Tensor?" | [b'T', b'e', b'n', b's', b'o', b'r', b'(', _, b'!', b')', b'?'] => Kind::OptionalTensor,
            b"Tensor[]" | [b'T', b'e', b'n', b's', b'o', b'r', b'(', _, b'!', b')', b'[', b']'] => Kind::Tensors,
            b"int" => Kind::Int,
            b"bool" => Kind::Bool,
            b"float" => Kind::Float,
            b"float?" => Kind::OptionalFloat,
            b"int[]?" => Kind::OptionalInts,
            b"ScalarType?" => Kind::OptionalDtype,
            _ => panic!("a type that no op has"),
        }
    }
}

/// The arguments of one call. Torch hands them over, so they are freed here.
pub struct Arguments<'a> {
    shim: &'static Shim,
    values: &'a [Value],
    kinds: &'static [Kind],
}

impl<'a> Arguments<'a> {
    /// # Safety
    /// Values as torch gives them to a kernel whose schema has these kinds, and owned by it.
    pub unsafe fn new(values: &'a [Value], kinds: &'static [Kind]) -> Arguments<'a> {
        Arguments { shim: Shim::get(), values, kinds }
    }

    pub fn shim(&self) -> &'static Shim {
        self.shim
    }

    fn value(&self, index: usize, kind: Kind) -> Value {
        debug_assert_eq!(self.kinds[index], kind, "argument {index}");
        self.values[index]
    }

    pub fn int(&self, index: usize) -> i64 {
        self.value(index, Kind::Int) as i64
    }

    pub fn bool(&self, index: usize) -> bool {
        self.value(index, Kind::Bool) as u8 != 0
    }

    pub fn float(&self, index: usize) -> f64 {
        f64::from_bits(self.value(index, Kind::Float))
    }

    /// What an optional argument points to.
    fn optional(&self, index: usize, kind: Kind) -> Option<Value> {
        let pointer = self.value(index, kind) as *const Value;
        // SAFETY: torch gives null, or a value that is this call's.
        unsafe { pointer.as_ref() }.copied()
    }

    pub fn optional_float(&self, index: usize) -> Option<f64> {
        self.optional(index, Kind::OptionalFloat).map(f64::from_bits)
    }

    /// Torch's number of a dtype.
    pub fn optional_dtype(&self, index: usize) -> Option<i32> {
        self.optional(index, Kind::OptionalDtype).map(|value| value as i32)
    }

    /// Empty if there are none.
    pub fn ints(&self, index: usize) -> Result<Vec<i64>> {
        match self.optional(index, Kind::OptionalInts) {
            Some(list) => items(self.shim, list)?.map(|item| item.map(|value| value as i64)).collect(),
            None => Ok(Vec::new()),
        }
    }

    pub fn handle(&self, index: usize) -> Handle {
        self.value(index, Kind::Tensor) as Handle
    }

    pub fn tensor(&self, index: usize, name: &'static str) -> Result<Tensor> {
        view(self.shim, self.handle(index), name)
    }

    pub fn optional_tensor(&self, index: usize, name: &'static str) -> Result<Option<Tensor>> {
        match self.optional(index, Kind::OptionalTensor) {
            Some(handle) => view(self.shim, handle as Handle, name).map(Some),
            None => Ok(None),
        }
    }

    /// The address of four int64 of this device, if they are given.
    pub fn health(&self, index: usize, device: i32) -> Result<*mut c_void> {
        let Some(handle) = self.optional(index, Kind::OptionalTensor) else { return Ok(std::ptr::null_mut()) };
        let fields = Fields::of(self.shim, handle as Handle)?;
        let (dtype, on) = (fields.dtype, device_of(self.shim, &fields)?);
        ensure!(dtype == self.shim.dtypes.int64, Dtype, "health has another dtype than int64");
        ensure!(on == device, Device, "health is on {}, the outputs on {}", Place(on), Place(device));
        let four = fields.sizes == [4] && fields.strides == [1];
        ensure!(four, Shape, "health must be 4 int64 side by side");
        Ok(fields.data)
    }

    /// The tensors of a list.
    pub fn tensors(&self, index: usize, name: &'static str) -> Result<Vec<Tensor>> {
        let list = self.value(index, Kind::Tensors);
        items(self.shim, list)?.map(|item| item.and_then(|handle| view(self.shim, handle as Handle, name))).collect()
    }
}

impl Drop for Arguments<'_> {
    fn drop(&mut self) {
        for (&value, &kind) in self.values.iter().zip(self.kinds) {
            // SAFETY: torch handed them over, and nobody uses them after this.
            unsafe { free(self.shim, value, kind) };
        }
    }
}

/// Failures of the shim's deleters are of null handles, which these are not.
///
/// # Safety
/// An owned argument of this kind.
unsafe fn free(shim: &Shim, value: Value, kind: Kind) {
    let handle = value as Handle;
    // SAFETY: the caller's promise; what a list or an optional holds is owned too.
    unsafe {
        match kind {
            Kind::Int | Kind::Bool | Kind::Float => {}
            Kind::Tensor => _ = (shim.base.delete_tensor)(handle),
            Kind::Tensors => {
                for item in items(shim, value).into_iter().flatten().flatten() {
                    (shim.base.delete_tensor)(item as Handle);
                }
                (shim.base.delete_list)(handle);
            }
            Kind::OptionalTensor => free_optional(shim, value, Some(shim.base.delete_tensor)),
            Kind::OptionalInts => free_optional(shim, value, Some(shim.base.delete_list)),
            Kind::OptionalFloat | Kind::OptionalDtype => free_optional(shim, value, None),
        }
    }
}

/// # Safety
/// An optional argument; `delete` fits what it points to.
unsafe fn free_optional(shim: &Shim, value: Value, delete: Option<unsafe extern "C" fn(Handle) -> i32>) {
    let pointer = value as *mut Value;
    if pointer.is_null() {
        return;
    }
    // SAFETY: the caller's promise: torch gives null, or a value that is this call's.
    unsafe {
        if let Some(delete) = delete {
            delete(*pointer as Handle);
        }
        shim.free_optional(pointer);
    }
}

/// The items of a list, which stay the list's.
fn items(shim: &Shim, list: Value) -> Result<impl Iterator<Item = Result<Value>>> {
    let list = list as Handle;
    let mut count = 0;
    // SAFETY: a list, and a place for its size.
    shim.expect(unsafe { (shim.base.list_size)(list, &mut count) }, "torch_list_size")?;
    Ok((0..count).map(move |index| {
        let mut value = 0;
        // SAFETY: an index within the list, and a place for the item.
        shim.expect(unsafe { (shim.base.list_item)(list, index, &mut value) }, "torch_list_get_item")?;
        Ok(value)
    }))
}

/// What torch says of a tensor.
struct Fields<'a> {
    data: *mut c_void,
    storage_bytes: i64,
    offset: i64,
    dtype: i32,
    device_type: i32,
    device_index: i32,
    sizes: &'a [i64],
    strides: &'a [i64],
}

impl<'a> Fields<'a> {
    #[inline]
    fn of(shim: &Shim, tensor: Handle) -> Result<Fields<'a>> {
        let base = &shim.base;
        let (mut data, mut storage_bytes, mut offset) = (std::ptr::null_mut(), 0, 0);
        let (mut dtype, mut device_type, mut device_index, mut dim) = (0, 0, 0, 0);
        let (mut sizes, mut strides) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a live tensor and places for the answers. One bit of any failure is enough: no strided tensor fails.
        let code = unsafe {
            (base.dim)(tensor, &mut dim)
                | (base.sizes)(tensor, &mut sizes)
                | (base.strides)(tensor, &mut strides)
                | (base.dtype)(tensor, &mut dtype)
                | (base.device_type)(tensor, &mut device_type)
                | (base.device_index)(tensor, &mut device_index)
                | (base.storage_size)(tensor, &mut storage_bytes)
                | (base.storage_offset)(tensor, &mut offset)
                | (base.data)(tensor, &mut data)
        };
        shim.expect(code, "asking a tensor for its shape and memory")?;
        let extents = |pointer: *mut i64| match dim as usize {
            0 => &[][..],
            // SAFETY: torch keeps an array of `dim` numbers as long as the tensor lives.
            count => unsafe { std::slice::from_raw_parts(pointer.cast_const(), count) },
        };
        let (sizes, strides) = (extents(sizes), extents(strides));
        Ok(Fields { data, storage_bytes, offset, dtype, device_type, device_index, sizes, strides })
    }
}

/// A device as torch writes it.
pub struct Place(pub i32);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        if self.0 < 0 { f.write_str("cpu") } else { write!(f, "cuda:{}", self.0) }
    }
}

/// -1 for the host, or the ordinal.
fn device_of(shim: &Shim, fields: &Fields) -> Result<i32> {
    let types = &shim.device_types;
    match fields.device_type {
        kind if kind == types.cuda => Ok(fields.device_index),
        kind if kind == types.cpu => Ok(crate::context::HOST),
        _ => fail!(Device, "a tensor is neither on the CPU nor on a CUDA device"),
    }
}

/// The dtype of a number of torch.
pub fn dtype_of(shim: &Shim, number: i32) -> Option<Dtype> {
    let known = &shim.dtypes;
    [
        (known.bf16, Dtype::Bf16),
        (known.e4m3, Dtype::E4m3),
        (known.f32, Dtype::F32),
        (known.f16, Dtype::F16),
        (known.int32, Dtype::Int32),
    ]
    .into_iter()
    .find_map(|(ours, dtype)| (ours == number).then_some(dtype))
}

/// A checked view of a tensor's memory, from its first element to the end of its storage.
pub fn view(shim: &Shim, tensor: Handle, name: &'static str) -> Result<Tensor> {
    let fields = Fields::of(shim, tensor)?;
    let Some(dtype) = dtype_of(shim, fields.dtype) else {
        fail!(Dtype, "{name} has a dtype that is none of bfloat16, float16, float32, float8_e4m3fn and int32")
    };
    let rank = fields.sizes.len();
    ensure!((1..=3).contains(&rank), Shape, "{name} has {rank} dimensions, must have 1, 2 or 3");
    let (mut shape, mut stride) = ([0; 3], [0; 3]);
    shape[..rank].copy_from_slice(fields.sizes);
    stride[..rank].copy_from_slice(fields.strides);
    let bytes = fields.storage_bytes - fields.offset * dtype.bytes() as i64;
    let description = Description {
        data: fields.data.cast(),
        bytes: bytes.max(0) as u64,
        dtype,
        device: device_of(shim, &fields)?,
        rank: rank as u32,
        shape: &shape,
        stride: &stride,
    };
    Tensor::new(name, &description)
}

/// Fails unless all tensors are on one device.
pub fn expect_device<'a>(device: i32, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    for tensor in tensors {
        let (name, on) = (tensor.name, tensor.device);
        ensure!(on == device, Device, "{name} is on {}, another tensor of the call on {}", Place(on), Place(device));
    }
    Ok(())
}
