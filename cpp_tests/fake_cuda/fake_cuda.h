/* What tests ask of the recording libcuda.so.1. It runs no kernels: it remembers every call, and refuses what a real
 * driver refuses (a missing current context, a handle of another context, a launch beyond the limits of the function,
 * loading and allocating during graph capture, any use after fork). */

#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FAKE_CUDA_ARGUMENTS = 8, FAKE_CUDA_DEVICES = 2 };

/* A launch. `parameters` are the bytes of all kernel parameters, each at the offset that the cubin gives it. */
typedef struct fake_cuda_launch {
  const char *kernel;
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t cluster[3]; /* 1, 1, 1 without the attribute */
  uint32_t shared_bytes;
  uint32_t programmatic; /* programmatic stream serialization is allowed */
  uint32_t num_attributes;
  uint32_t parameter_bytes;
  const uint8_t *parameters;
  void *stream;
  int32_t device;
} fake_cuda_launch;

/* A call of the driver, in the order of calls over all threads. Numbers and pointers are in `arguments`, in order. */
typedef struct fake_cuda_call {
  const char *function; /* with its version suffix, as exported */
  uint64_t thread;
  int32_t result;
  int32_t device;        /* of the current context; -1 without one */
  const char *violation; /* NULL, or what makes this call a mistake even where its error is handled */
  uint64_t arguments[FAKE_CUDA_ARGUMENTS];
  fake_cuda_launch launch; /* kernel NULL: not a launch */
} fake_cuda_call;

/* What cuTensorMapEncodeTiled writes to the 128 bytes of a CUtensorMap. */
typedef struct fake_cuda_tensor_map {
  uint64_t address;
  uint64_t extent[5];
  uint64_t stride[4]; /* in bytes, of all but the innermost */
  uint32_t box[5];
  uint8_t data_type, rank, interleave, swizzle, promotion, fill;
  uint8_t unused[22];
} fake_cuda_tensor_map;

/* Forgets calls, injected failures, captures and changed attributes. Contexts, modules and memory stay. */
void fake_cuda_reset(void);

/* The calls since the last reset. The array never moves. */
const fake_cuda_call *fake_cuda_calls(size_t *count);

/* Calls of one function, named with or without its version suffix; NULL: of all. */
size_t fake_cuda_count(const char *function);

/* The last launch, NULL if there was none. */
const fake_cuda_launch *fake_cuda_last_launch(void);

/* Calls with a violation since the last reset. */
size_t fake_cuda_violations(void);

/* From call number `after_calls` (counted from now, 0: the next) on, the function returns `result`. 0: no more. */
void fake_cuda_fail(const char *function, int32_t result, uint32_t after_calls);

/* Puts a stream (NULL: the legacy stream) into a capture, or ends it. */
void fake_cuda_set_capturing(void *stream, int capturing);

/* A device attribute, by the number of CUdevice_attribute, until the next reset. */
void fake_cuda_set_attribute(int32_t device, int32_t attribute, int32_t value);

/* What is alive: device memory, pinned host memory, modules, streams, events. */
size_t fake_cuda_live_allocations(void);
size_t fake_cuda_live_host_allocations(void);
size_t fake_cuda_live_modules(void);
size_t fake_cuda_live_streams(void);
size_t fake_cuda_live_events(void);

/* How many times the primary context of a device is retained. */
size_t fake_cuda_retained(int32_t device);

/* Device memory as the host may read it: device pointers themselves fault. NULL for what is not device memory. */
void *fake_cuda_host_view(uint64_t device_pointer);

#ifdef __cplusplus
}
#endif

#endif
