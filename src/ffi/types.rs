//! The plain C types of the interface. Nothing here is trusted: `convert` turns each into a checked value.

// C names, as the header shows them.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};

/// What a call returns. 0 is success; a number keeps its meaning for ever.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_status {
    /// The call was validated and, on a GPU, enqueued.
    OK = 0,
    /// A flag, an enumeration or a number is outside what the function takes.
    INVALID_ARGUMENT = 1,
    /// A pointer that must not be NULL is.
    NULL_POINTER = 2,
    /// A shape does not fit the other arguments.
    SHAPE = 3,
    /// A stride is not one that the function takes.
    STRIDE = 4,
    /// A pointer or a stride is not aligned as required.
    ALIGNMENT = 5,
    /// A tensor has a dtype that the function does not take.
    DTYPE = 6,
    /// A tensor is on another device than the context.
    DEVICE = 7,
    /// `bytes` of a tensor does not cover its shape and strides.
    BOUNDS = 8,
    /// An output overlaps an input or another output.
    OVERLAP = 9,
    /// The workspace is missing or too small.
    WORKSPACE = 10,
    /// `struct_size` is none that this library knows, or a field that it does not know is not zero.
    STRUCT_SIZE = 11,
    /// This build, this device or this shape has no way to do it. The message says which.
    UNSUPPORTED = 12,
    /// Called while a graph is captured, without having been prepared before.
    NOT_PREPARED = 13,
    /// No CUDA driver, or no such device.
    NO_DEVICE = 14,
    /// A GPU context was used in a child process after `fork`.
    FORKED = 15,
    /// Host or device memory ran out.
    OUT_OF_MEMORY = 16,
    /// CUDA failed; `fp8rt_last_cuda_error` has the number. Outputs are undefined.
    CUDA_ERROR = 17,
    /// A fault of this library. The message is worth a report.
    INTERNAL = 18,
    /// Something of a refit was not filled. The message names the first and the count.
    INCOMPLETE = 19,
    /// The object is not in the state that this call needs. The message says what brings it there.
    STATE = 20,
}

/// Element types.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_dtype {
    /// bfloat16.
    BF16 = 1,
    /// IEEE binary16.
    F16 = 2,
    /// IEEE binary32.
    F32 = 3,
    /// FP8 E4M3FN: largest value 448, no infinity, NaN 0x7F.
    E4M3 = 4,
    /// Four UE8M0 exponents packed into an int32, lowest group in the lowest byte.
    INT32 = 5,
}

/// A named formula from amax to scale and codes. The table of formulas is in the README.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_recipe {
    /// `NEMO_RL` for weights, `VLLM` for activations.
    DEFAULT = 0,
    /// vLLM's activation op: scale max(amax, 1e-10) / 448, code x * (1 / scale).
    VLLM = 1,
    /// DeepGEMM's weight cast on a GPU: scale max(amax, 1e-4) * (1/448), code x * (1 / scale).
    DEEPGEMM = 2,
    /// NeMo-RL's weight cast in torch: r = (1 / amax) * 448, scale 1 / r, code x * r.
    NEMO_RL = 3,
    /// TransformerEngine's blockwise cast: r = 448 / amax, scale 1 / r, code x * r.
    TE = 4,
}

/// How scales are stored.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_scale_format {
    /// float32, as the recipe gives it.
    FP32 = 0,
    /// float32, the smallest power of two that brings amax to 448 or below.
    POW2 = 1,
    /// The exponents of POW2, four groups to an int32 `[rows, ceil(K/512)]`, always column-major with padding as for
    /// activations: see `fp8rt_scale_layout`. A weight has a row of them for each of its N rows. What SM100 reads.
    UE8M0_PACKED = 2,
}

/// How the scales of activations lie in memory.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_scale_layout {
    /// Stride (1, c), c a multiple of 4 and at least M: what TMA reads. Rows M to the next multiple of 4 are zeroed.
    COLUMN_MAJOR = 0,
    /// Stride (r, 1), r at least ceil(K/128).
    ROW_MAJOR = 1,
}

/// Ways to run a linear, as bits, in the order in which they are asked.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_backend {
    /// DeepGEMM's kernels, compiled ahead of time (Hopper).
    DEEPGEMM = 2,
    /// CUTLASS's blockwise-scaled kernels, compiled ahead of time.
    CUTLASS = 4,
    /// cuBLASLt, opened at run time.
    CUBLASLT = 8,
    /// This library's own kernel for any shape and stride.
    PLAIN = 16,
    /// Host memory.
    CPU = 32,
}

