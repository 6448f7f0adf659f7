/*
 * fp8rt: block-scaled FP8 for large-model reinforcement learning.
 *
 * This file is made by cbindgen from src/ffi; do not edit it.
 *
 * Conventions, for every function:
 *
 * - Argument order: handle, descriptor, inputs, outputs, workspace, workspace bytes, stream.
 * - Returns an fp8rt_status. FP8RT_STATUS_OK means validated and, on a GPU, enqueued. Any other status: nothing was written
 *   and nothing was enqueued, except after FP8RT_STATUS_CUDA_ERROR, which leaves outputs undefined.
 *   fp8rt_last_error() then says what is wrong, with the argument and both numbers.
 * - Nothing unwinds or throws out of the library, and nothing in it exits or aborts.
 * - Descriptor structs begin with struct_size. Set it to sizeof the struct and zero what you do not use: an older, shorter
 *   struct works with a newer library; a newer, longer one works with an older library while the fields it lacks are zero.
 *   Flags and reserved fields that are not documented must be 0.
 * - Enumerations travel as uint32_t; a number that is none of theirs is an error.
 * - Tensors are views (fp8rt_tensor): strides count elements, `bytes` counts from `data` and bounds every access, device -1
 *   is host memory. Elements of a row of values or codes are 1 apart; rows may be farther apart than they are long. No
 *   output may overlap an input or another output; column windows of one wider matrix do not overlap.
 * - A tensor with an extent of 0 is valid with data NULL; such a call succeeds.
 * - `stream` is a cudaStream_t, and NULL for a host context. Nothing synchronizes unless its comment says so. Host calls are
 *   complete when they return.
 * - Contexts and plans may be used by any number of threads at once; creating and destroying one is exclusive.
 * - The caller's floating-point mode (rounding, FTZ, DAZ) does not change a result and is the same after a call.
 *
 * Words: weight [N, K]; activation [M, K]; block 128x128 of a weight; group 1x128 of a row; scale the factor that a code is
 * multiplied by to get the value (checkpoints call it weight_scale_inv); amax the largest magnitude of a block or group;
 * part one of the matrices merged into a weight (q, k, v).
 */


#ifndef FP8RT_H
#define FP8RT_H

#include <stdint.h>

// `fp8rt_quantize_desc.flags`: `floor` is set. Without it the recipe's own floor holds.
#define FP8RT_QUANTIZE_FLOOR 1

// `fp8rt_linear_desc.flags`: the bits of a row of y do not depend on M, on other rows, on the tile or on graph capture.
#define FP8RT_LINEAR_BATCH_INVARIANT 1

// `fp8rt_linear_desc.flags`: `floor` is set. Without it the recipe's own floor holds.
#define FP8RT_LINEAR_FLOOR 2

// `fp8rt_refit_destination.flags`: `floor` is set. Without it the recipe's own floor holds.
#define FP8RT_REFIT_DESTINATION_FLOOR 1

// `fp8rt_refit_destination.flags`: its regions need not fill all of it; the rest stays as it is (a padded vocabulary).
#define FP8RT_REFIT_DESTINATION_PARTLY 2

// `fp8rt_refit_item.flags`: `part` is read.
#define FP8RT_REFIT_ITEM_PART 1

// `fp8rt_refit_item.flags`: `expert` is read.
#define FP8RT_REFIT_ITEM_EXPERT 2

// Flag of `fp8rt_refit_finish`: destinations that nothing was written to are as they shall be.
#define FP8RT_REFIT_PARTIAL 1

// Alignment of a workspace, in bytes.
#define FP8RT_WORKSPACE_ALIGNMENT 256

// `fp8rt_log_callback` levels: one line for each decision (FP8RT_VERBOSE=1).
#define FP8RT_LOG_INFO 1

// `fp8rt_log_callback` levels: something the owner of the process should look at.
#define FP8RT_LOG_WARNING 2

// Version of the interface that this header describes: the number in `libfp8rt.so.0`.
#define FP8RT_ABI_VERSION 0

// What a call returns. 0 is success; a number keeps its meaning for ever.
enum fp8rt_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The call was validated and, on a GPU, enqueued.
  FP8RT_STATUS_OK = 0,
  // A flag, an enumeration or a number is outside what the function takes.
  FP8RT_STATUS_INVALID_ARGUMENT = 1,
  // A pointer that must not be NULL is.
  FP8RT_STATUS_NULL_POINTER = 2,
  // A shape does not fit the other arguments.
  FP8RT_STATUS_SHAPE = 3,
  // A stride is not one that the function takes.
  FP8RT_STATUS_STRIDE = 4,
  // A pointer or a stride is not aligned as required.
  FP8RT_STATUS_ALIGNMENT = 5,
  // A tensor has a dtype that the function does not take.
  FP8RT_STATUS_DTYPE = 6,
  // A tensor is on another device than the context.
  FP8RT_STATUS_DEVICE = 7,
  // `bytes` of a tensor does not cover its shape and strides.
  FP8RT_STATUS_BOUNDS = 8,
  // An output overlaps an input or another output.
  FP8RT_STATUS_OVERLAP = 9,
  // The workspace is missing or too small.
  FP8RT_STATUS_WORKSPACE = 10,
  // `struct_size` is none that this library knows, or a field that it does not know is not zero.
  FP8RT_STATUS_STRUCT_SIZE = 11,
  // This build, this device or this shape has no way to do it. The message says which.
  FP8RT_STATUS_UNSUPPORTED = 12,
  // Called while a graph is captured, without having been prepared before.
  FP8RT_STATUS_NOT_PREPARED = 13,
  // No CUDA driver, or no such device.
  FP8RT_STATUS_NO_DEVICE = 14,
  // A GPU context was used in a child process after `fork`.
  FP8RT_STATUS_FORKED = 15,
  // Host or device memory ran out.
  FP8RT_STATUS_OUT_OF_MEMORY = 16,
  // CUDA failed; `fp8rt_last_cuda_error` has the number. Outputs are undefined.
  FP8RT_STATUS_CUDA_ERROR = 17,
  // A fault of this library. The message is worth a report.
  FP8RT_STATUS_INTERNAL = 18,
  // Something of a refit was not filled. The message names the first and the count.
  FP8RT_STATUS_INCOMPLETE = 19,
  // The object is not in the state that this call needs. The message says what brings it there.
  FP8RT_STATUS_STATE = 20,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_status fp8rt_status;
#else
typedef int32_t fp8rt_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Element types.
enum fp8rt_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // bfloat16.
  FP8RT_DTYPE_BF16 = 1,
  // IEEE binary16.
  FP8RT_DTYPE_F16 = 2,
  // IEEE binary32.
  FP8RT_DTYPE_F32 = 3,
  // FP8 E4M3FN: largest value 448, no infinity, NaN 0x7F.
  FP8RT_DTYPE_E4M3 = 4,
  // Four UE8M0 exponents packed into an int32, lowest group in the lowest byte.
  FP8RT_DTYPE_INT32 = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_dtype fp8rt_dtype;
#else
typedef uint32_t fp8rt_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A named formula from amax to scale and codes. The table of formulas is in the README.
enum fp8rt_recipe
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // `NEMO_RL` for weights, `VLLM` for activations.
  FP8RT_RECIPE_DEFAULT = 0,
  // vLLM's activation op: scale max(amax, 1e-10) / 448, code x * (1 / scale).
  FP8RT_RECIPE_VLLM = 1,
  // DeepGEMM's weight cast on a GPU: scale max(amax, 1e-4) * (1/448), code x * (1 / scale).
  FP8RT_RECIPE_DEEPGEMM = 2,
  // NeMo-RL's weight cast in torch: r = (1 / amax) * 448, scale 1 / r, code x * r.
  FP8RT_RECIPE_NEMO_RL = 3,
  // TransformerEngine's blockwise cast: r = 448 / amax, scale 1 / r, code x * r.
  FP8RT_RECIPE_TE = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_recipe fp8rt_recipe;
