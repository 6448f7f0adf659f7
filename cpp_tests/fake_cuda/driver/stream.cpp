// Streams, events and graph capture.

#include <algorithm>
#include <utility>

#include "recording.hpp"

using namespace fake_cuda;

namespace {

CUresult create(CUstream *handle) {
  state().streams.push_back(std::make_unique<Stream>(Stream{current(), false}));
  *handle = reinterpret_cast<CUstream>(state().streams.back().get());
  return CUDA_SUCCESS;
}

template <class Object>
void erase(std::vector<std::unique_ptr<Object>> &objects, const Object *object) {
  objects.erase(std::find_if(objects.begin(), objects.end(), [&](const auto &o) { return o.get() == object; }));
}

bool &default_capturing(CUstream handle) {
  return state().default_capturing[reinterpret_cast<std::uintptr_t>(handle) == 2 ? 2 : 0];
}

CUresult capture_status(fake_cuda_call &call, CUstream handle, CUstreamCaptureStatus *status) {
  bool capturing = false;
  if (is_default_stream(handle)) {
    if (current() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    capturing = default_capturing(handle);
    if (!capturing && handle != CU_STREAM_PER_THREAD && any_capture()) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  } else if (const Stream *stream = find_stream(handle)) {
    capturing = stream->capturing;
  } else {
    call.violation = "a stream that does not exist";
    return CUDA_ERROR_INVALID_HANDLE;
  }
  *status = capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

CUresult capture_info(fake_cuda_call &call, CUstream handle, CUstreamCaptureStatus *status, cuuint64_t *id) {
  const CUresult result = capture_status(call, handle, status);
  if (result == CUDA_SUCCESS && id != nullptr) *id = *status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? 1 : 0;
  return result;
}

CUresult invalid_handle(fake_cuda_call &call) {
  call.violation = "a handle of another context, or of none";
  return CUDA_ERROR_INVALID_HANDLE;
}

}  // namespace

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
  return record(__func__, Needs::kContext, {stream, flags}, [&](fake_cuda_call &) { return create(stream); });
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority) {
  return record(__func__, Needs::kContext, {stream, flags, priority}, [&](fake_cuda_call &) { return create(stream); });
}

CUresult cuStreamDestroy(CUstream handle) {
  return record(__func__, Needs::kInit, {handle}, [&](fake_cuda_call &call) {
    const Stream *stream = find_stream(handle);
    if (stream == nullptr) return invalid_handle(call);
    erase(state().streams, stream);
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamSynchronize(CUstream stream) {
  return record(__func__, Needs::kContextWithoutCapture, {stream}, [&](fake_cuda_call &call) {
    return usable(stream) ? CUDA_SUCCESS : invalid_handle(call);
  });
}

CUresult cuStreamQuery(CUstream stream) {
  return record(__func__, Needs::kContextWithoutCapture, {stream}, [&](fake_cuda_call &call) {
    return usable(stream) ? CUDA_SUCCESS : invalid_handle(call);
  });
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
  return record(__func__, Needs::kContext, {stream, event, flags}, [&](fake_cuda_call &call) {
    return usable(stream) && find_event(event) != nullptr ? CUDA_SUCCESS : invalid_handle(call);
  });
}

CUresult cuStreamGetCtx(CUstream handle, CUcontext *context) {
  return record(__func__, Needs::kInit, {handle, context}, [&](fake_cuda_call &call) {
    const Stream *stream = find_stream(handle);
    if (stream == nullptr && !is_default_stream(handle)) return invalid_handle(call);
    if (stream == nullptr && current() == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    *context = reinterpret_cast<CUcontext>(stream == nullptr ? current() : stream->context);
    return CUDA_SUCCESS;
  });
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  return record(__func__, Needs::kInit, {stream, status},
                [&](fake_cuda_call &call) { return capture_status(call, stream, status); });
}

CUresult cuStreamGetCaptureInfo_v2(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *,
                                   const CUgraphNode **, size_t *) {
  return record(__func__, Needs::kInit, {stream, status, id},
                [&](fake_cuda_call &call) { return capture_info(call, stream, status, id); });
}

CUresult cuStreamGetCaptureInfo_v3(CUstream stream, CUstreamCaptureStatus *status, cuuint64_t *id, CUgraph *,
                                   const CUgraphNode **, const CUgraphEdgeData **, size_t *) {
  return record(__func__, Needs::kInit, {stream, status, id},
                [&](fake_cuda_call &call) { return capture_info(call, stream, status, id); });
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
  return record(__func__, Needs::kInit, {mode}, [&](fake_cuda_call &) {
    std::swap(*mode, capture_mode());
    return CUDA_SUCCESS;
  });
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
  return record(__func__, Needs::kContext, {event, flags}, [&](fake_cuda_call &) {
    state().events.push_back(std::make_unique<Event>(Event{current()}));
    *event = reinterpret_cast<CUevent>(state().events.back().get());
    return CUDA_SUCCESS;
  });
}

CUresult cuEventDestroy(CUevent handle) {
  return record(__func__, Needs::kInit, {handle}, [&](fake_cuda_call &call) {
    const Event *event = find_event(handle);
    if (event == nullptr) return invalid_handle(call);
    erase(state().events, event);
    return CUDA_SUCCESS;
  });
}

// An event belongs to the context in which it was made, and is recorded only there.
CUresult cuEventRecord(CUevent handle, CUstream stream) {
  return record(__func__, Needs::kContext, {handle, stream}, [&](fake_cuda_call &call) {
    const Event *event = find_event(handle);
    const bool valid = event != nullptr && event->context == current() && usable(stream);
    return valid ? CUDA_SUCCESS : invalid_handle(call);
  });
}

CUresult cuEventSynchronize(CUevent event) {
  return record(__func__, Needs::kContextWithoutCapture, {event}, [&](fake_cuda_call &call) {
    return find_event(event) == nullptr ? invalid_handle(call) : CUDA_SUCCESS;
  });
}

CUresult cuEventQuery(CUevent event) {
  return record(__func__, Needs::kContextWithoutCapture, {event}, [&](fake_cuda_call &call) {
    return find_event(event) == nullptr ? invalid_handle(call) : CUDA_SUCCESS;
  });
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  return record(__func__, Needs::kContextWithoutCapture, {milliseconds, start, end}, [&](fake_cuda_call &call) {
    if (find_event(start) == nullptr || find_event(end) == nullptr) return invalid_handle(call);
    *milliseconds = 0;
    return CUDA_SUCCESS;
  });
}

CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
  return cuEventElapsedTime(milliseconds, start, end);
}

void fake_cuda_set_capturing(void *stream, int capturing) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const auto handle = static_cast<CUstream>(stream);
  if (Stream *found = find_stream(handle)) {
    found->capturing = capturing != 0;
  } else {
    default_capturing(handle) = capturing != 0;
  }
}

size_t fake_cuda_live_streams(void) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return state().streams.size();
}

size_t fake_cuda_live_events(void) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  return state().events.size();
}