/// Whose settings a policy is made of.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_policy_kind {
    /// Told from the keys of the settings.
    AUTO = 0,
    /// A `vllm_cfg` of NeMo-RL, or an object that holds one.
    NEMO_RL = 1,
    /// A `quantization_config` of Hugging Face, or a config.json that holds one.
    HUGGING_FACE = 2,
    /// verl's `rollout.quantization`.
    VERL = 3,
    /// This library's own: `{"fp8rt": {...}}`.
    FP8RT = 4,
}

/// What a policy decides for a parameter or a module.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_policy_action {
    /// It stays in the type that the trainer has.
    KEEP = 0,
    /// It becomes codes and scales.
    FP8 = 1,
}

/// How a weight [N, K] is cut over tensor-parallel ranks.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_split {
    /// Every rank holds the whole.
    NONE = 0,
    /// Out features are cut (column-parallel: q, k, v, gate, up).
    ROWS = 1,
    /// In features are cut (row-parallel: o, down).
    COLUMNS = 2,
}

/// Where a refit stands.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_refit_state {
    /// Not begun, or finished.
    IDLE = 0,
    /// Begun: runs are taken.
    OPEN = 1,
    /// A run failed after something was enqueued: what the destinations hold is not known until the next refit.
    FAILED = 2,
}

/// Forms of a report.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum fp8rt_report_format {
    /// An object with `suggestion`, `total`, `layers`, `projections`, `tensors`, `not_measured` and `definitions`.
    JSON = 0,
    /// Tables for a terminal, in UTF-8.
    TEXT = 1,
    /// One page that needs nothing else, with charts over the layers.
    HTML = 2,
}

/// `fp8rt_quantize_desc.flags`: `floor` is set. Without it the recipe's own floor holds.
pub const FP8RT_QUANTIZE_FLOOR: u32 = 1;

/// `fp8rt_linear_desc.flags`: the bits of a row of y do not depend on M, on other rows, on the tile or on graph capture.
pub const FP8RT_LINEAR_BATCH_INVARIANT: u32 = 1;
/// `fp8rt_linear_desc.flags`: `floor` is set. Without it the recipe's own floor holds.
pub const FP8RT_LINEAR_FLOOR: u32 = 2;

/// `fp8rt_refit_destination.flags`: `floor` is set. Without it the recipe's own floor holds.
pub const FP8RT_REFIT_DESTINATION_FLOOR: u32 = 1;
/// `fp8rt_refit_destination.flags`: its regions need not fill all of it; the rest stays as it is (a padded vocabulary).
pub const FP8RT_REFIT_DESTINATION_PARTLY: u32 = 2;
/// `fp8rt_refit_item.flags`: `part` is read.
pub const FP8RT_REFIT_ITEM_PART: u32 = 1;
/// `fp8rt_refit_item.flags`: `expert` is read.
pub const FP8RT_REFIT_ITEM_EXPERT: u32 = 2;
/// Flag of `fp8rt_refit_finish`: destinations that nothing was written to are as they shall be.
pub const FP8RT_REFIT_PARTIAL: u32 = 1;

/// Alignment of a workspace, in bytes.
pub const FP8RT_WORKSPACE_ALIGNMENT: u32 = 256;

/// `fp8rt_log_callback` levels: one line for each decision (FP8RT_VERBOSE=1).
pub const FP8RT_LOG_INFO: u32 = 1;
/// `fp8rt_log_callback` levels: something the owner of the process should look at.
pub const FP8RT_LOG_WARNING: u32 = 2;

/// A strided view of memory that the caller owns.
///
/// Unused entries of `shape` and `stride` are ignored. A view without elements may have `data` NULL.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_tensor {
    /// First element.
    pub data: *mut c_void,
    /// Size of the memory from `data` on. No access goes beyond it.
    pub bytes: u64,
    /// An `fp8rt_dtype`.
    pub dtype: u32,
    /// -1 for host memory, else a CUDA device ordinal.
    pub device: i32,
    /// 1, 2 or 3. Rank 3 is `[experts, N, K]`.
    pub rank: u32,
    /// 0.
    pub reserved: u32,
    /// Extents, outermost first.
    pub shape: [i64; 3],
    /// Strides in elements, outermost first.
    pub stride: [i64; 3],
}

