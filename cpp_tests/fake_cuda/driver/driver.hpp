// The declarations that this library implements, exported; all else is hidden.
#pragma once

#pragma GCC visibility push(default)
#include <cuda.h>

#include "fake_cuda.h"

// Older symbols that cuda.h renames or no longer declares.
#undef cuDevicePrimaryCtxRelease
#undef cuStreamGetCaptureInfo
#undef cuEventElapsedTime
extern "C" {
CUresult cuDevicePrimaryCtxRelease(CUdevice device);
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device);
CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                   const CUgraphNode **dependencies, size_t *count);
CUresult cuStreamGetCaptureInfo_v3(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *graph,
                                   const CUgraphNode **dependencies, const CUgraphEdgeData **edges, size_t *count);
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end);
CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end);
}
#pragma GCC visibility pop