#else
typedef uint32_t fp8rt_recipe;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How scales are stored.
enum fp8rt_scale_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // float32, as the recipe gives it.
  FP8RT_SCALE_FORMAT_FP32 = 0,
  // float32, the smallest power of two that brings amax to 448 or below.
  FP8RT_SCALE_FORMAT_POW2 = 1,
  // The exponents of POW2, four groups to an int32 `[rows, ceil(K/512)]`, always column-major with padding as for
  // activations: see `fp8rt_scale_layout`. A weight has a row of them for each of its N rows. What SM100 reads.
  FP8RT_SCALE_FORMAT_UE8M0_PACKED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_scale_format fp8rt_scale_format;
#else
typedef uint32_t fp8rt_scale_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How the scales of activations lie in memory.
enum fp8rt_scale_layout
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Stride (1, c), c a multiple of 4 and at least M: what TMA reads. Rows M to the next multiple of 4 are zeroed.
  FP8RT_SCALE_LAYOUT_COLUMN_MAJOR = 0,
  // Stride (r, 1), r at least ceil(K/128).
  FP8RT_SCALE_LAYOUT_ROW_MAJOR = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_scale_layout fp8rt_scale_layout;
#else
typedef uint32_t fp8rt_scale_layout;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Ways to run a linear, as bits, in the order in which they are asked.
enum fp8rt_backend
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // DeepGEMM's kernels, compiled ahead of time (Hopper).
  FP8RT_BACKEND_DEEPGEMM = 2,
  // CUTLASS's blockwise-scaled kernels, compiled ahead of time.
  FP8RT_BACKEND_CUTLASS = 4,
  // cuBLASLt, opened at run time.
  FP8RT_BACKEND_CUBLASLT = 8,
  // This library's own kernel for any shape and stride.
  FP8RT_BACKEND_PLAIN = 16,
  // Host memory.
  FP8RT_BACKEND_CPU = 32,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_backend fp8rt_backend;
#else
typedef uint32_t fp8rt_backend;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Whose settings a policy is made of.
enum fp8rt_policy_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Told from the keys of the settings.
  FP8RT_POLICY_KIND_AUTO = 0,
  // A `vllm_cfg` of NeMo-RL, or an object that holds one.
  FP8RT_POLICY_KIND_NEMO_RL = 1,
  // A `quantization_config` of Hugging Face, or a config.json that holds one.
  FP8RT_POLICY_KIND_HUGGING_FACE = 2,
  // verl's `rollout.quantization`.
  FP8RT_POLICY_KIND_VERL = 3,
  // This library's own: `{"fp8rt": {...}}`.
  FP8RT_POLICY_KIND_FP8RT = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_policy_kind fp8rt_policy_kind;
#else
typedef uint32_t fp8rt_policy_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a policy decides for a parameter or a module.
enum fp8rt_policy_action
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // It stays in the type that the trainer has.
  FP8RT_POLICY_ACTION_KEEP = 0,
  // It becomes codes and scales.
  FP8RT_POLICY_ACTION_FP8 = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_policy_action fp8rt_policy_action;
#else
typedef uint32_t fp8rt_policy_action;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How a weight [N, K] is cut over tensor-parallel ranks.
enum fp8rt_split
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Every rank holds the whole.
  FP8RT_SPLIT_NONE = 0,
  // Out features are cut (column-parallel: q, k, v, gate, up).
  FP8RT_SPLIT_ROWS = 1,
  // In features are cut (row-parallel: o, down).
  FP8RT_SPLIT_COLUMNS = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_split fp8rt_split;
#else
typedef uint32_t fp8rt_split;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Where a refit stands.
enum fp8rt_refit_state
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Not begun, or finished.
  FP8RT_REFIT_STATE_IDLE = 0,
  // Begun: runs are taken.
  FP8RT_REFIT_STATE_OPEN = 1,
  // A run failed after something was enqueued: what the destinations hold is not known until the next refit.
  FP8RT_REFIT_STATE_FAILED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_refit_state fp8rt_refit_state;
#else
typedef uint32_t fp8rt_refit_state;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Forms of a report.
enum fp8rt_report_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // An object with `suggestion`, `total`, `layers`, `projections`, `tensors`, `not_measured` and `definitions`.
  FP8RT_REPORT_FORMAT_JSON = 0,
  // Tables for a terminal, in UTF-8.
  FP8RT_REPORT_FORMAT_TEXT = 1,
  // One page that needs nothing else, with charts over the layers.
  FP8RT_REPORT_FORMAT_HTML = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum fp8rt_report_format fp8rt_report_format;
#else
typedef uint32_t fp8rt_report_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The device that calls run on, with the threads that it owns. Any number of threads may use one at once; creating and
// destroying are exclusive. It may be destroyed before the plans that were made from it.
typedef struct fp8rt_context fp8rt_context;

// A linear with its backend chosen. Holds no pointers of the caller. Any number of threads may run one at once, each with
// its own workspace; creating and destroying are exclusive.
typedef struct fp8rt_linear_plan fp8rt_linear_plan;

// Settings, resolved. It does not change; any number of threads may ask it at once; creating and destroying are exclusive.
typedef struct fp8rt_policy fp8rt_policy;

// A whole model that is refitted in place, again and again: its parameters at fixed addresses, the names of the tensors
// that fill them, and what is filled so far. One thread at a time uses one.
typedef struct fp8rt_refit fp8rt_refit;

// Weights at fixed addresses, quantized together by one launch for each source dtype. Any number of threads may run one at
// once; creating and destroying are exclusive.
typedef struct fp8rt_weight_table fp8rt_weight_table;

// Receives one line, without a newline, valid during the call only. Called on any thread; must not call back.
typedef void (*fp8rt_log_callback)(uint32_t level, const char *message, void *user);

// Where a context runs. NULL in place of it means a host context with all cores.
typedef struct fp8rt_context_desc {
  // `sizeof(fp8rt_context_desc)`.
  uint32_t struct_size;
  // 0.
  uint32_t flags;
  // -1 for the host, else a CUDA device ordinal.
  int32_t device;
  // Threads that the context owns, the caller's not counted; 0: as many as this process may use.
  uint32_t num_threads;
} fp8rt_context_desc;

// How to quantize. NULL in place of it means every default.
typedef struct fp8rt_quantize_desc {
  // `sizeof(fp8rt_quantize_desc)`.
  uint32_t struct_size;
  // `FP8RT_QUANTIZE_FLOOR` or 0.
  uint32_t flags;
  // An `fp8rt_recipe`.
  uint32_t recipe;
  // An `fp8rt_scale_format`.
  uint32_t scale_format;
  // Least amax, in the units of the tensor, finite and >= 0. Read only with `FP8RT_QUANTIZE_FLOOR`.
  float floor;
  // Number of entries of `part_rows`; 0: the weight is one part. Activations have none.
  uint32_t num_parts;
  // Rows of each part of a merged weight, in order; their sum is N. Read during the call only.
  const int64_t *part_rows;
} fp8rt_quantize_desc;

// A strided view of memory that the caller owns.
//
// Unused entries of `shape` and `stride` are ignored. A view without elements may have `data` NULL.
typedef struct fp8rt_tensor {
  // First element.
  void *data;
  // Size of the memory from `data` on. No access goes beyond it.
  uint64_t bytes;
  // An `fp8rt_dtype`.
  uint32_t dtype;
  // -1 for host memory, else a CUDA device ordinal.
  int32_t device;
  // 1, 2 or 3. Rank 3 is `[experts, N, K]`.
  uint32_t rank;
  // 0.
  uint32_t reserved;
  // Extents, outermost first.
  int64_t shape[3];
  // Strides in elements, outermost first.
  int64_t stride[3];
} fp8rt_tensor;

// Counters that a quantizing call adds to. For a GPU context the struct lies in device memory. 8-byte aligned.
typedef struct fp8rt_health {
  // Elements that are NaN or infinite.
  uint64_t non_finite;
  // Finite elements too large for a given scale: |x / scale| > 464, which would round past 448.
  uint64_t saturated;
  // Non-zero elements whose code is zero.
  uint64_t became_zero;
  // Elements whose code is a subnormal of E4M3, magnitude 2^-9 to 7 * 2^-9.
  uint64_t became_subnormal;
} fp8rt_health;