/// Counters that a quantizing call adds to. For a GPU context the struct lies in device memory. 8-byte aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct fp8rt_health {
    /// Elements that are NaN or infinite.
    pub non_finite: u64,
    /// Finite elements too large for a given scale: |x / scale| > 464, which would round past 448.
    pub saturated: u64,
    /// Non-zero elements whose code is zero.
    pub became_zero: u64,
    /// Elements whose code is a subnormal of E4M3, magnitude 2^-9 to 7 * 2^-9.
    pub became_subnormal: u64,
}

/// Where a context runs. NULL in place of it means a host context with all cores.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_context_desc {
    /// `sizeof(fp8rt_context_desc)`.
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// -1 for the host, else a CUDA device ordinal.
    pub device: i32,
    /// Threads that the context owns, the caller's not counted; 0: as many as this process may use.
    pub num_threads: u32,
}

/// How to quantize. NULL in place of it means every default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_quantize_desc {
    /// `sizeof(fp8rt_quantize_desc)`.
    pub struct_size: u32,
    /// `FP8RT_QUANTIZE_FLOOR` or 0.
    pub flags: u32,
    /// An `fp8rt_recipe`.
    pub recipe: u32,
    /// An `fp8rt_scale_format`.
    pub scale_format: u32,
    /// Least amax, in the units of the tensor, finite and >= 0. Read only with `FP8RT_QUANTIZE_FLOOR`.
    pub floor: f32,
    /// Number of entries of `part_rows`; 0: the weight is one part. Activations have none.
    pub num_parts: u32,
    /// Rows of each part of a merged weight, in order; their sum is N. Read during the call only.
    pub part_rows: *const i64,
}

/// One weight of a call on many: the tensors of fp8rt_quantize_weight, and the parts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_weight_entry {
    /// BF16, F16 or F32 `[N, K]` or `[experts, N, K]`.
    pub weight: fp8rt_tensor,
    /// E4M3, same shape.
    pub codes: fp8rt_tensor,
    /// As fp8rt_weight_scales_layout says.
    pub scales: fp8rt_tensor,
    /// Rows of each part of a merged weight, in order; their sum is N. Read during the call only.
    pub part_rows: *const i64,
    /// Number of entries of `part_rows`; 0: the weight is one part.
    pub num_parts: u32,
    /// 0.
    pub reserved: u32,
}

/// A fingerprint: 128 bits. Two are equal if both words are; the sum of two is that of the 128-bit numbers, without what
/// goes beyond 2^128.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct fp8rt_fingerprint {
    /// Bits 0 to 63.
    pub low: u64,
    /// Bits 64 to 127.
    pub high: u64,
}

/// A sum of hashes as calls add to it, limb i without carry in units of 2^(32 i). Zero before the first call. For a GPU
/// context it lies in device memory. Sums of several devices are added limb by limb. 8-byte aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct fp8rt_fingerprint_sum {
    /// Room for 2^32 blocks.
    pub limbs: [u64; 4],
}

/// Sums over the blocks of a source that a report is made of, over finite elements x. For a GPU context they lie in device
/// memory. 8-byte aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct fp8rt_error_sums {
    /// Sum of x^2.
    pub squares: f64,
    /// Sum of (x - code * scale)^2.
    pub errors: f64,
    /// Number of them.
    pub elements: u64,
    /// Those that are not zero and whose code is.
    pub became_zero: u64,
    /// Those whose code is a subnormal of E4M3.
    pub became_subnormal: u64,
    /// Elements that are NaN or infinite, which are in no other sum.
    pub non_finite: u64,
    /// Blocks.
    pub blocks: u64,
    /// Blocks whose largest magnitude exceeds 6 times the root of their mean square.
    pub outlier_blocks: u64,
}

/// Which tensor it is, or which shard of it, that a fingerprint counts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_fingerprint_desc {
    /// `sizeof(fp8rt_fingerprint_desc)`.
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// The name that all who compare agree on; zero-terminated UTF-8. Read during the call only.
    pub name: *const c_char,
    /// Index of the first part. Several parts are numbered on from it, each with its rows counted from its beginning.
    pub part: u32,
    /// An `fp8rt_scale_format`. Not looked at without scales.
    pub scale_format: u32,
    /// Index of the first expert; 0 without experts.
    pub expert: i64,
    /// Row of blocks, in the named tensor, at which each part begins: 0, or a shard's first row / 128.
    pub first_block_row: i64,
    /// Column of blocks at which it begins. A tensor that is not FP8 has 128 bytes in a block's row.
    pub first_block_column: i64,
    /// Rows of each part of a merged weight, in order; their sum is N. Read during the call only.
    pub part_rows: *const i64,
    /// Number of entries of `part_rows`; 0: the weight is one part.
    pub num_parts: u32,
    /// 0.
    pub reserved: u32,
}

