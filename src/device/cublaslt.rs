//! cuBLASLt, opened at run time: its handle, what it can do, and one product through it.

use std::ffi::c_void;
use std::ptr::NonNull;

use cudarc::cublaslt::sys as lt;

use crate::blocks::groups;
use crate::error::{Kind, Result, fail, make};
use crate::kernels::CopyArguments;
use crate::linear::WORKSPACE_ALIGNMENT;
use crate::tensor::Dtype;

use super::linear::Product;
use super::{Device, RelaxedCapture, Stream};

/// The first version with scales of 1x128 and 128x128.
const LEAST_VERSION: usize = 120_900;
/// Memory that an algorithm may ask for.
const ALGORITHM_BYTES: usize = 4 << 20;
/// Its scales of a weight have rows of a multiple of so many blocks. With others it computes something else, and says nothing.
const SCALE_COLUMNS: usize = 4;
/// CUBLAS_OP_T.
const TRANSPOSED: i32 = 1;
/// Rows of x come in multiples of this.
pub const ROWS: usize = 4;

const FUNCTIONS: [&[u8]; 10] = [
    b"cublasLtGetVersion\0",
    b"cublasLtCreate\0",
    b"cublasLtDestroy\0",
    b"cublasLtMatmul\0",
    b"cublasLtMatmulAlgoGetHeuristic\0",
    b"cublasLtMatmulDescInit_internal\0",
    b"cublasLtMatmulDescSetAttribute\0",
    b"cublasLtMatrixLayoutInit_internal\0",
    b"cublasLtMatmulPreferenceInit_internal\0",
    b"cublasLtMatmulPreferenceSetAttribute\0",
];

/// The library's handle for one context.
pub struct Handle(NonNull<c_void>);

// SAFETY: the library lets any thread use a handle.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Releases it. The context that it was made in is current.
    pub fn destroy(self) {
        // SAFETY: made by `cublasLtCreate`, and used by nobody any more.
        unsafe { lt::cublasLtDestroy(self.0.as_ptr().cast()) };
    }
}

/// Row-major y [m, n] as the library sees it: column-major, n x m.
#[derive(Clone, Copy)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub codes_stride: usize,
    pub weight_stride: usize,
    pub output_stride: usize,
    pub output: Dtype,
}

/// Memory for one of the library's structs, larger than any of its versions needs.
#[repr(C, align(16))]
struct Opaque([u64; 32]);

impl Opaque {
    const BYTES: usize = size_of::<Opaque>();

    fn new() -> Opaque {
        Opaque([0; 32])
    }

