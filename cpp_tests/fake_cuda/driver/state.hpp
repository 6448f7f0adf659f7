// What the fake driver remembers. One lock guards all of it. Nothing is destroyed at exit: the library under test may
// still call then.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <sys/types.h>

#include "cubin.hpp"
#include "driver.hpp"

namespace fake_cuda {

constexpr int kDevices = FAKE_CUDA_DEVICES;
constexpr int kAttributes = 256;

struct Context {
  int device;
  std::size_t retained;
};

struct Module;

struct Function {
  Module *module;
  Kernel kernel;
  int shared_limit;
};

struct Module {
  Context *context;
  std::vector<std::unique_ptr<Function>> functions;
};

struct Stream {
  Context *context;
  bool capturing;
};

struct Event {
  Context *context;
};

// `view` is the memory; for device memory, `base` is the same pages where the host may not touch them.
struct Allocation {
  std::uint64_t base;
  std::size_t bytes;
  Context *context;
  bool on_device;
  std::uint8_t *view;
};

struct State {
  std::recursive_mutex mutex;
  pid_t initialized_by = 0;
  std::array<Context, kDevices> contexts{};
  std::array<std::array<int, kAttributes>, kDevices> attributes{};
  // The legacy stream and the two constants that stand for default streams.
  std::array<bool, 3> default_capturing{};
  std::vector<std::unique_ptr<Module>> modules;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::unique_ptr<Event>> events;
  std::vector<Allocation> allocations;
};

State &state();

void set_default_attributes(State &s);

// The current context of this thread, NULL without one.
Context *current();

bool any_capture();

// How much this thread may do while anything is captured: all of it if relaxed.
CUstreamCaptureMode &capture_mode();

// The object behind a handle, NULL if there is none such, or no longer.
Function *find_function(CUfunction handle);
Module *find_module(CUmodule handle);
Stream *find_stream(CUstream handle);
Event *find_event(CUevent handle);

bool is_default_stream(CUstream handle);

// Whether work of the current context may go to this stream.
bool usable(CUstream handle);

// The allocation that holds all of a range, NULL if none does.
const Allocation *find_allocation(std::uint64_t address, std::size_t bytes = 1);

}  // namespace fake_cuda