/// Everything about a linear but its pointers: y[M,N] = x[M,K] . dequant(w)[N,K]^T (+ bias[N]).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_linear_desc {
    /// `sizeof(fp8rt_linear_desc)`.
    pub struct_size: u32,
    /// `FP8RT_LINEAR_BATCH_INVARIANT` and `FP8RT_LINEAR_FLOOR`, or 0.
    pub flags: u32,
    /// Largest M of any run, >= 0.
    pub max_m: i64,
    /// Out features, >= 0.
    pub n: i64,
    /// In features, >= 0.
    pub k: i64,
    /// dtype of x in `fp8rt_linear`: BF16, F16 or F32.
    pub input_dtype: u32,
    /// dtype of y: BF16, F16 or F32.
    pub output_dtype: u32,
    /// dtype of the bias: BF16, F16 or F32; 0: no bias.
    pub bias_dtype: u32,
    /// An `fp8rt_recipe`, for the activation.
    pub activation_recipe: u32,
    /// An `fp8rt_scale_format`, for the activation.
    pub activation_scale_format: u32,
    /// An `fp8rt_scale_layout`, for the scales given to `fp8rt_linear_prequantized`.
    pub activation_scale_layout: u32,
    /// An `fp8rt_scale_format`, for the weight.
    pub weight_scale_format: u32,
    /// Bits of `fp8rt_backend` that may be used; 0: all.
    pub backends: u32,
    /// Least amax of a group, finite and >= 0. Read only with `FP8RT_LINEAR_FLOOR`.
    pub floor: f32,
    /// Number of entries of `part_rows`; 0: the weight is one part.
    pub num_parts: u32,
    /// Rows of each part of a merged weight, in order; their sum is N. Copied by the call.
    pub part_rows: *const i64,
    /// Row stride of the codes of x that runs bring, in elements; 0: K. `fp8rt_linear` takes x with any row stride.
    pub input_stride: i64,
    /// Row stride of the codes of the weight that runs bring, in elements; 0: K.
    pub weight_stride: i64,
    /// Row stride of y that runs bring, in elements; 0: N.
    pub output_stride: i64,
}

/// What a plan decided. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_linear_plan_info {
    /// `sizeof(fp8rt_linear_plan_info)`.
    pub struct_size: u32,
    /// The `fp8rt_backend` that was chosen.
    pub backend: u32,
    /// Workspace that any M up to `max_m` needs.
    pub workspace_bytes: u64,
    /// Largest M of any run.
    pub max_m: i64,
}

/// The texts that a policy is made of: JSON, zero-terminated UTF-8, read during the call only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_policy_desc {
    /// `sizeof(fp8rt_policy_desc)`.
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// An `fp8rt_policy_kind`.
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// The settings. NULL: all defaults; for HUGGING_FACE those that `config` has.
    pub settings: *const c_char,
    /// The model's config.json; NULL: not known. Needed for a number of last layers to keep.
    pub config: *const c_char,
    /// The engine's packed_modules_mapping, `{"qkv_proj": ["q_proj", "k_proj", "v_proj"], ...}`. NULL: that and
    /// `{"gate_up_proj": ["gate_proj", "up_proj"]}`.
    pub packed_modules: *const c_char,
    /// From the engine's prefixes to the checkpoint's, `{"language_model.model.": "model."}`; NULL: they are the same.
    pub prefixes: *const c_char,
}

/// A decision. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_policy_decision {
    /// `sizeof(fp8rt_policy_decision)`.
    pub struct_size: u32,
    /// An `fp8rt_policy_action`. The rest is 0 for KEEP.
    pub action: u32,
    /// An `fp8rt_recipe`, never DEFAULT.
    pub weight_recipe: u32,
    /// An `fp8rt_scale_format`.
    pub weight_scale_format: u32,
    /// An `fp8rt_recipe`, never DEFAULT.
    pub activation_recipe: u32,
    /// An `fp8rt_scale_format`.
    pub activation_scale_format: u32,
}