    fn pointer<T>(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

/// The structs of one product.
struct Descriptions {
    product: Opaque,
    weight: Opaque,
    codes: Opaque,
    output: Opaque,
}

/// Where things lie in the workspace of a product, after the weight's scales: scales of x, the last rows of codes and of y
/// if there are fewer than [`ROWS`], and the algorithm's own.
struct Layout {
    scales: usize,
    codes: usize,
    output: usize,
    own: usize,
    total: usize,
}

impl Shape {
    fn groups(&self) -> usize {
        groups(self.k)
    }

    fn weight_scale_columns(&self) -> usize {
        self.groups().next_multiple_of(SCALE_COLUMNS)
    }

    fn layout(&self) -> Layout {
        let align = |bytes: usize| bytes.next_multiple_of(WORKSPACE_ALIGNMENT);
        let scales = align(4 * groups(self.n) * self.weight_scale_columns());
        let codes = scales + align(4 * self.m.next_multiple_of(ROWS) * self.groups());
        let output = codes + align(ROWS * self.k);
        let own = output + align(ROWS * self.n * self.output.bytes());
        Layout { scales, codes, output, own, total: own + ALGORITHM_BYTES }
    }

    /// Bytes of workspace. Monotone in m.
    pub fn workspace(&self) -> usize {
        self.layout().total
    }
}

/// Operands of one call of the library: a multiple of [`ROWS`] rows.
struct Call {
    codes: *const u8,
    scales: *const f32,
    output: *mut u8,
}

fn check(status: lt::cublasStatus_t, function: &'static str) -> Result<()> {
    if status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(make(Kind::Internal, move || format!("{function} failed with {}, {status:?}", status as u32)))
}

impl Descriptions {
    fn new(shape: &Shape) -> Result<Descriptions> {
        let opaque = Opaque::new;
        let mut all = Descriptions { product: opaque(), weight: opaque(), codes: opaque(), output: opaque() };
        let float = lt::cudaDataType_t::CUDA_R_32F;
        // SAFETY: memory for the struct, which is larger than it is.
        let status = unsafe {
            lt::cublasLtMatmulDescInit_internal(
                all.product.pointer(),
                Opaque::BYTES,
                lt::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                float,
            )
        };
        check(status, "cublasLtMatmulDescInit_internal")?;
        let codes = lt::cudaDataType_t::CUDA_R_8F_E4M3;
        let output = if shape.output == Dtype::F32 { float } else { lt::cudaDataType_t::CUDA_R_16BF };
        let (k, n, m) = (shape.k, shape.n, shape.m);
        for (layout, kind, rows, columns, stride) in [
            (&mut all.weight, codes, k, n, shape.weight_stride),
            (&mut all.codes, codes, k, m, shape.codes_stride),
            (&mut all.output, output, n, m, shape.output_stride),
        ] {
            let (rows, columns) = (rows as u64, columns as u64);
            // SAFETY: as above.
            let status = unsafe {
                lt::cublasLtMatrixLayoutInit_internal(
                    layout.pointer(),
                    Opaque::BYTES,
                    kind,
                    rows,
                    columns,
                    stride as i64,
                )
            };
            check(status, "cublasLtMatrixLayoutInit_internal")?;
        }
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        use lt::cublasLtMatmulMatrixScale_t as Scale;
        all.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        all.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &Scale::CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F)?;
        all.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &Scale::CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F)?;
        Ok(all)
    }

    fn set<T>(&mut self, attribute: lt::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let value: *const T = value;
        // SAFETY: the attribute has the size of T, which the callers see to.
        let status = unsafe {
            lt::cublasLtMatmulDescSetAttribute(self.product.pointer(), attribute, value.cast(), size_of::<T>())
        };
        check(status, "cublasLtMatmulDescSetAttribute")
    }

    fn set_scales(&mut self, weight: *const f32, codes: *const f32) -> Result<()> {
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &weight)?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &codes)
    }

    /// The algorithm that the library would take; `None` if it has none.
    fn algorithm(&mut self, handle: &Handle) -> Result<Option<lt::cublasLtMatmulAlgo_t>> {
        let mut preference = Preference::new()?;
        // SAFETY: a struct of plain numbers.
        let mut found: lt::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: initialized descriptions, and room for one answer.
        let status = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                handle.0.as_ptr().cast(),
                self.product.pointer(),
                self.weight.pointer(),
                self.codes.pointer(),
                self.output.pointer(),
                self.output.pointer(),
                preference.0.pointer(),
                1,
                &mut found,
                &mut count,
            )
        };
        if status == lt::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(None);
        }
        check(status, "cublasLtMatmulAlgoGetHeuristic")?;
        Ok((count > 0 && found.state == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(found.algo))
    }
}

/// How much memory an algorithm may have.
struct Preference(Opaque);

impl Preference {
    fn new() -> Result<Preference> {
        let mut preference = Preference(Opaque::new());
        let attribute = lt::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: memory for the struct, which is larger than it is; the attribute is a size.
        unsafe {
            let status = lt::cublasLtMatmulPreferenceInit_internal(preference.0.pointer(), Opaque::BYTES);
            check(status, "cublasLtMatmulPreferenceInit_internal")?;
            let bytes: *const usize = &ALGORITHM_BYTES;
            let status = lt::cublasLtMatmulPreferenceSetAttribute(
                preference.0.pointer(),
                attribute,
                bytes.cast(),
                size_of::<usize>(),
            );
            check(status, "cublasLtMatmulPreferenceSetAttribute")?;
        }
        Ok(preference)
    }
}

