// Turns fuzz bytes into numbers. Past the end every byte is 0, which stands for "leave it valid".
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>

namespace fuzz {

class Reader {
 public:
  Reader(const uint8_t *data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() {
    if (position_ == size_) {
      return 0;
    }
    return data_[position_++];
  }

  // One in `of`, and never once the bytes have run out.
  bool chance(uint8_t of) { return byte() % of == of - 1; }

  uint32_t word() {
    uint32_t value = byte();
    for (int shift = 8; shift < 32; shift += 8) {
      value |= static_cast<uint32_t>(byte()) << shift;
    }
    return value;
  }

  // An extent that a valid call could have.
  int64_t extent() {
    static const int64_t usual[] = {5, 0, 1, 2, 3, 7, 16, 33, 64, 127, 128, 129, 130, 192, 256, 300};
    return usual[byte() % std::size(usual)];
  }

  // Any number at all, the ones that overflow first.
  int64_t hostile() {
    static const int64_t numbers[] = {
        0,         1,         -1,        3,         128,           INT64_MIN,     INT64_MAX,
        1LL << 31, 1LL << 32, 1LL << 40, 1LL << 62, INT64_MIN + 1, INT64_MAX / 2, INT64_MAX / 4,
    };
    uint8_t choice = byte();
    if (choice < std::size(numbers)) {
      return numbers[choice];
    }
    return choice < 128 ? static_cast<int64_t>(word() % 1024) - 512
                        : static_cast<int64_t>(static_cast<uint64_t>(word()) << 32 | word());
  }

 private:
  const uint8_t *data_;
  size_t size_;
  size_t position_ = 0;
};

}  // namespace fuzz