/// What a policy says of the whole model. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_policy_info {
    /// `sizeof(fp8rt_policy_info)`.
    pub struct_size: u32,
    /// 0: nothing is quantized, whatever its name.
    pub quantizes: u32,
    /// Bits of `fp8rt_backend` for `fp8rt_linear_desc.backends`; 0: all. Without DEEPGEMM if use_deep_gemm is false.
    pub backends: u32,
    /// Number of warnings that the settings gave: see fp8rt_policy_warning.
    pub num_warnings: u32,
    /// First layers that are kept.
    pub first_layers: u32,
    /// Last layers that are kept.
    pub last_layers: u32,
    /// Layers of the decoder; -1 if `config` did not say.
    pub num_hidden_layers: i64,
}

/// A weight, and how it is cut. Rank r of `ranks` is asked about.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_shard_desc {
    /// `sizeof(fp8rt_shard_desc)`.
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// An `fp8rt_split`.
    pub split: u32,
    /// Tensor-parallel size, at least 1.
    pub ranks: u32,
    /// Below `ranks`.
    pub rank: u32,
    /// Number of entries of `part_rows`, at least 1.
    pub num_parts: u32,
    /// Rows of each part of the whole weight, in order.
    pub part_rows: *const i64,
    /// NULL, or for each part its number of heads: a head is never cut, and a part with fewer heads than ranks (keys and
    /// values) is held by several ranks, next to each other. 0: its rows are cut anywhere.
    pub part_heads: *const i64,
    /// Columns of the whole weight.
    pub k: i64,
}

/// What a rank holds of a weight. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_shard_info {
    /// `sizeof(fp8rt_shard_info)`.
    pub struct_size: u32,
    /// 1 if every cut lies on blocks of its part: then the rank's codes and scales are slices of the whole's.
    pub on_blocks: u32,
    /// Rows that the rank holds of all parts.
    pub rows: i64,
    /// First column that it holds.
    pub first_column: i64,
    /// Columns that it holds.
    pub columns: i64,
    /// Rows of its scales in FP32 and POW2: the sum over parts of ceil(rows / 128).
    pub scale_rows: i64,
    /// Columns of its scales in FP32 and POW2: ceil(columns / 128).
    pub scale_columns: i64,
}

/// What a rank holds of a part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct fp8rt_shard_part {
    /// First row, counted in the part of the whole weight.
    pub first_row: i64,
    /// Rows: the entry of part_rows for the rank's weight.
    pub rows: i64,
    /// First row, counted in the rank's weight.
    pub local_first_row: i64,
    /// First row of the rank's scales.
    pub first_scale_row: i64,
    /// Ranks that hold the same rows.
    pub replicas: u32,
    /// 1 if its rows and columns begin and end on blocks of the whole part, or at its ends.
    pub on_blocks: u32,
}

/// A parameter of the running model, at an address that stays. Everything but the memory itself is read during
/// fp8rt_refit_create only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_refit_destination {
    /// Its name: UTF-8, zero-terminated, not empty.
    pub name: *const c_char,
    /// E4M3 `[N, K]` or `[experts, N, K]`: quantized. BF16, F16 or F32 of rank 1, 2 or 3: kept, copied byte for byte from
    /// a source of the same dtype. Elements of a row 1 apart.
    pub codes: fp8rt_tensor,
    /// As fp8rt_weight_scales_layout says. Kept: all zero.
    pub scales: fp8rt_tensor,
    /// Rows of each part of a merged weight, in order; their sum is N. Kept ones may have parts too.
    pub part_rows: *const i64,
    /// Number of entries of `part_rows`; 0: one part.
    pub num_parts: u32,
    /// `FP8RT_REFIT_DESTINATION_FLOOR` and `FP8RT_REFIT_DESTINATION_PARTLY`, or 0.
    pub flags: u32,
    /// An `fp8rt_recipe`; DEFAULT is NEMO_RL.
    pub recipe: u32,
    /// An `fp8rt_scale_format`.
    pub scale_format: u32,
    /// Least amax of a block, finite and >= 0. Read only with `FP8RT_REFIT_DESTINATION_FLOOR`.
    pub floor: f32,
    /// 0.
    pub reserved: u32,
}

/// A box of a source that fills a box of a destination: what an engine's loader does with a tensor of a checkpoint.
/// Boxes count elements as experts, rows, columns; below rank 3 the first expert is 0 and there is 1, and rank 1 is a row.
///
/// For a quantized destination the box begins on a block of the part that it lies in (rows and columns; UE8M0_PACKED: on
/// 512 columns) and ends on one or where the part or the row ends. It may hold several whole parts.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_refit_region {
    /// Name of the source: UTF-8, zero-terminated, not empty.
    pub source: *const c_char,
    /// Index of the destination.
    pub destination: u32,
    /// 0.
    pub reserved: u32,
    /// Where the box begins in the source.
    pub source_first: [i64; 3],
    /// Its extents.
    pub extent: [i64; 3],
    /// Where it begins in the destination.
    pub destination_first: [i64; 3],
}