// One weight of a call on many: the tensors of fp8rt_quantize_weight, and the parts.
typedef struct fp8rt_weight_entry {
  // BF16, F16 or F32 `[N, K]` or `[experts, N, K]`.
  struct fp8rt_tensor weight;
  // E4M3, same shape.
  struct fp8rt_tensor codes;
  // As fp8rt_weight_scales_layout says.
  struct fp8rt_tensor scales;
  // Rows of each part of a merged weight, in order; their sum is N. Read during the call only.
  const int64_t *part_rows;
  // Number of entries of `part_rows`; 0: the weight is one part.
  uint32_t num_parts;
  // 0.
  uint32_t reserved;
} fp8rt_weight_entry;

// A parameter of the running model, at an address that stays. Everything but the memory itself is read during
// fp8rt_refit_create only.
typedef struct fp8rt_refit_destination {
  // Its name: UTF-8, zero-terminated, not empty.
  const char *name;
  // E4M3 `[N, K]` or `[experts, N, K]`: quantized. BF16, F16 or F32 of rank 1, 2 or 3: kept, copied byte for byte from
  // a source of the same dtype. Elements of a row 1 apart.
  struct fp8rt_tensor codes;
  // As fp8rt_weight_scales_layout says. Kept: all zero.
  struct fp8rt_tensor scales;
  // Rows of each part of a merged weight, in order; their sum is N. Kept ones may have parts too.
  const int64_t *part_rows;
  // Number of entries of `part_rows`; 0: one part.
  uint32_t num_parts;
  // `FP8RT_REFIT_DESTINATION_FLOOR` and `FP8RT_REFIT_DESTINATION_PARTLY`, or 0.
  uint32_t flags;
  // An `fp8rt_recipe`; DEFAULT is NEMO_RL.
  uint32_t recipe;
  // An `fp8rt_scale_format`.
  uint32_t scale_format;
  // Least amax of a block, finite and >= 0. Read only with `FP8RT_REFIT_DESTINATION_FLOOR`.
  float floor;
  // 0.
  uint32_t reserved;
} fp8rt_refit_destination;

// A box of a source that fills a box of a destination: what an engine's loader does with a tensor of a checkpoint.
// Boxes count elements as experts, rows, columns; below rank 3 the first expert is 0 and there is 1, and rank 1 is a row.
//
// For a quantized destination the box begins on a block of the part that it lies in (rows and columns; UE8M0_PACKED: on
// 512 columns) and ends on one or where the part or the row ends. It may hold several whole parts.
typedef struct fp8rt_refit_region {
  // Name of the source: UTF-8, zero-terminated, not empty.
  const char *source;
  // Index of the destination.
  uint32_t destination;
  // 0.
  uint32_t reserved;
  // Where the box begins in the source.
  int64_t source_first[3];
  // Its extents.
  int64_t extent[3];
  // Where it begins in the destination.
  int64_t destination_first[3];
} fp8rt_refit_region;

// What a refit plan is made from.
typedef struct fp8rt_refit_desc {
  // `sizeof(fp8rt_refit_desc)`.
  uint32_t struct_size;
  // 0.
  uint32_t flags;
  // Number of `destinations`.
  uint32_t num_destinations;
  // Number of `regions`.
  uint32_t num_regions;
  // The parameters. Names are unique.
  const struct fp8rt_refit_destination *destinations;
  // What fills them. A destination that no region mentions is filled by tensors of its own name.
  const struct fp8rt_refit_region *regions;
} fp8rt_refit_desc;

// A tensor that a run brings, or a cut of one.
typedef struct fp8rt_refit_item {
  // Name of a source, or else of a destination: then rows, columns and experts are those of the destination.
  const char *name;
  // `FP8RT_REFIT_ITEM_PART`, `FP8RT_REFIT_ITEM_EXPERT`, both or 0.
  uint32_t flags;
  // The part of the destination that the tensor is; rows are counted in the part.
  uint32_t part;
  // The first expert that the tensor holds.
  int64_t expert;
  // Where the tensor begins in the source. A cut must begin and end on blocks of every region that it meets, or where
  // the region does; of what is kept, on any row and on 128 bytes of columns.
  int64_t first_row;
  // As `first_row`, for columns.
  int64_t first_column;
  // BF16, F16 or F32 values; or E4M3 codes, with `scales`.
  struct fp8rt_tensor weight;
  // Data NULL: the weight is values. Else the scales of the codes, in the destination's scale format, one grid of
  // blocks from the first row and column of the tensor on (of a whole destination with parts: one grid a part). Codes
  // and scales are copied; a box that does not lie on that grid is refused.
  struct fp8rt_tensor scales;
} fp8rt_refit_item;

// What a refit did. Set `struct_size` before the call.
typedef struct fp8rt_refit_receipt {
  // `sizeof(fp8rt_refit_receipt)`.
  uint32_t struct_size;
  // Destinations that are filled.
  uint32_t destinations_filled;
  // Number of destinations.
  uint32_t num_destinations;
  // 0.
  uint32_t reserved;
  // Blocks that are filled.
  uint64_t blocks_filled;
  // Blocks of all regions.
  uint64_t blocks_total;
  // Items that runs brought.
  uint64_t items;
  // Boxes that were written: each is a region or a cut of one.
  uint64_t regions_written;
  // Bytes that were read.
  uint64_t bytes_read;
  // Bytes that were written.
  uint64_t bytes_written;
} fp8rt_refit_receipt;

// What a refit plan is and where it stands. Set `struct_size` before the call.
typedef struct fp8rt_refit_info {
  // `sizeof(fp8rt_refit_info)`.
  uint32_t struct_size;
  // An `fp8rt_refit_state`.
  uint32_t state;
  // Number of destinations.
  uint32_t num_destinations;
  // Number of sources: names that tensors may have.
  uint32_t num_sources;
  // Number of regions; one that held several parts counts as many.
  uint32_t num_regions;
  // Destinations that are filled since fp8rt_refit_begin.
  uint32_t destinations_filled;
  // 1 if every region lies on blocks of its source too, as far as this plan can tell: then the fingerprints of the shards
  // of several ranks add up. Else 0. A block of what is kept has 128 rows of 128 bytes.
  uint32_t cut_on_blocks;
  // 0.
  uint32_t reserved;
  // Blocks that are filled since fp8rt_refit_begin. Of kept tensors 128 bytes of a row count as one; four blocks that
  // share words of UE8M0_PACKED do.
  uint64_t blocks_filled;
  // Blocks of all regions.
  uint64_t blocks_total;
  // Bytes that a whole refit reads, from sources of 16 bits where they are quantized.
  uint64_t bytes_read;
  // Bytes that a whole refit writes.
  uint64_t bytes_written;
  // Least staging memory for sources on the host, whatever they are; 0 on a host context. Sources on the device need
  // none, and a run takes no other memory of the device.
  uint64_t staging_bytes;
} fp8rt_refit_info;

// Which tensor it is, or which shard of it, that a fingerprint counts.
typedef struct fp8rt_fingerprint_desc {
  // `sizeof(fp8rt_fingerprint_desc)`.
  uint32_t struct_size;
  // 0.
  uint32_t flags;
  // The name that all who compare agree on; zero-terminated UTF-8. Read during the call only.
  const char *name;
  // Index of the first part. Several parts are numbered on from it, each with its rows counted from its beginning.
  uint32_t part;
  // An `fp8rt_scale_format`. Not looked at without scales.
  uint32_t scale_format;
  // Index of the first expert; 0 without experts.
  int64_t expert;
  // Row of blocks, in the named tensor, at which each part begins: 0, or a shard's first row / 128.
  int64_t first_block_row;
  // Column of blocks at which it begins. A tensor that is not FP8 has 128 bytes in a block's row.
  int64_t first_block_column;
  // Rows of each part of a merged weight, in order; their sum is N. Read during the call only.
  const int64_t *part_rows;
  // Number of entries of `part_rows`; 0: the weight is one part.
  uint32_t num_parts;
  // 0.
  uint32_t reserved;
} fp8rt_fingerprint_desc;

// A sum of hashes as calls add to it, limb i without carry in units of 2^(32 i). Zero before the first call. For a GPU
// context it lies in device memory. Sums of several devices are added limb by limb. 8-byte aligned.
typedef struct fp8rt_fingerprint_sum {
  // Room for 2^32 blocks.
  uint64_t limbs[4];
} fp8rt_fingerprint_sum;

