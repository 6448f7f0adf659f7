//! libtorch's stable C interface, found in the process and never linked. What a function does is said in torch's own
//! headers: torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h.

use std::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use crate::error::{Result, ensure, fail};

/// A tensor, list or library of torch, opaque.
pub type Handle = *mut c_void;

/// An argument or a result of an op: a number, a pointer, or a handle.
pub type Value = u64;

/// A kernel that torch calls: values, number of arguments, number of results. It owns the arguments that are handles.
/// It may be left by torch's own exception.
pub type Kernel = unsafe extern "C-unwind" fn(*mut Value, u64, u64);

/// What a function of the shim returns: 0 is success.
type Code = i32;

/// The version of the interface that this file follows, as torch encodes it: 2.11. Later versions keep to it.
pub const VERSION: u64 = (2 << 56) | (11 << 48);

/// Declares a table of functions with the symbols behind its fields, and `load`, which looks all of them up.
macro_rules! functions {
    ($(#[$about:meta])* $table:ident { $($field:ident = $symbol:literal: $function:ty,)* }) => {
        $(#[$about])*
        pub struct $table {
            $(pub $field: $function,)*
        }

        impl $table {
            /// Fails with the name of the first symbol that is missing.
            fn load(library: &Library) -> Result<$table> {
                Ok($table {
                    $(
                        // SAFETY: torch keeps the types of these functions.
                        $field: unsafe { std::mem::transmute::<*mut c_void, $function>(library.require($symbol)?) },
                    )*
                })
            }
        }
    };
}

functions! {
    /// Functions of libtorch_cpu.so.
    Base {
        // Throws torch's exception if the condition is false: condition, function, file, line, message.
        check = c"aoti_torch_check":
            unsafe extern "C-unwind" fn(bool, *const c_char, *const c_char, u32, *const c_char),
        library_fragment = c"aoti_torch_library_init_fragment":
            unsafe extern "C" fn(*const c_char, *const c_char, u32, *mut Handle) -> Code,
        library_of_key = c"aoti_torch_library_init_impl":
            unsafe extern "C" fn(*const c_char, *const c_char, *const c_char, u32, *mut Handle) -> Code,
        library_define = c"aoti_torch_library_def": unsafe extern "C" fn(Handle, *const c_char) -> Code,
        library_implement = c"torch_library_impl": unsafe extern "C" fn(Handle, *const c_char, Kernel, u64) -> Code,
        delete_library = c"aoti_torch_delete_library_object": unsafe extern "C" fn(Handle) -> Code,
        call = c"torch_call_dispatcher":
            unsafe extern "C" fn(*const c_char, *const c_char, *mut Value, u64) -> Code,
        empty_strided = c"aoti_torch_empty_strided":
            unsafe extern "C" fn(i64, *const i64, *const i64, i32, i32, i32, *mut Handle) -> Code,
        new_tensor_handle = c"aoti_torch_new_tensor_handle": unsafe extern "C" fn(Handle, *mut Handle) -> Code,
        delete_tensor = c"aoti_torch_delete_tensor_object": unsafe extern "C" fn(Handle) -> Code,
        dim = c"aoti_torch_get_dim": unsafe extern "C" fn(Handle, *mut i64) -> Code,
        sizes = c"aoti_torch_get_sizes": unsafe extern "C" fn(Handle, *mut *mut i64) -> Code,
        strides = c"aoti_torch_get_strides": unsafe extern "C" fn(Handle, *mut *mut i64) -> Code,
        dtype = c"aoti_torch_get_dtype": unsafe extern "C" fn(Handle, *mut i32) -> Code,
        device_type = c"aoti_torch_get_device_type": unsafe extern "C" fn(Handle, *mut i32) -> Code,
        device_index = c"aoti_torch_get_device_index": unsafe extern "C" fn(Handle, *mut i32) -> Code,
        data = c"aoti_torch_get_data_ptr": unsafe extern "C" fn(Handle, *mut *mut c_void) -> Code,
        storage_size = c"aoti_torch_get_storage_size": unsafe extern "C" fn(Handle, *mut i64) -> Code,
        storage_offset = c"aoti_torch_get_storage_offset": unsafe extern "C" fn(Handle, *mut i64) -> Code,
        list_size = c"torch_list_size": unsafe extern "C" fn(Handle, *mut usize) -> Code,
        list_item = c"torch_list_get_item": unsafe extern "C" fn(Handle, usize, *mut Value) -> Code,
        delete_list = c"torch_delete_list": unsafe extern "C" fn(Handle) -> Code,
        new_string = c"torch_new_string_handle": unsafe extern "C" fn(*const c_char, usize, *mut Handle) -> Code,
        num_threads = c"torch_get_num_threads": unsafe extern "C" fn(*mut u32) -> Code,
        current_device = c"aoti_torch_get_current_device_index": unsafe extern "C" fn(*mut i32) -> Code,
        type_cpu = c"aoti_torch_device_type_cpu": unsafe extern "C" fn() -> i32,
        type_cuda = c"aoti_torch_device_type_cuda": unsafe extern "C" fn() -> i32,
        type_bf16 = c"aoti_torch_dtype_bfloat16": unsafe extern "C" fn() -> i32,
        type_f16 = c"aoti_torch_dtype_float16": unsafe extern "C" fn() -> i32,
        type_f32 = c"aoti_torch_dtype_float32": unsafe extern "C" fn() -> i32,
        type_e4m3 = c"aoti_torch_dtype_float8_e4m3fn": unsafe extern "C" fn() -> i32,
        type_int32 = c"aoti_torch_dtype_int32": unsafe extern "C" fn() -> i32,
        type_int64 = c"aoti_torch_dtype_int64": unsafe extern "C" fn() -> i32,
        type_uint8 = c"aoti_torch_dtype_uint8": unsafe extern "C" fn() -> i32,
        contiguous_format = c"aoti_torch_memory_format_contiguous_format": unsafe extern "C" fn() -> i32,
    }
}

functions! {
    /// Functions of libtorch_cuda.so.
    Cuda {
        current_stream = c"aoti_torch_get_current_cuda_stream": unsafe extern "C" fn(i32, *mut *mut c_void) -> Code,
        // Memory on the current device, for its current stream.
        allocate = c"aoti_torch_cuda_caching_allocator_raw_alloc":
            unsafe extern "C" fn(u64, *mut *mut c_void) -> Code,
        free = c"aoti_torch_cuda_caching_allocator_raw_delete": unsafe extern "C" fn(*mut c_void) -> Code,
        new_guard = c"aoti_torch_create_cuda_guard": unsafe extern "C" fn(i32, *mut Handle) -> Code,
        delete_guard = c"aoti_torch_delete_cuda_guard": unsafe extern "C" fn(Handle) -> Code,
    }
}

/// Frees the value that an optional argument points to.
enum FreeOptional {
    /// What torch 2.13 and later have for it.
    Shim(unsafe extern "C" fn(*mut Value) -> Code),
    /// Before, it is memory of C++'s `new`, which has no name in C.
    Delete(unsafe extern "C" fn(*mut c_void)),
}

/// What was found, and numbers that do not change while the process lives.
pub struct Shim {
    pub base: Base,
    /// `None`: this torch has no CUDA.
    pub cuda: Option<Cuda>,
    free_optional: FreeOptional,
    /// What the last failure was; torch 2.13 and later.
    what: Option<unsafe extern "C" fn() -> *const c_char>,
    pub device_types: DeviceTypes,
    pub dtypes: Dtypes,
}

pub struct DeviceTypes {
    pub cpu: i32,
    pub cuda: i32,
}

pub struct Dtypes {
    pub bf16: i32,
    pub f16: i32,
    pub f32: i32,
    pub e4m3: i32,
    pub int32: i32,
    pub int64: i32,
    pub uint8: i32,
}

static SHIM: OnceLock<Shim> = OnceLock::new();

/// A shared library that is in the process already. It stays there: it is never closed.
struct Library {
    handle: *mut c_void,
    name: &'static CStr,
}

impl Library {
    fn present(name: &'static CStr) -> Option<Library> {
        // SAFETY: RTLD_NOLOAD finds what is there and loads nothing.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!handle.is_null()).then_some(Library { handle, name })
    }

    /// The symbol here or in what this library was linked with; null if there is none.
    fn find(&self, symbol: &CStr) -> *mut c_void {
        // SAFETY: an open library and a name.
        unsafe { libc::dlsym(self.handle, symbol.as_ptr()) }
    }

    fn require(&self, symbol: &'static CStr) -> Result<*mut c_void> {
        let (found, name) = (self.find(symbol), self.name.to_string_lossy());
        ensure!(!found.is_null(), Unsupported, "{name} of this process has no {}", symbol.to_string_lossy());
        Ok(found)
    }
}

/// Where this process's C++ code finds `operator delete`: a replacement of the whole program comes first.
fn operator_delete(library: &Library) -> Result<*mut c_void> {
    const NAME: &CStr = c"_ZdlPv";
    // SAFETY: a name.
    let global = unsafe { libc::dlsym(libc::RTLD_DEFAULT, NAME.as_ptr()) };
    if global.is_null() { library.require(NAME) } else { Ok(global) }
}

impl Shim {
    #[cfg(not(any(test, miri)))]
    pub fn is_torch_present() -> bool {
        Library::present(c"libtorch_cpu.so").is_some()
    }

    /// Finds torch in the process, and everything that is used of it.
    pub fn load() -> Result<&'static Shim> {
        if let Some(shim) = SHIM.get() {
            return Ok(shim);
        }
        let Some(library) = Library::present(c"libtorch_cpu.so") else {
            fail!(Unsupported, "libtorch_cpu.so is not in this process: import torch before")
        };
        // Asked alone, so that an old torch is told by its version and not by a symbol.
        let version = library.find(c"aoti_torch_abi_version");
        ensure!(!version.is_null(), Unsupported, "this torch is older than 2.9, 2.11 is needed");
        // SAFETY: takes nothing, and gives a number.
        let version = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> u64>(version)() };
        let (major, minor) = (version >> 56, version >> 48 & 0xFF);
        ensure!(version >= VERSION, Unsupported, "this torch is {major}.{minor}, 2.11 is needed");
        let shim = Shim::found(&library)?;
        Ok(SHIM.get_or_init(|| shim))
    }

    fn found(library: &Library) -> Result<Shim> {
        let base = Base::load(library)?;
        let cuda = Library::present(c"libtorch_cuda.so").map(|library| Cuda::load(&library)).transpose()?;
        let (free, what) =
            (library.find(c"torch_delete_stable_ivalue"), library.find(c"torch_exception_get_what_without_backtrace"));
        // SAFETY: the types of these functions, and of getters without arguments.
        unsafe {
            let free_optional = if free.is_null() {
                FreeOptional::Delete(std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(
                    operator_delete(library)?,
                ))
            } else {
                FreeOptional::Shim(std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut Value) -> Code>(free))
            };
            let what = (!what.is_null())
                .then(|| std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> *const c_char>(what));
            let device_types = DeviceTypes { cpu: (base.type_cpu)(), cuda: (base.type_cuda)() };
            let dtypes = Dtypes {
                bf16: (base.type_bf16)(),
                f16: (base.type_f16)(),
                f32: (base.type_f32)(),
                e4m3: (base.type_e4m3)(),
                int32: (base.type_int32)(),
                int64: (base.type_int64)(),
                uint8: (base.type_uint8)(),
            };
            Ok(Shim { base, cuda, free_optional, what, device_types, dtypes })
        }
    }

    /// What kernels use: torch calls them only after `load` has succeeded.
    #[inline]
    pub fn get() -> &'static Shim {
        SHIM.get().expect("torch was found before a kernel was registered")
    }

    /// The functions of CUDA: a tensor on a GPU says that they are there.
    pub fn cuda(&self) -> Result<&Cuda> {
        match &self.cuda {
            Some(cuda) => Ok(cuda),
            None => fail!(Unsupported, "libtorch_cuda.so was not in this process when the ops were registered"),
        }
    }

    /// Fails if a function of the shim did.
    #[inline]
    pub fn expect(&self, code: Code, function: &'static str) -> Result<()> {
        if code == 0 { Ok(()) } else { self.failed(function) }
    }

    #[cold]
    fn failed(&self, function: &'static str) -> Result<()> {
        // SAFETY: gives this thread's last message, or null.
        let text = self.what.map(|what| unsafe { what() }).filter(|text| !text.is_null());
        // SAFETY: a zero-terminated text, valid until this thread's next failure.
        let text = text.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy());
        let text = text.filter(|text| !text.is_empty()).unwrap_or("torch printed why to stderr".into());
        fail!(Internal, "{function} of libtorch failed: {text}")
    }

    /// # Safety
    /// An optional argument of a kernel that is not null, and was not freed.
    pub unsafe fn free_optional(&self, value: *mut Value) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.free_optional {
                FreeOptional::Shim(free) => _ = free(value),
                FreeOptional::Delete(delete) => delete(value.cast()),
            }
        }
    }
}