/// What a refit plan is made from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_refit_desc {
    /// `sizeof(fp8rt_refit_desc)`.
    pub struct_size: u32,
    /// 0.
    pub flags: u32,
    /// Number of `destinations`.
    pub num_destinations: u32,
    /// Number of `regions`.
    pub num_regions: u32,
    /// The parameters. Names are unique.
    pub destinations: *const fp8rt_refit_destination,
    /// What fills them. A destination that no region mentions is filled by tensors of its own name.
    pub regions: *const fp8rt_refit_region,
}

/// A tensor that a run brings, or a cut of one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct fp8rt_refit_item {
    /// Name of a source, or else of a destination: then rows, columns and experts are those of the destination.
    pub name: *const c_char,
    /// `FP8RT_REFIT_ITEM_PART`, `FP8RT_REFIT_ITEM_EXPERT`, both or 0.
    pub flags: u32,
    /// The part of the destination that the tensor is; rows are counted in the part.
    pub part: u32,
    /// The first expert that the tensor holds.
    pub expert: i64,
    /// Where the tensor begins in the source. A cut must begin and end on blocks of every region that it meets, or where
    /// the region does; of what is kept, on any row and on 128 bytes of columns.
    pub first_row: i64,
    /// As `first_row`, for columns.
    pub first_column: i64,
    /// BF16, F16 or F32 values; or E4M3 codes, with `scales`.
    pub weight: fp8rt_tensor,
    /// Data NULL: the weight is values. Else the scales of the codes, in the destination's scale format, one grid of
    /// blocks from the first row and column of the tensor on (of a whole destination with parts: one grid a part). Codes
    /// and scales are copied; a box that does not lie on that grid is refused.
    pub scales: fp8rt_tensor,
}

/// What a refit plan is and where it stands. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct fp8rt_refit_info {
    /// `sizeof(fp8rt_refit_info)`.
    pub struct_size: u32,
    /// An `fp8rt_refit_state`.
    pub state: u32,
    /// Number of destinations.
    pub num_destinations: u32,
    /// Number of sources: names that tensors may have.
    pub num_sources: u32,
    /// Number of regions; one that held several parts counts as many.
    pub num_regions: u32,
    /// Destinations that are filled since fp8rt_refit_begin.
    pub destinations_filled: u32,
    /// 1 if every region lies on blocks of its source too, as far as this plan can tell: then the fingerprints of the shards
    /// of several ranks add up. Else 0. A block of what is kept has 128 rows of 128 bytes.
    pub cut_on_blocks: u32,
    /// 0.
    pub reserved: u32,
    /// Blocks that are filled since fp8rt_refit_begin. Of kept tensors 128 bytes of a row count as one; four blocks that
    /// share words of UE8M0_PACKED do.
    pub blocks_filled: u64,
    /// Blocks of all regions.
    pub blocks_total: u64,
    /// Bytes that a whole refit reads, from sources of 16 bits where they are quantized.
    pub bytes_read: u64,
    /// Bytes that a whole refit writes.
    pub bytes_written: u64,
    /// Least staging memory for sources on the host, whatever they are; 0 on a host context. Sources on the device need
    /// none, and a run takes no other memory of the device.
    pub staging_bytes: u64,
}

/// What a refit did. Set `struct_size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct fp8rt_refit_receipt {
    /// `sizeof(fp8rt_refit_receipt)`.
    pub struct_size: u32,
    /// Destinations that are filled.
    pub destinations_filled: u32,
    /// Number of destinations.
    pub num_destinations: u32,
    /// 0.
    pub reserved: u32,
    /// Blocks that are filled.
    pub blocks_filled: u64,
    /// Blocks of all regions.
    pub blocks_total: u64,
    /// Items that runs brought.
    pub items: u64,
    /// Boxes that were written: each is a region or a cut of one.
    pub regions_written: u64,
    /// Bytes that were read.
    pub bytes_read: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
}

/// Receives one line, without a newline, valid during the call only. Called on any thread; must not call back.
pub type fp8rt_log_callback = Option<unsafe extern "C" fn(level: u32, message: *const c_char, user: *mut c_void)>;