// A fingerprint: 128 bits. Two are equal if both words are; the sum of two is that of the 128-bit numbers, without what
// goes beyond 2^128.
typedef struct fp8rt_fingerprint {
  // Bits 0 to 63.
  uint64_t low;
  // Bits 64 to 127.
  uint64_t high;
} fp8rt_fingerprint;

// Sums over the blocks of a source that a report is made of, over finite elements x. For a GPU context they lie in device
// memory. 8-byte aligned.
typedef struct fp8rt_error_sums {
  // Sum of x^2.
  double squares;
  // Sum of (x - code * scale)^2.
  double errors;
  // Number of them.
  uint64_t elements;
  // Those that are not zero and whose code is.
  uint64_t became_zero;
  // Those whose code is a subnormal of E4M3.
  uint64_t became_subnormal;
  // Elements that are NaN or infinite, which are in no other sum.
  uint64_t non_finite;
  // Blocks.
  uint64_t blocks;
  // Blocks whose largest magnitude exceeds 6 times the root of their mean square.
  uint64_t outlier_blocks;
} fp8rt_error_sums;

// Everything about a linear but its pointers: y[M,N] = x[M,K] . dequant(w)[N,K]^T (+ bias[N]).
typedef struct fp8rt_linear_desc {
  // `sizeof(fp8rt_linear_desc)`.
  uint32_t struct_size;
  // `FP8RT_LINEAR_BATCH_INVARIANT` and `FP8RT_LINEAR_FLOOR`, or 0.
  uint32_t flags;
  // Largest M of any run, >= 0.
  int64_t max_m;
  // Out features, >= 0.
  int64_t n;
  // In features, >= 0.
  int64_t k;
  // dtype of x in `fp8rt_linear`: BF16, F16 or F32.
  uint32_t input_dtype;
  // dtype of y: BF16, F16 or F32.
  uint32_t output_dtype;
  // dtype of the bias: BF16, F16 or F32; 0: no bias.
  uint32_t bias_dtype;
  // An `fp8rt_recipe`, for the activation.
  uint32_t activation_recipe;
  // An `fp8rt_scale_format`, for the activation.
  uint32_t activation_scale_format;
  // An `fp8rt_scale_layout`, for the scales given to `fp8rt_linear_prequantized`.
  uint32_t activation_scale_layout;
  // An `fp8rt_scale_format`, for the weight.
  uint32_t weight_scale_format;
  // Bits of `fp8rt_backend` that may be used; 0: all.
  uint32_t backends;
  // Least amax of a group, finite and >= 0. Read only with `FP8RT_LINEAR_FLOOR`.
  float floor;
  // Number of entries of `part_rows`; 0: the weight is one part.
  uint32_t num_parts;
  // Rows of each part of a merged weight, in order; their sum is N. Copied by the call.
  const int64_t *part_rows;
  // Row stride of the codes of x that runs bring, in elements; 0: K. `fp8rt_linear` takes x with any row stride.
  int64_t input_stride;
  // Row stride of the codes of the weight that runs bring, in elements; 0: K.
  int64_t weight_stride;
  // Row stride of y that runs bring, in elements; 0: N.
  int64_t output_stride;
} fp8rt_linear_desc;

// What a plan decided. Set `struct_size` before the call.
typedef struct fp8rt_linear_plan_info {
  // `sizeof(fp8rt_linear_plan_info)`.
  uint32_t struct_size;
  // The `fp8rt_backend` that was chosen.
  uint32_t backend;
  // Workspace that any M up to `max_m` needs.
  uint64_t workspace_bytes;
  // Largest M of any run.
  int64_t max_m;
} fp8rt_linear_plan_info;

// The texts that a policy is made of: JSON, zero-terminated UTF-8, read during the call only.
typedef struct fp8rt_policy_desc {
  // `sizeof(fp8rt_policy_desc)`.
  uint32_t struct_size;
  // 0.
  uint32_t flags;
  // An `fp8rt_policy_kind`.
  uint32_t kind;
  // 0.
  uint32_t reserved;
  // The settings. NULL: all defaults; for HUGGING_FACE those that `config` has.
  const char *settings;
  // The model's config.json; NULL: not known. Needed for a number of last layers to keep.
  const char *config;
  // The engine's packed_modules_mapping, `{"qkv_proj": ["q_proj", "k_proj", "v_proj"], ...}`. NULL: that and
  // `{"gate_up_proj": ["gate_proj", "up_proj"]}`.
  const char *packed_modules;
  // From the engine's prefixes to the checkpoint's, `{"language_model.model.": "model."}`; NULL: they are the same.
  const char *prefixes;
} fp8rt_policy_desc;

// What a policy says of the whole model. Set `struct_size` before the call.
typedef struct fp8rt_policy_info {
  // `sizeof(fp8rt_policy_info)`.
  uint32_t struct_size;
  // 0: nothing is quantized, whatever its name.
  uint32_t quantizes;
  // Bits of `fp8rt_backend` for `fp8rt_linear_desc.backends`; 0: all. Without DEEPGEMM if use_deep_gemm is false.
  uint32_t backends;
  // Number of warnings that the settings gave: see fp8rt_policy_warning.
  uint32_t num_warnings;
  // First layers that are kept.
  uint32_t first_layers;
  // Last layers that are kept.
  uint32_t last_layers;
  // Layers of the decoder; -1 if `config` did not say.
  int64_t num_hidden_layers;
} fp8rt_policy_info;

// A decision. Set `struct_size` before the call.
typedef struct fp8rt_policy_decision {
  // `sizeof(fp8rt_policy_decision)`.
  uint32_t struct_size;
  // An `fp8rt_policy_action`. The rest is 0 for KEEP.
  uint32_t action;
  // An `fp8rt_recipe`, never DEFAULT.
  uint32_t weight_recipe;
  // An `fp8rt_scale_format`.
  uint32_t weight_scale_format;
  // An `fp8rt_recipe`, never DEFAULT.
  uint32_t activation_recipe;
  // An `fp8rt_scale_format`.
  uint32_t activation_scale_format;
} fp8rt_policy_decision;

// A weight, and how it is cut. Rank r of `ranks` is asked about.
typedef struct fp8rt_shard_desc {
  // `sizeof(fp8rt_shard_desc)`.
  uint32_t struct_size;
  // 0.
  uint32_t flags;
  // An `fp8rt_split`.
  uint32_t split;
  // Tensor-parallel size, at least 1.
  uint32_t ranks;
  // Below `ranks`.
  uint32_t rank;
  // Number of entries of `part_rows`, at least 1.
  uint32_t num_parts;
  // Rows of each part of the whole weight, in order.
  const int64_t *part_rows;
  // NULL, or for each part its number of heads: a head is never cut, and a part with fewer heads than ranks (keys and
  // values) is held by several ranks, next to each other. 0: its rows are cut anywhere.
  const int64_t *part_heads;
  // Columns of the whole weight.
  int64_t k;
} fp8rt_shard_desc;

// What a rank holds of a weight. Set `struct_size` before the call.
typedef struct fp8rt_shard_info {
  // `sizeof(fp8rt_shard_info)`.
  uint32_t struct_size;
  // 1 if every cut lies on blocks of its part: then the rank's codes and scales are slices of the whole's.
  uint32_t on_blocks;
  // Rows that the rank holds of all parts.
  int64_t rows;
  // First column that it holds.
  int64_t first_column;
  // Columns that it holds.
  int64_t columns;
  // Rows of its scales in FP32 and POW2: the sum over parts of ceil(rows / 128).
  int64_t scale_rows;
  // Columns of its scales in FP32 and POW2: ceil(columns / 128).
  int64_t scale_columns;
} fp8rt_shard_info;

// What a rank holds of a part.
typedef struct fp8rt_shard_part {
  // First row, counted in the part of the whole weight.
  int64_t first_row;
  // Rows: the entry of part_rows for the rank's weight.
  int64_t rows;
  // First row, counted in the rank's weight.
  int64_t local_first_row;
  // First row of the rank's scales.
  int64_t first_scale_row;
  // Ranks that hold the same rows.
  uint32_t replicas;
  // 1 if its rows and columns begin and end on blocks of the whole part, or at its ends.
  uint32_t on_blocks;
} fp8rt_shard_part;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Version of the interface that the loaded library has. Compare with FP8RT_ABI_VERSION after dlopen.
uint32_t fp8rt_abi_version(void);