/// Why there is no usable cuBLASLt; `None` if there is one.
fn missing() -> Option<String> {
    // SAFETY: opens a library that the system provides, as the ones below.
    if !unsafe { lt::is_culib_present() } {
        return Some("no libcublasLt was found".to_owned());
    }
    for name in FUNCTIONS {
        // SAFETY: only asks whether the symbol is there.
        if unsafe { lt::culib().get::<*const ()>(name) }.is_err() {
            return Some(format!("libcublasLt has no {}", String::from_utf8_lossy(&name[..name.len() - 1])));
        }
    }
    // SAFETY: found above.
    let version = unsafe { lt::cublasLtGetVersion() };
    (version < LEAST_VERSION).then(|| format!("libcublasLt is version {version}, needs {LEAST_VERSION}"))
}

impl Device {
    /// Why cuBLASLt does not take this product; `None` if it does. Opens the library.
    pub fn cublaslt_refusal(&self, shape: &Shape) -> Option<String> {
        missing().or_else(|| {
            let asked = self.cublaslt().and_then(|handle| {
                let mut descriptions = Descriptions::new(shape)?;
                // It asks for scales before it answers, but reads none.
                let somewhere = std::ptr::without_provenance(256);
                descriptions.set_scales(somewhere, somewhere)?;
                descriptions.algorithm(handle)
            });
            match asked {
                Ok(Some(_)) => None,
                Ok(None) => {
                    Some(format!("libcublasLt has no algorithm for M = {}, N = {}, K = {}", shape.m, shape.n, shape.k))
                }
                Err(error) => Some(error.message),
            }
        })
    }

    /// The handle, made when it is first asked for.
    fn cublaslt(&self) -> Result<&Handle> {
        if let Some(handle) = self.cublaslt.get() {
            return Ok(handle);
        }
        let _current = self.enter()?;
        let _relaxed = RelaxedCapture::new();
        let mut made = std::ptr::null_mut();
        // SAFETY: `missing` found the function; our context is current.
        check(unsafe { lt::cublasLtCreate(&mut made) }, "cublasLtCreate")?;
        let Some(made) = NonNull::new(made.cast::<c_void>()) else { fail!(Internal, "cublasLtCreate gave no handle") };
        if let Err(other) = self.cublaslt.set(Handle(made)) {
            other.destroy();
        }
        Ok(self.cublaslt.get().expect("set by one of us"))
    }

    /// Enqueues a product that `cublaslt_refusal` let pass. `workspace` is of [`Shape::workspace`] bytes.
    pub fn multiply_with_cublaslt(
        &self,
        shape: &Shape,
        product: &Product,
        workspace: *mut u8,
        stream: Stream,
    ) -> Result<()> {
        let layout = shape.layout();
        let at = |offset: usize| workspace.wrapping_add(offset);
        self.pad_weight_scales(shape, product, at(0).cast(), stream)?;
        let whole = shape.m - shape.m % ROWS;
        if whole > 0 {
            let shape = Shape { m: whole, ..*shape };
            let scales = self.compact_scales(&shape, product, 0, at(layout.scales).cast(), stream)?;
            let call = Call { codes: product.codes, scales, output: product.output };
            self.call(&shape, product, &call, (at(0), at(layout.own)), stream)?;
        }
        if whole == shape.m {
            return Ok(());
        }
        // The last rows, with others beside them that are zero, in the workspace.
        let output = product.output.wrapping_add(whole * shape.output_stride * shape.output.bytes());
        let codes = Rows {
            from: product.codes.wrapping_add(whole * product.codes_stride),
            from_stride: product.codes_stride,
            to: at(layout.codes),
            to_stride: shape.k,
            rows: shape.m - whole,
            padded_rows: ROWS,
            bytes: shape.k,
        };
        self.copy_rows(&codes, stream)?;
        let last = Shape { m: ROWS, codes_stride: shape.k, output_stride: shape.n, ..*shape };
        let scales = at(layout.scales).cast::<f32>().wrapping_add(whole * shape.groups());
        self.compact_scales(&Shape { m: shape.m - whole, ..last }, product, whole, scales, stream)?;
        let call = Call { codes: codes.to, scales, output: at(layout.output) };
        self.call(&last, product, &call, (at(0), at(layout.own)), stream)?;
        let bytes = shape.output.bytes();
        let rows = Rows {
            from: at(layout.output),
            from_stride: shape.n * bytes,
            to: output,
            to_stride: shape.output_stride * bytes,
            rows: shape.m - whole,
            padded_rows: shape.m - whole,
            bytes: shape.n * bytes,
        };
        self.copy_rows(&rows, stream)
    }

