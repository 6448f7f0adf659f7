#include "arena.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fuzz {

void Arena::reset(uint32_t seed) {
  ASAN_UNPOISON_MEMORY_REGION(memory_.data(), kCapacity);
  uint32_t state = seed | 1;
  for (size_t i = 0; i < used_; i += sizeof state) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    std::memcpy(memory_.data() + i, &state, sizeof state);
  }
  used_ = kMargin;
  windows_.clear();
  outputs_.clear();
}

Window Arena::place(size_t size, size_t alignment, size_t shift) {
  uintptr_t base = reinterpret_cast<uintptr_t>(memory_.data());
  size_t begin = (base + used_ + alignment - 1) / alignment * alignment - base + shift;
  if (begin + kMargin > kCapacity) {
    return Window{kMargin, 0};
  }
  Window window{begin, std::min(size, kCapacity - kMargin - begin)};
  used_ = window.begin + window.size + kMargin;
  windows_.push_back(window);
  return window;
}

void Arena::before() {
  used_ = std::min((used_ + kMargin) / 8 * 8, kCapacity);
  copy_.assign(memory_.begin(), memory_.begin() + static_cast<std::ptrdiff_t>(used_));
  ASAN_POISON_MEMORY_REGION(memory_.data(), kCapacity);
  for (const Window &window : windows_) {
    ASAN_UNPOISON_MEMORY_REGION(memory_.data() + window.begin, window.size);
  }
}

bool Arena::is_output(size_t position) const {
  return std::any_of(outputs_.begin(), outputs_.end(), [position](const Window &window) {
    return position >= window.begin && position - window.begin < window.size;
  });
}

void Arena::check(bool succeeded) {
  ASAN_UNPOISON_MEMORY_REGION(memory_.data(), kCapacity);
  if (std::memcmp(copy_.data(), memory_.data(), used_) == 0) {
    return;
  }
  for (size_t i = 0; i < used_; i++) {
    if (copy_[i] != memory_[i] && !(succeeded && is_output(i))) {
      std::fprintf(stderr, "byte %zu was written %s\n", i, succeeded ? "outside the outputs" : "by a call that failed");
      std::abort();
    }
  }
}

}  // namespace fuzz