// One line on this build: version, features, architectures and the versions of what is compiled in. Static.
const char *fp8rt_build_info(void);

// What the last failed call of this thread said: function, argument, and both numbers where two disagree. Empty if none
// failed. At most 511 bytes of UTF-8, valid until the thread's next failure or end. Success does not clear it.
const char *fp8rt_last_error(void);

// The CUDA driver's number for this thread's last FP8RT_STATUS_CUDA_ERROR; 0 if there was none.
int32_t fp8rt_last_cuda_error(void);

// The name of a status, "FP8RT_STATUS_SHAPE" for 3; "unknown" for a number that this library does not have. Static.
const char *fp8rt_status_name(int32_t status);

// Sends the lines of FP8RT_VERBOSE=1, and all warnings, to `callback` with `user` instead of stderr. NULL: back to stderr
// (and warnings only under FP8RT_VERBOSE). Process-wide, from any thread. When this returns, the callback before runs no
// more; a callback must not call this function.
fp8rt_status fp8rt_set_log(fp8rt_log_callback callback,
                           void *user);

// Makes a context. `desc` NULL: host memory, all cores that the process may use. No thread is started before the first
// call that needs one, or `fp8rt_context_prepare`. On a host context a forked child may go on: it starts its own threads.
//
// Errors: UNSUPPORTED (the device needs a feature that this build lacks), NO_DEVICE, STRUCT_SIZE, INVALID_ARGUMENT.
fp8rt_status fp8rt_context_create(const struct fp8rt_context_desc *desc,
                                  struct fp8rt_context **context);

// Destroys a context. NULL is nothing. No call may be using it.
fp8rt_status fp8rt_context_destroy(struct fp8rt_context *context);

// Does now what the first call would otherwise do: starts the threads; on a GPU, loads the kernels of every quantizing
// function, which a captured graph then may use. May synchronize with the device; NOT_PREPARED if `stream` is being
// captured.
fp8rt_status fp8rt_context_prepare(struct fp8rt_context *context, void *stream);

// The device of a context (-1: host) and the number of threads that it owns (0 on a GPU). Either pointer may be NULL.
fp8rt_status fp8rt_context_query(const struct fp8rt_context *context, int32_t *device, uint32_t *num_threads);

// Fills `scales` with dtype, rank, shape, strides and bytes of a compact scale tensor for a weight [n, k], or
// [experts, n, k] if `experts` is not 0; `data` becomes NULL and `device` -1, for the caller to set.
//
// FP32 and POW2: float32 [rows, ceil(k/128)], row-major, rows = the sum over parts of ceil(part/128), or ceil(n/128).
// UE8M0_PACKED: int32 [n, ceil(k/512)], rows 1 apart and columns ceil4(n) apart.
fp8rt_status fp8rt_weight_scales_layout(const struct fp8rt_quantize_desc *desc,
                                        int64_t experts,
                                        int64_t n,
                                        int64_t k,
                                        struct fp8rt_tensor *scales);

// As fp8rt_weight_scales_layout, for an activation [m, k]. `layout` is an fp8rt_scale_layout; ROW_MAJOR is refused for
// UE8M0_PACKED. FP32 and POW2: float32 [m, ceil(k/128)]; UE8M0_PACKED: int32 [m, ceil(k/512)]. A column-major tensor has
// its columns ceil4(m) apart, and `bytes` covers the padding of the last.
fp8rt_status fp8rt_activation_scales_layout(const struct fp8rt_quantize_desc *desc,
                                            uint32_t layout,
                                            int64_t m,
                                            int64_t k,
                                            struct fp8rt_tensor *scales);

// Computes the scales of a weight [N, K] or [experts, N, K] (BF16, F16 or F32, rows of any stride, elements of a row 1
// apart) and writes them to `scales`, of the shape and strides that fp8rt_quantize_weight takes.
fp8rt_status fp8rt_compute_weight_scales(struct fp8rt_context *context,
                                         const struct fp8rt_quantize_desc *desc,
                                         const struct fp8rt_tensor *weight,
                                         const struct fp8rt_tensor *scales,
                                         void *stream);

// Computes the scales of an activation [M, K] (BF16, F16 or F32) and writes them to `scales`: [M, ceil(K/128)] row-major,
// or column-major with columns a multiple of 4 and at least M apart, whose rows M to ceil4(M) - 1 become zero as far as
// `bytes` reaches.
fp8rt_status fp8rt_compute_activation_scales(struct fp8rt_context *context,
                                             const struct fp8rt_quantize_desc *desc,
                                             const struct fp8rt_tensor *activation,
                                             const struct fp8rt_tensor *scales,
                                             void *stream);

// Quantizes a weight [N, K] or [experts, N, K] in blocks of 128x128: codes and scales in one pass.
//
// `weight`: BF16, F16 or F32; elements of a row 1 apart, rows any stride of at least K. `codes`: E4M3, same shape, own
// stride. `scales`: as fp8rt_weight_scales_layout says; FP32 and POW2 with any strides that do not overlap, UE8M0_PACKED
// column-major, whose rows N to ceil4(N) - 1 become zero as far as `bytes` reaches. A block that hangs over the edge
// sees only the elements that exist. The largest magnitude is taken over finite elements; a NaN becomes code 0x7F for
// itself alone, an infinity becomes 448 with its sign. Every finite input gives a finite positive scale.
//
// `desc` NULL: recipe NEMO_RL, format FP32. `health`: NULL, or counters to add to.
// Nothing is written unless the call is valid; no output may overlap an input or another output.
fp8rt_status fp8rt_quantize_weight(struct fp8rt_context *context,
                                   const struct fp8rt_quantize_desc *desc,
                                   const struct fp8rt_tensor *weight,
                                   const struct fp8rt_tensor *codes,
                                   const struct fp8rt_tensor *scales,
                                   struct fp8rt_health *health,
                                   void *stream);

// Quantizes an activation [M, K] in groups of 1x128; the last group of a row may be short.
//
// `scales`: [M, ceil(K/128)] row-major, or column-major with columns a multiple of 4 and at least M apart (what TMA
// reads), whose rows M to ceil4(M) - 1 become zero as far as `bytes` reaches; nothing else is touched. Otherwise as
// fp8rt_quantize_weight. `desc` NULL: recipe VLLM, format FP32.
fp8rt_status fp8rt_quantize_activation(struct fp8rt_context *context,
                                       const struct fp8rt_quantize_desc *desc,
                                       const struct fp8rt_tensor *activation,
                                       const struct fp8rt_tensor *codes,
                                       const struct fp8rt_tensor *scales,
                                       struct fp8rt_health *health,
                                       void *stream);

// Quantizes a weight with scales that the caller gives: code = x / scale, rounded, saturating at 448, whatever the recipe.
// `desc` says the format of the scales and the parts. `health` counts as saturated what would round past 448.
// Argument order: `scales` is an input here and comes before `codes`.
fp8rt_status fp8rt_quantize_weight_with_scales(struct fp8rt_context *context,
                                               const struct fp8rt_quantize_desc *desc,
                                               const struct fp8rt_tensor *weight,
                                               const struct fp8rt_tensor *scales,
                                               const struct fp8rt_tensor *codes,
                                               struct fp8rt_health *health,
                                               void *stream);

// As fp8rt_quantize_weight_with_scales, for an activation.
fp8rt_status fp8rt_quantize_activation_with_scales(struct fp8rt_context *context,
                                                   const struct fp8rt_quantize_desc *desc,
                                                   const struct fp8rt_tensor *activation,
                                                   const struct fp8rt_tensor *scales,
                                                   const struct fp8rt_tensor *codes,
                                                   struct fp8rt_health *health,
                                                   void *stream);

// Writes code * scale, a float32 product rounded to the dtype of `weight` (BF16, F16 or F32), every NaN as one and the same
// quiet NaN, to `weight` [N, K] or
// [experts, N, K]. `desc` says the format of the scales and the parts.
fp8rt_status fp8rt_dequantize_weight(struct fp8rt_context *context,
                                     const struct fp8rt_quantize_desc *desc,
                                     const struct fp8rt_tensor *codes,
                                     const struct fp8rt_tensor *scales,
                                     const struct fp8rt_tensor *weight,
                                     void *stream);

