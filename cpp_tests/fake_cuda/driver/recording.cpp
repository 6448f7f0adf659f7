#include "recording.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace fake_cuda {

namespace {

constexpr std::size_t kMostCalls = 1 << 18;
constexpr std::size_t kParameterBytes = std::size_t{1} << 30;
constexpr std::size_t kMostFailures = 16;

struct Failure {
  char function[64];
  std::int32_t result;
  std::uint32_t after_calls;
};

// Pages that cost nothing before they are used.
void *reserve(std::size_t bytes) {
  void *pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) std::abort();
  return pages;
}

struct Records {
  fake_cuda_call *calls = static_cast<fake_cuda_call *>(reserve(kMostCalls * sizeof(fake_cuda_call)));
  std::size_t count = 0;
  std::uint8_t *parameters = static_cast<std::uint8_t *>(reserve(kParameterBytes));
  std::size_t parameters_used = 0;
  Failure failures[kMostFailures] = {};
  std::size_t num_failures = 0;
};

Records &records() {
  static Records *const only = new Records;
  return *only;
}

// Length of a name without "_v2" and the like.
std::size_t plain_length(const char *name) {
  const std::size_t length = std::strlen(name);
  const bool versioned = length > 3 && name[length - 3] == '_' && name[length - 2] == 'v';
  return versioned ? length - 3 : length;
}

}  // namespace

bool same_function(const char *a, const char *b) {
  const std::size_t length = plain_length(a);
  return length == plain_length(b) && std::memcmp(a, b, length) == 0;
}

fake_cuda_call &begin(const char *function, Arguments arguments) {
  Records &r = records();
  if (r.count == kMostCalls) {
    std::fputs("fake_cuda: too many calls without a reset\n", stderr);
    std::abort();
  }
  fake_cuda_call &call = r.calls[r.count++];
  call = {};
  call.function = function;
  call.thread = static_cast<std::uint64_t>(syscall(SYS_gettid));
  call.device = current() == nullptr ? -1 : current()->device;
  std::size_t place = 0;
  for (const Argument &argument : arguments) {
    if (place < FAKE_CUDA_ARGUMENTS) call.arguments[place++] = argument.bits;
  }
  return call;
}

CUresult injected(const char *function) {
  Records &r = records();
  for (std::size_t i = 0; i < r.num_failures; ++i) {
    Failure &failure = r.failures[i];
    if (!same_function(failure.function, function)) continue;
    if (failure.after_calls == 0) return static_cast<CUresult>(failure.result);
    --failure.after_calls;
  }
  return CUDA_SUCCESS;
}

CUresult check_initialized(fake_cuda_call &call) {
  const State &s = state();
  if (s.initialized_by == 0) return CUDA_ERROR_NOT_INITIALIZED;
  if (s.initialized_by == getpid()) return CUDA_SUCCESS;
  call.violation = "the driver is used after fork";
  return CUDA_ERROR_NOT_INITIALIZED;
}

CUresult check_no_capture(fake_cuda_call &call) {
  if (!any_capture() || capture_mode() == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  call.violation = "not allowed during graph capture";
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

std::uint8_t *parameter_room(std::size_t bytes) {
  Records &r = records();
  const std::size_t rounded = (bytes + 15) / 16 * 16;
  if (rounded > kParameterBytes - r.parameters_used) std::abort();
  std::uint8_t *room = r.parameters + r.parameters_used;
  r.parameters_used += rounded;
  return room;
}

}  // namespace fake_cuda

using namespace fake_cuda;

void fake_cuda_reset(void) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  Records &r = records();
  r.count = r.parameters_used = r.num_failures = 0;
  set_default_attributes(state());
  state().default_capturing = {};
  for (const auto &stream : state().streams) stream->capturing = false;
}

const fake_cuda_call *fake_cuda_calls(size_t *count) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  *count = records().count;
  return records().calls;
}

size_t fake_cuda_count(const char *function) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const Records &r = records();
  std::size_t count = 0;
  for (std::size_t i = 0; i < r.count; ++i) {
    count += function == nullptr || same_function(r.calls[i].function, function);
  }
  return count;
}

const fake_cuda_launch *fake_cuda_last_launch(void) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const Records &r = records();
  for (std::size_t i = r.count; i > 0; --i) {
    if (r.calls[i - 1].launch.kernel != nullptr) return &r.calls[i - 1].launch;
  }
  return nullptr;
}

size_t fake_cuda_violations(void) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const Records &r = records();
  std::size_t count = 0;
  for (std::size_t i = 0; i < r.count; ++i) count += r.calls[i].violation != nullptr;
  return count;
}

void fake_cuda_fail(const char *function, int32_t result, uint32_t after_calls) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  Records &r = records();
  Failure *failure = nullptr;
  for (std::size_t i = 0; i < r.num_failures; ++i) {
    if (same_function(r.failures[i].function, function)) failure = &r.failures[i];
  }
  if (failure == nullptr) {
    if (r.num_failures == kMostFailures) std::abort();
    failure = &r.failures[r.num_failures++];
  }
  *failure = {};
  std::snprintf(failure->function, sizeof failure->function, "%s", function);
  failure->result = result;
  failure->after_calls = after_calls;
}
