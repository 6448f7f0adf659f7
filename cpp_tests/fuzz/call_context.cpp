// Version, errors and contexts.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "calls.hpp"

namespace fuzz {

void check_status(fp8rt_status status) {
  bool known = std::strcmp(fp8rt_status_name(status), "unknown") != 0;
  bool explained = status == FP8RT_STATUS_OK || std::strncmp(fp8rt_last_error(), "fp8rt_", 6) == 0;
  if (!known || !explained || status == FP8RT_STATUS_INTERNAL || std::strlen(fp8rt_last_error()) > 511) {
    std::fprintf(stderr, "status %d (%s), message \"%s\"\n", static_cast<int>(status), fp8rt_status_name(status),
                 fp8rt_last_error());
    std::abort();
  }
}

static void ignore_line(uint32_t, const char *, void *) {}

void call_version(Arguments &arguments, fp8rt_context *) {
  auto number = static_cast<int32_t>(arguments.reader().hostile());
  if (fp8rt_abi_version() != FP8RT_ABI_VERSION || std::strlen(fp8rt_build_info()) == 0 ||
      fp8rt_last_cuda_error() != 0 || fp8rt_status_name(number) == nullptr) {
    std::abort();
  }
  check_status(fp8rt_set_log(arguments.reader().chance(2) ? nullptr : &ignore_line, nullptr));
  // There is no torch here.
  fp8rt_status status = fp8rt_torch_register();
  check_status(status);
  if (status != FP8RT_STATUS_UNSUPPORTED) {
    std::abort();
  }
}

static void use_and_destroy(Arguments &arguments, fp8rt_context *context) {
  void *stream = arguments.reader().chance(4) ? &arguments : nullptr;
  check_status(fp8rt_context_query(context, nullptr, nullptr));
  // Starts threads; a number that the machine could not start is not the point here.
  uint32_t threads = 0;
  check_status(fp8rt_context_query(context, nullptr, &threads));
  if (threads <= 4) {
    check_status(fp8rt_context_prepare(context, stream));
  }
  check_status(fp8rt_context_destroy(context));
}

void call_context(Arguments &arguments, fp8rt_context *context) {
  Reader &reader = arguments.reader();
  fp8rt_context_desc desc = {0, 0, -1, reader.byte() % 4U};
  if (reader.chance(3)) {
    desc.flags = reader.byte() % 3U;
    desc.device = static_cast<int32_t>(reader.hostile());
    desc.num_threads = reader.word();
  }
  const fp8rt_context_desc *given = arguments.descriptor(desc);
  void *place = arguments.raw_output(sizeof(fp8rt_context *), alignof(fp8rt_context *));
  fp8rt_status status =
      run(arguments, [&] { return fp8rt_context_create(given, static_cast<fp8rt_context **>(place)); });
  if (status == FP8RT_STATUS_OK) {
    fp8rt_context *made = nullptr;
    std::memcpy(&made, place, sizeof made);
    use_and_destroy(arguments, made);
  }
  arguments.arena().reset(reader.word());
  void *device = arguments.raw_output(sizeof(int32_t), alignof(int32_t));
  void *threads = arguments.raw_output(sizeof(uint32_t), alignof(uint32_t));
  fp8rt_context *asked = reader.chance(8) ? nullptr : context;
  run(arguments, [&] {
    return fp8rt_context_query(asked, static_cast<int32_t *>(device), static_cast<uint32_t *>(threads));
  });
}

}  // namespace fuzz