// As fp8rt_dequantize_weight, for an activation [M, K].
fp8rt_status fp8rt_dequantize_activation(struct fp8rt_context *context,
                                         const struct fp8rt_quantize_desc *desc,
                                         const struct fp8rt_tensor *codes,
                                         const struct fp8rt_tensor *scales,
                                         const struct fp8rt_tensor *activation,
                                         void *stream);

// Writes silu(gate) * up to `output` [M, K], with gate the columns 0 to K - 1 of `gate_up` [M, 2 K] and up the others.
//
// `gate_up`: BF16, F16 or F32; elements of a row 1 apart, rows any stride. `output`: same dtype, own stride.
// silu(g) = g / (1 + exp(-g)). Computed in float32 and rounded to the dtype once, after the product.
fp8rt_status fp8rt_silu_and_mul(struct fp8rt_context *context,
                                const struct fp8rt_tensor *gate_up,
                                const struct fp8rt_tensor *output,
                                void *stream);

// As fp8rt_silu_and_mul and then fp8rt_quantize_activation of its output, bit for bit, in one pass and without the output:
// the values are rounded to the dtype of `gate_up`, then quantized. `codes` [M, K], `scales`, `desc` and `health` as in
// fp8rt_quantize_activation.
fp8rt_status fp8rt_silu_and_mul_quantize(struct fp8rt_context *context,
                                         const struct fp8rt_quantize_desc *desc,
                                         const struct fp8rt_tensor *gate_up,
                                         const struct fp8rt_tensor *codes,
                                         const struct fp8rt_tensor *scales,
                                         struct fp8rt_health *health,
                                         void *stream);

// Writes z / sqrt(mean(z * z) + epsilon) * weight to `output` [M, K], row by row, where z is `input` [M, K], or with
// `residual` the sum of both, rounded to the dtype and written to `residual`.
//
// `input`: BF16, F16 or F32; elements of a row 1 apart, rows any stride. `residual`: NULL, or as `input`, in and out.
// `weight` [K] and `output`: same dtype. `epsilon`: finite and at least 0. Computed in float32 and rounded to the dtype
// once, after the product. A row gives the same bits whatever the others are and however many.
fp8rt_status fp8rt_rms_norm(struct fp8rt_context *context,
                            const struct fp8rt_tensor *input,
                            const struct fp8rt_tensor *residual,
                            const struct fp8rt_tensor *weight,
                            float epsilon,
                            const struct fp8rt_tensor *output,
                            void *stream);

// As fp8rt_rms_norm and then fp8rt_quantize_activation of its output, bit for bit, in one pass and without the output: the
// values are rounded to the dtype of `input`, then quantized. `codes` [M, K], `scales`, `desc` and `health` as in
// fp8rt_quantize_activation.
fp8rt_status fp8rt_rms_norm_quantize(struct fp8rt_context *context,
                                     const struct fp8rt_quantize_desc *desc,
                                     const struct fp8rt_tensor *input,
                                     const struct fp8rt_tensor *residual,
                                     const struct fp8rt_tensor *weight,
                                     float epsilon,
                                     const struct fp8rt_tensor *codes,
                                     const struct fp8rt_tensor *scales,
                                     struct fp8rt_health *health,
                                     void *stream);

// Quantizes `count` weights: as many calls of fp8rt_quantize_weight with one descriptor, and on a GPU one launch for each
// source dtype (bf16, fp16, fp32) and each 240 parts. The entries travel with the launch: nothing is kept and nothing of
// them is read after the call.
//
// Every entry is checked before the first is enqueued; a message names the entry. That outputs of different entries do
// not overlap is not checked. `desc` must have no parts: each entry has its own.
fp8rt_status fp8rt_quantize_weights(struct fp8rt_context *context,
                                    const struct fp8rt_quantize_desc *desc,
                                    const struct fp8rt_weight_entry *entries,
                                    uint32_t count,
                                    struct fp8rt_health *health,
                                    void *stream);

// As fp8rt_quantize_weights, from host memory to a GPU: the weights (device -1, pinned if the copies shall not hold up the
// host; elements of a row 1 apart, any row stride) are copied in pieces through `staging`, device memory of the caller,
// 256-byte aligned, while the piece before is quantized. Its size is all the extra memory; half of it must hold 128 rows
// of the widest weight. The sources may be changed when the stream has passed this call. One such call at a time runs on
// a context; another waits.
//
// Not during capture. On a host context it is fp8rt_quantize_weights, and `staging` is not used.
fp8rt_status fp8rt_quantize_weights_from_host(struct fp8rt_context *context,
                                              const struct fp8rt_quantize_desc *desc,
                                              const struct fp8rt_weight_entry *entries,
                                              uint32_t count,
                                              void *staging,
                                              uint64_t staging_bytes,
                                              struct fp8rt_health *health,
                                              void *stream);

// Makes a table of `count` weights. On a GPU it allocates device memory for the table (about 120 bytes a part) and
// synchronizes with the copy of it; not during capture. The context may be destroyed before the table.
fp8rt_status fp8rt_weight_table_create(struct fp8rt_context *context,
                                       const struct fp8rt_quantize_desc *desc,
                                       const struct fp8rt_weight_entry *entries,
                                       uint32_t count,
                                       struct fp8rt_weight_table **table);

// Quantizes every weight of the table from what its source holds when the stream comes to it. One launch for each source
// dtype; no allocation; may be captured in a graph and replayed after the sources' contents changed, if
// fp8rt_context_prepare was called before. `health`: NULL, or counters to add to.
fp8rt_status fp8rt_weight_table_run(struct fp8rt_weight_table *table,
                                    struct fp8rt_health *health,
                                    void *stream);

// Destroys a table. NULL is nothing. Its runs must have ended on the device.
fp8rt_status fp8rt_weight_table_destroy(struct fp8rt_weight_table *table);

// Makes a refit plan. Names and descriptions are copied; the memory of the destinations must stay while the plan is used.
// A destination that no region mentions is filled by tensors of its own name: whole, part by part, expert by expert.
//
// Refused: a name that two destinations have; regions of one destination that overlap, or that leave some of it unfilled
// (unless FP8RT_REFIT_DESTINATION_PARTLY); one that cuts through a block, naming the row. That the memory of different
// destinations does not overlap is not checked. The context may be destroyed before the plan.
fp8rt_status fp8rt_refit_create(struct fp8rt_context *context,
                                const struct fp8rt_refit_desc *desc,
                                struct fp8rt_refit **refit);

// Destroys a refit plan. NULL is nothing. Work that it enqueued goes on.
fp8rt_status fp8rt_refit_destroy(struct fp8rt_refit *refit);

// Begins a refit: nothing counts as filled. In any state; what was begun before is given up.
fp8rt_status fp8rt_refit_begin(struct fp8rt_refit *refit);

// Brings `count` tensors, in any order: what they fill is enqueued on `stream` before this returns, in few launches, and
// counts as filled. The bits are those of fp8rt_quantize_weight on each region by itself, in the recipe, format and parts
// of its destination; what is kept, or quantized already, is copied. Items are read during the call only.
//
// Tensors lie on the context's device, or on the host (device -1). From there values pass through `staging`, device
// memory as for fp8rt_quantize_weights_from_host, and the rest is copied directly; not during capture. NULL and 0 if
// there are none. The sources may be changed when the stream has passed this call.
//
// What no region wants of a tensor is left alone: rows of other ranks. A name that nothing knows is an error, and so is a
// cut through a block (the message names the row), and a block that is filled since fp8rt_refit_begin. If anything is
// wrong, nothing is enqueued and nothing changes. If CUDA fails while the work is enqueued, the state is FAILED: then
// fp8rt_refit_begin is the only way on.
//
// `health`: NULL, or counters to add to. `regions_written`: NULL, or receives the number of boxes written. After the first
// call of its size a run allocates nothing.
fp8rt_status fp8rt_refit_run(struct fp8rt_refit *refit,
                             const struct fp8rt_refit_item *items,
                             uint32_t count,
                             void *staging,
                             uint64_t staging_bytes,
                             struct fp8rt_health *health,
                             uint64_t *regions_written,
                             void *stream);

