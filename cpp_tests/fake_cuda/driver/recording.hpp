// Every entry of the driver runs in one of these: it is recorded, fails where a test asked for it, and is refused where
// a real driver refuses. Recording allocates nothing, so that tests can count the allocations of others.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "state.hpp"

namespace fake_cuda {

// A number or a pointer of a call.
struct Argument {
  std::uint64_t bits;
  template <class T>
  Argument(T *pointer) : bits(reinterpret_cast<std::uintptr_t>(pointer)) {}
  template <class T>
  Argument(T number) : bits(static_cast<std::uint64_t>(number)) {}
};

using Arguments = std::initializer_list<Argument>;

fake_cuda_call &begin(const char *function, Arguments arguments);

// What a test asked this call to return; CUDA_SUCCESS if nothing.
CUresult injected(const char *function);

// Not after fork, and not before cuInit.
CUresult check_initialized(fake_cuda_call &call);

// What must not happen while this process captures a graph.
CUresult check_no_capture(fake_cuda_call &call);

// Whether two names mean one function, whatever their version suffix.
bool same_function(const char *a, const char *b);

// Room for the parameters of a launch, until the next reset.
std::uint8_t *parameter_room(std::size_t bytes);

enum class Needs { kNothing, kInit, kContext, kContextWithoutCapture };

template <class Body>
CUresult record(const char *function, Needs needs, Arguments arguments, Body body) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  fake_cuda_call &call = begin(function, arguments);
  CUresult result = injected(function);
  if (result == CUDA_SUCCESS && needs >= Needs::kInit) result = check_initialized(call);
  if (result == CUDA_SUCCESS && needs >= Needs::kContext && current() == nullptr) result = CUDA_ERROR_INVALID_CONTEXT;
  if (result == CUDA_SUCCESS && needs == Needs::kContextWithoutCapture) result = check_no_capture(call);
  if (result == CUDA_SUCCESS) result = body(call);
  call.result = result;
  return result;
}

}  // namespace fake_cuda
