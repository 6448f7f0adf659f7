// Builds the arguments of one call from fuzz bytes: mostly valid, then damaged in one to three places.
#pragma once

#include "fp8rt.h"

#include <cstring>
#include <deque>
#include <vector>

#include "arena.hpp"
#include "reader.hpp"

namespace fuzz {

struct Shape {
  uint32_t rank;
  int64_t extent[3];
  int64_t stride[3];
};

class Arguments {
 public:
  // The library takes no descriptor to be longer than this, and so reads no more.
  static constexpr uint32_t kLongest = 4096;

  Arguments(Reader &reader, Arena &arena) : reader_(reader), arena_(arena) {}

  Reader &reader() { return reader_; }
  Arena &arena() { return arena_; }

  // Rows of some stride of at least their length.
  Shape matrix(int64_t rows, int64_t columns);
  Shape weight(int64_t experts, int64_t rows, int64_t columns);

  uint32_t float_dtype() { return 1 + reader_.byte() % 3U; }

  // A tensor with memory of its own. Damaged now and then.
  const fp8rt_tensor *input(uint32_t dtype, const Shape &shape);
  const fp8rt_tensor *output(uint32_t dtype, const Shape &shape);
  // A tensor that the library laid out itself; it lacks memory only.
  const fp8rt_tensor *scales(const fp8rt_tensor &layout, bool is_output);

  // Memory that is no tensor: a health struct, a handle, a workspace.
  void *raw_output(size_t size, size_t alignment);

  // The caller's copy of a descriptor: struct_size bytes of it exactly. NULL now and then.
  template <class T>
  T *descriptor(T value, bool may_be_null = true) {
    if (may_be_null && reader_.chance(16)) {
      return nullptr;
    }
    value.struct_size = static_cast<uint32_t>(reader_.chance(16) ? reader_.hostile() : int64_t{sizeof value});
    // A size that is plausible must be true, and no caller's struct ends in the middle of a pointer.
    if (value.struct_size <= kLongest) {
      value.struct_size &= ~7U;
    }
    size_t honest = value.struct_size <= kLongest && value.struct_size >= 4 ? value.struct_size : 4;
    std::vector<uint8_t> &bytes = descriptors_.emplace_back(honest, reader_.chance(32) ? uint8_t{1} : uint8_t{0});
    std::memcpy(bytes.data(), &value, honest < sizeof value ? honest : sizeof value);
    return reinterpret_cast<T *>(bytes.data());
  }

  fp8rt_quantize_desc quantization(int64_t rows);
  fp8rt_linear_desc linear(int64_t m, int64_t n, int64_t k);
  // Fills num_parts and part_rows with parts of a weight of this many rows. The memory is as long as num_parts says.
  const int64_t *parts(int64_t rows, uint32_t *count);

 private:
  fp8rt_tensor placed(uint32_t dtype, const Shape &shape);
  const fp8rt_tensor *finish(fp8rt_tensor tensor, bool is_output);
  void damage(fp8rt_tensor &tensor);

  Reader &reader_;
  Arena &arena_;
  std::deque<fp8rt_tensor> tensors_;
  std::deque<std::vector<uint8_t>> descriptors_;
  std::deque<std::vector<int64_t>> parts_;
};

}  // namespace fuzz