// Ends a refit, on the host: OK if every block of every region is filled. Otherwise INCOMPLETE: the message names the
// first that is missing and says how many are, fp8rt_refit_missing lists them, and the refit stays open. `flags`: 0 or
// FP8RT_REFIT_PARTIAL. `receipt`: NULL, or what was done, written on success; set receipt->struct_size first.
//
// It does not wait: the destinations are new when the stream has passed the runs.
fp8rt_status fp8rt_refit_finish(struct fp8rt_refit *refit, uint32_t flags, struct fp8rt_refit_receipt *receipt);

// What the plan is, and where it stands. Set info->struct_size first.
fp8rt_status fp8rt_refit_query(const struct fp8rt_refit *refit, struct fp8rt_refit_info *info);

// Writes what is not filled to `text`, as JSON, zero-terminated and cut to `capacity` bytes: an array of objects, one for
// each region of which something is missing, with `name` (of the destination), `source`, `part` (of a destination without
// recorded regions), `expert`, `row` and `column` (the first that is missing, in the destination), `filled` and `total`
// blocks. `length` (may be NULL) receives the whole length without the zero. `text` may be NULL if `capacity` is 0.
fp8rt_status fp8rt_refit_missing(const struct fp8rt_refit *refit,
                                 char *text,
                                 uint64_t capacity,
                                 uint64_t *length);

// Writes the name of source `index`, below num_sources, as fp8rt_refit_missing writes.
fp8rt_status fp8rt_refit_source_name(const struct fp8rt_refit *refit,
                                     uint32_t index,
                                     char *text,
                                     uint64_t capacity,
                                     uint64_t *length);

// Makes a table of items at fixed addresses, all on the context's device: fp8rt_weight_table_run then does what a run with
// these items would, and may be captured and replayed. It knows nothing of begin and finish. As
// fp8rt_weight_table_create.
fp8rt_status fp8rt_refit_bind(const struct fp8rt_refit *refit,
                              const struct fp8rt_refit_item *items,
                              uint32_t count,
                              struct fp8rt_weight_table **table);

// Quantizes items as a run would, each into the views of the same index in `codes` and `scales` instead of the
// destinations: E4M3 of the item's shape, and scales as fp8rt_weight_scales_layout says, one grid a part if the item is a
// whole destination with parts. For resharding libraries; nothing counts as filled, in any state. Items lie on the
// context's device. Refused where the blocks of the item would not be those of the regions that want some of it.
fp8rt_status fp8rt_refit_quantize_into(const struct fp8rt_refit *refit,
                                       const struct fp8rt_refit_item *items,
                                       const struct fp8rt_tensor *codes,
                                       const struct fp8rt_tensor *scales,
                                       uint32_t count,
                                       struct fp8rt_health *health,
                                       void *stream);

// Synchronizes with `stream`, and copies counters of the context's device to `host`.
fp8rt_status fp8rt_health_read(struct fp8rt_context *context,
                               const struct fp8rt_health *device,
                               struct fp8rt_health *host,
                               void *stream);

// Adds the blocks of a weight to `sum`: for each a hash of its name, part, expert, block row, block column, codes and
// scale, which the README defines. Sums add up modulo 2^128: the shards of a weight that is cut on blocks give the sum of
// the whole, in any order and on any devices.
//
// `codes`: E4M3 [N, K] or [experts, N, K], with `scales` as fp8rt_weight_scales_layout says for `desc->scale_format` and
// the parts. POW2 and UE8M0_PACKED give the same sum. Or a tensor of BF16, F16 or F32 of rank 1 to 3 that is not
// quantized, with `scales` NULL: its bytes are hashed. Elements of a row are 1 apart, rows any stride, any alignment.
//
// `sum`: 8-byte aligned, in the memory of the context's device, zeroed by the caller before the first call that adds to
// it. On a GPU one launch, which may be captured if fp8rt_context_prepare was called before.
fp8rt_status fp8rt_fingerprint_weight(struct fp8rt_context *context,
                                      const struct fp8rt_fingerprint_desc *desc,
                                      const struct fp8rt_tensor *codes,
                                      const struct fp8rt_tensor *scales,
                                      struct fp8rt_fingerprint_sum *sum,
                                      void *stream);

// Copies `count` sums out of the memory of the context's device and folds them. Synchronizes with `stream`.
//
// `values`: NULL, or room for `count` fingerprints. `total`: NULL, or the fingerprint of all sums together.
fp8rt_status fp8rt_fingerprint_read(struct fp8rt_context *context,
                                    const struct fp8rt_fingerprint_sum *sums,
                                    uint32_t count,
                                    struct fp8rt_fingerprint *values,
                                    struct fp8rt_fingerprint *total,
                                    void *stream);

// Adds what the destinations of a plan hold to `sums`, one for each of its num_sources sources: the sum of
// fp8rt_fingerprint_weight over the regions of the source, each at its place in the source. What no region fills does not
// count. In any state; whether a refit is complete says fp8rt_refit_finish.
//
// A region that nobody recorded counts by the name of its destination and its part, rows from the beginning of the part. A
// recorded one counts by the name of its source, part 0, experts, rows and columns in the source: so engines that pack and
// shard alike or not, and a trainer with the names of a checkpoint, compute the same, if all are cut on blocks of the
// source (cut_on_blocks of fp8rt_refit_info). What several ranks hold is counted by each.
//
// `sums`: as for fp8rt_fingerprint_weight. On a GPU one launch for each 240 regions.
fp8rt_status fp8rt_refit_fingerprint(const struct fp8rt_refit *refit,
                                     struct fp8rt_fingerprint_sum *sums,
                                     void *stream);

// As fp8rt_fingerprint_read, of a plan's sums. `count` must be its num_sources; value i is that of source i, which
// fp8rt_refit_source_name names. Synchronizes with `stream`.
fp8rt_status fp8rt_refit_fingerprint_read(const struct fp8rt_refit *refit,
                                          const struct fp8rt_fingerprint_sum *sums,
                                          uint32_t count,
                                          struct fp8rt_fingerprint *values,
                                          struct fp8rt_fingerprint *total,
                                          void *stream);

// Compares `count` items with what the destinations of the plan hold, and adds to `sums`, one for each of the plan's
// num_sources sources. Call it after the runs that brought them, with the values that they brought: on a GPU in the same
// stream. For reports: it reads everything once, and is not made to be fast.
//
// Items lie on the context's device and hold values, no codes. What the plan keeps as it is adds nothing. `sums`: 8-byte
// aligned, in the memory of the context's device, zeroed by the caller before the first call that adds to them.
fp8rt_status fp8rt_refit_measure(const struct fp8rt_refit *refit,
                                 const struct fp8rt_refit_item *items,
                                 uint32_t count,
                                 struct fp8rt_error_sums *sums,
                                 void *stream);

// Copies `count` sums from the memory of the context's device to `host`. Synchronizes with `stream`.
fp8rt_status fp8rt_error_sums_read(struct fp8rt_context *context,
                                   const struct fp8rt_error_sums *device,
                                   uint32_t count,
                                   struct fp8rt_error_sums *host,
                                   void *stream);

// Writes a report to `text`, zero-terminated and cut to `capacity` bytes: for each layer, projection and tensor the relative
// error that FP8 adds, the shares of elements that became zero or subnormal, and of outlier blocks, the worst first; and
// the num_first_layers_in_bf16 and num_last_layers_in_bf16 that this suggests, with the rule in words.
//
// `sums`: host memory, those of fp8rt_refit_measure; `count` must be the plan's num_sources. `format`: an
// fp8rt_report_format. `length` (may be NULL) receives the whole length without the zero; `text` may be NULL if `capacity`
// is 0. Layers and projections are read from the names of the sources (`layers.N.`, `layer.N.`, `h.N.`, `blocks.N.`,
// `block.N.`).
fp8rt_status fp8rt_refit_report(const struct fp8rt_refit *refit,
                                const struct fp8rt_error_sums *sums,
                                uint32_t count,
                                uint32_t format,
                                char *text,
                                uint64_t capacity,
                                uint64_t *length);

// Chooses the backend for y[M,N] = x[M,K] . dequant(w)[N,K]^T (+ bias[N]), accumulated in float32.
//
// The scales of the weight are [rows, ceil(K/128)] with rows as fp8rt_weight_scales_layout says, one grid a part. The
// context may be destroyed before the plan.
// Errors: UNSUPPORTED if no backend takes it, with what each said; INVALID_ARGUMENT, SHAPE, STRIDE, DTYPE, STRUCT_SIZE.
fp8rt_status fp8rt_linear_plan_create(struct fp8rt_context *context,
                                      const struct fp8rt_linear_desc *desc,
                                      struct fp8rt_linear_plan **plan);

