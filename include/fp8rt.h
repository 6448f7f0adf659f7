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

// The device that calls run on, with the threads that it owns. Any number of threads may use one at once; creating and
// destroying are exclusive. It may be destroyed before the plans that were made from it.
typedef struct fp8rt_context fp8rt_context;

// A linear with its backend chosen. Holds no pointers of the caller. Any number of threads may run one at once, each with
// its own workspace; creating and destroying are exclusive.
typedef struct fp8rt_linear_plan fp8rt_linear_plan;

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
