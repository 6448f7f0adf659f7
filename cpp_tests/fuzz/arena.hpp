// The memory of one call. Every tensor has a window of it; a call may read its windows, write those of its outputs if
// it succeeds, and touch nothing else. AddressSanitizer sees reads outside the windows, `check` sees writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define FUZZ_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef FUZZ_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#endif

#include "reader.hpp"

namespace fuzz {

struct Window {
  size_t begin = 0;
  size_t size = 0;
};

class Arena {
 public:
  static constexpr size_t kCapacity = 1 << 20;
  static constexpr size_t kMargin = 64;

  Arena() : memory_(kCapacity) {}

  // Forgets all windows and fills their memory with a pattern that depends on `seed`.
  void reset(uint32_t seed);

  // A window of `size` bytes at an address of this alignment, moved by `shift` bytes. Less if memory is short.
  Window place(size_t size, size_t alignment, size_t shift);

  void mark_output(const Window &window) { outputs_.push_back(window); }
  uint8_t *data(const Window &window) { return memory_.data() + window.begin; }

  // Call `before` when all windows are placed and filled, and `check` after the call. `check` aborts on a stray write.
  void before();
  void check(bool succeeded);

 private:
  bool is_output(size_t position) const;

  std::vector<uint8_t> memory_;
  std::vector<uint8_t> copy_;
  std::vector<Window> windows_;
  std::vector<Window> outputs_;
  size_t used_ = 0;
};

}  // namespace fuzz