// Destroys a plan. NULL is nothing. No run may be using it.
fp8rt_status fp8rt_linear_plan_destroy(struct fp8rt_linear_plan *plan);

// What the plan decided. Set info->struct_size first.
fp8rt_status fp8rt_linear_plan_query(const struct fp8rt_linear_plan *plan, struct fp8rt_linear_plan_info *info);

// Workspace that a run of `m` rows needs, in bytes. Monotone in m; for max_m it is what fp8rt_linear_plan_query says.
fp8rt_status fp8rt_linear_plan_workspace(const struct fp8rt_linear_plan *plan, int64_t m, uint64_t *bytes);

// Writes one line for a person to `text`, zero-terminated and cut to `capacity` bytes: the shape, the backend, and why
// those before it refused. `length` (may be NULL) receives the whole length without the zero. `text` may be NULL if
// `capacity` is 0.
fp8rt_status fp8rt_linear_plan_describe(const struct fp8rt_linear_plan *plan,
                                        char *text,
                                        uint64_t capacity,
                                        uint64_t *length);

// Checks the weight that runs will bring against the plan, and does what a run must not do: starts threads; on a GPU,
// loads the kernels, asks whether the pointers are device memory, and may synchronize. The pointers are not kept: a
// later run may bring others. `bias` is NULL if the plan has none.
fp8rt_status fp8rt_linear_plan_prepare(struct fp8rt_linear_plan *plan,
                                       const struct fp8rt_tensor *weight,
                                       const struct fp8rt_tensor *weight_scales,
                                       const struct fp8rt_tensor *bias,
                                       void *stream);

// Quantizes x [M, K] (the plan's input dtype, rows of any stride, 0 <= M <= max_m) and multiplies: y [M, N].
//
// `workspace`: at least what fp8rt_linear_plan_workspace says for this M, 256-byte aligned, contents undefined before and
// after, one for each concurrent run. `bias` is NULL if the plan has none. M = 0 succeeds and writes nothing. Where the
// product of two scales is below the normal float32, y is finite; where it overflows, the host and the backend plain
// count that group as 0, and the others may give infinity or NaN.
fp8rt_status fp8rt_linear(struct fp8rt_linear_plan *plan,
                          const struct fp8rt_tensor *x,
                          const struct fp8rt_tensor *weight,
                          const struct fp8rt_tensor *weight_scales,
                          const struct fp8rt_tensor *bias,
                          const struct fp8rt_tensor *y,
                          void *workspace,
                          uint64_t workspace_bytes,
                          void *stream);

// As fp8rt_linear, with x already quantized: `x` E4M3 [M, K] of the plan's input_stride, `x_scales` of the plan's format
// and layout.
fp8rt_status fp8rt_linear_prequantized(struct fp8rt_linear_plan *plan,
                                       const struct fp8rt_tensor *x,
                                       const struct fp8rt_tensor *x_scales,
                                       const struct fp8rt_tensor *weight,
                                       const struct fp8rt_tensor *weight_scales,
                                       const struct fp8rt_tensor *bias,
                                       const struct fp8rt_tensor *y,
                                       void *workspace,
                                       uint64_t workspace_bytes,
                                       void *stream);

// Reads settings. Warnings go to the log too, at FP8RT_LOG_WARNING.
//
// NeMo-RL's keys for other things are ignored, but not one within two edits of a key that is read. In this library's own
// object an unknown key is an error. The key "fp8rt" beside other settings is merged with them.
// Errors: INVALID_ARGUMENT with the key and its value; UNSUPPORTED for a quantization that this library does not have
// (is_mx, weight_block_size other than [128, 128], an activation_scheme other than dynamic); NULL_POINTER, STRUCT_SIZE.
fp8rt_status fp8rt_policy_create(const struct fp8rt_policy_desc *desc,
                                 struct fp8rt_policy **policy);

// Destroys a policy. NULL is nothing. No call may be using it.
fp8rt_status fp8rt_policy_destroy(struct fp8rt_policy *policy);

// What the policy says of the whole model. Set info->struct_size first.
fp8rt_status fp8rt_policy_query(const struct fp8rt_policy *policy, struct fp8rt_policy_info *info);

// Writes warning `index` (below num_warnings) to `text`, zero-terminated and cut to `capacity` bytes. `length` (may be
// NULL) receives the whole length without the zero. `text` may be NULL if `capacity` is 0.
fp8rt_status fp8rt_policy_warning(const struct fp8rt_policy *policy,
                                  uint32_t index,
                                  char *text,
                                  uint64_t capacity,
                                  uint64_t *length);

// Decides for a parameter of the checkpoint, "model.layers.0.self_attn.q_proj.weight", of `rank` extents in `shape`, or of
// unknown shape if `rank` is 0. Set decision->struct_size first. The reason goes to `text` as fp8rt_policy_warning writes.
//
// Parameters that an engine runs as one (q, k and v; gate and up; all experts of a layer) get one decision.
// Errors: INVALID_ARGUMENT if the settings treat members of such a group differently, with the group and two members.
fp8rt_status fp8rt_policy_decide(const struct fp8rt_policy *policy,
                                 const char *name,
                                 uint32_t rank,
                                 const int64_t *shape,
                                 struct fp8rt_policy_decision *decision,
                                 char *text,
                                 uint64_t capacity,
                                 uint64_t *length);

// As fp8rt_policy_decide, for a module of an engine, "model.layers.0.self_attn.qkv_proj" or "model.layers.0.mlp.experts":
// its prefix is translated, and a fused module gets the decision of its members.
fp8rt_status fp8rt_policy_decide_module(const struct fp8rt_policy *policy,
                                        const char *prefix,
                                        struct fp8rt_policy_decision *decision,
                                        char *text,
                                        uint64_t capacity,
                                        uint64_t *length);

// Writes the canonical text as fp8rt_policy_warning writes: JSON with sorted keys, of what decisions depend on and nothing
// else. Equal for equal settings, whoever's they were, in any order of keys, on any machine.
fp8rt_status fp8rt_policy_text(const struct fp8rt_policy *policy,
                               char *text,
                               uint64_t capacity,
                               uint64_t *length);

// The first 128 bits of the SHA-256 of the canonical text: bytes 0 to 7 of the hash are `low`, bytes 8 to 15 `high`,
// each little-endian.
fp8rt_status fp8rt_policy_fingerprint(const struct fp8rt_policy *policy, struct fp8rt_fingerprint *fingerprint);

// Compares with the canonical text of another policy, from another rank: `count` receives how many settings differ, and
// `text`, as fp8rt_policy_warning writes, a line for each with its name and both values ("here" is this policy).
fp8rt_status fp8rt_policy_difference(const struct fp8rt_policy *policy,
                                     const char *other,
                                     uint32_t *count,
                                     char *text,
                                     uint64_t capacity,
                                     uint64_t *length);

// Says what rank desc->rank holds of a weight. `parts` (may be NULL) receives desc->num_parts entries; `part_rows` (may be
// NULL) the rows of each, as fp8rt_quantize_desc.part_rows of the rank's weight. Set info->struct_size first.
//
// The rank's weight is quantized from its own rows and columns, with its own edge blocks. Only where on_blocks is 1 are its
// codes and scales slices of the whole weight's.
// Errors: SHAPE if rows, heads or columns cannot be cut evenly, with both numbers; INVALID_ARGUMENT, NULL_POINTER.
fp8rt_status fp8rt_shard_layout(const struct fp8rt_shard_desc *desc,
                                struct fp8rt_shard_info *info,
                                struct fp8rt_shard_part *parts,
                                int64_t *part_rows);

// Registers the ops of namespace `fp8rt` with the torch that is in this process: `torch.ops.fp8rt`, as the README's
// chapter "From torch" lists them. Loading the library does the same, so this is for a process that imported torch
// afterwards. Once they are registered it does nothing. Torch 2.11 or newer.
//
// Errors: UNSUPPORTED if torch is not in the process, is older, or lacks something, which the message names.
fp8rt_status fp8rt_torch_register(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FP8RT_H */