    fn call(
        &self,
        shape: &Shape,
        product: &Product,
        call: &Call,
        (weight_scales, own): (*mut u8, *mut u8),
        stream: Stream,
    ) -> Result<()> {
        let handle = self.cublaslt()?;
        let mut descriptions = Descriptions::new(shape)?;
        descriptions.set_scales(weight_scales.cast_const().cast(), call.scales)?;
        let Some(algorithm) = descriptions.algorithm(handle)? else {
            fail!(Unsupported, "libcublasLt has no algorithm for M = {}, N = {}, K = {}", shape.m, shape.n, shape.k)
        };
        let (alpha, beta) = (1.0f32, 0.0f32);
        let _relaxed = RelaxedCapture::new();
        // SAFETY: descriptions of these matrices; the scalars are read before the call returns.
        let status = unsafe {
            lt::cublasLtMatmul(
                handle.0.as_ptr().cast(),
                descriptions.product.pointer(),
                (&raw const alpha).cast(),
                product.weight.cast(),
                descriptions.weight.pointer(),
                call.codes.cast(),
                descriptions.codes.pointer(),
                (&raw const beta).cast(),
                call.output.cast_const().cast(),
                descriptions.output.pointer(),
                call.output.cast(),
                descriptions.output.pointer(),
                &algorithm,
                own.cast(),
                ALGORITHM_BYTES,
                stream.0.cast(),
            )
        };
        check(status, "cublasLtMatmul")
    }

    fn pad_weight_scales(&self, shape: &Shape, product: &Product, to: *mut f32, stream: Stream) -> Result<()> {
        let (rows, columns) = (groups(shape.n), shape.groups());
        let padded = shape.weight_scale_columns();
        let arguments = CopyArguments {
            source: product.weight_scales.cast(),
            target: to.cast(),
            source_row: columns as i64,
            source_column: 1,
            target_row: padded as i64,
            target_column: 1,
            rows: rows as u32,
            columns: columns as u32,
            padded_rows: rows as u32,
            padded_columns: padded as u32,
        };
        self.copy_words(&arguments, stream)
    }

    /// Scales of rows of x from `first` on, whose columns are as far apart as they have rows.
    fn compact_scales(
        &self,
        shape: &Shape,
        product: &Product,
        first: usize,
        to: *mut f32,
        stream: Stream,
    ) -> Result<*const f32> {
        let padded = shape.m.next_multiple_of(ROWS);
        if first == 0 && product.scales_stride == shape.m {
            return Ok(product.scales);
        }
        let groups = shape.groups() as u32;
        let arguments = CopyArguments {
            source: product.scales.wrapping_add(first).cast(),
            target: to.cast(),
            source_row: 1,
            source_column: product.scales_stride as i64,
            target_row: 1,
            target_column: padded as i64,
            rows: shape.m as u32,
            columns: groups,
            padded_rows: padded as u32,
            padded_columns: groups,
        };
        self.copy_words(&arguments, stream)?;
        Ok(to)
    }

    fn copy_rows(&self, rows: &Rows, stream: Stream) -> Result<()> {
        let columns = (rows.bytes / WORD) as u32;
        let arguments = CopyArguments {
            source: rows.from.cast(),
            target: rows.to.cast(),
            source_row: (rows.from_stride / WORD) as i64,
            source_column: 1,
            target_row: (rows.to_stride / WORD) as i64,
            target_column: 1,
            rows: rows.rows as u32,
            columns,
            padded_rows: rows.padded_rows as u32,
            padded_columns: columns,
        };
        self.copy_words(&arguments, stream)
    }
}

/// Bytes that are copied at once. Codes have a multiple of 16 in a row, y of 8 elements.
const WORD: usize = 4;

/// Rows of bytes that are copied; strides in bytes.
struct Rows {
    from: *const u8,
    from_stride: usize,
    to: *mut u8,
    to_stride: usize,
    rows: usize,
    padded_rows: usize,
    bytes: usize,
}
