// A matrix in memory with guards around it and poison in every gap, so that any byte that a call should not have
// written shows up in a comparison.

#ifndef FP8RT_TEST_MATRIX_HPP
#define FP8RT_TEST_MATRIX_HPP

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "floats.hpp"
#include "fp8rt.h"

namespace fp8rt_test {

constexpr std::size_t kGuardBytes = 512;
// As float32, bf16 and fp16 a small negative number, as E4M3 too: never NaN, never plausible.
constexpr std::uint8_t kPoison = 0xA5;

// Memory that begins at a multiple of 512 bytes, as copies of it do.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <typename U>
  AlignedAllocator(const AlignedAllocator<U> &) {}
  T *allocate(std::size_t count) {
    return static_cast<T *>(::operator new(count * sizeof(T), std::align_val_t{kGuardBytes}));
  }
  void deallocate(T *memory, std::size_t) { ::operator delete(memory, std::align_val_t{kGuardBytes}); }
  bool operator==(const AlignedAllocator &) const { return true; }
  bool operator!=(const AlignedAllocator &) const { return false; }
};

using AlignedBytes = std::vector<std::uint8_t, AlignedAllocator<std::uint8_t>>;

// experts = 0: rank 2.
struct Extents {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t experts = 0;
};

// In elements. 0 means packed.
struct Strides {
  std::int64_t row = 0;
  std::int64_t column = 0;
  std::int64_t expert = 0;
};

class Matrix {
 public:
  // `extra` bytes behind the last element belong to the tensor too (the padding of column-major scales). `offset`
  // bytes move the first element away from its aligned place.
  Matrix(std::uint32_t dtype, Extents extents, Strides strides = {}, std::size_t extra = 0, std::size_t offset = 0)
      : dtype_(dtype), extents_(extents), strides_(strides), offset_(offset) {
    strides_.column = strides.column == 0 ? 1 : strides.column;
    strides_.row = strides.row == 0 ? std::max<std::int64_t>(extents.columns, 1) : strides.row;
    const std::int64_t slice = span_of_slice();
    strides_.expert = strides.expert == 0 ? slice : strides.expert;
    const std::int64_t elements = slice == 0 || experts() == 0 ? 0 : (experts() - 1) * strides_.expert + slice;
    bytes_ = static_cast<std::size_t>(elements) * element_bytes(dtype) + extra;
    storage_.assign(2 * kGuardBytes + offset + bytes_, kPoison);
  }

  // Column-major, columns `column_stride` apart, `bytes` up to the end of the last column's padding if `padded`.
  static Matrix column_major(std::uint32_t dtype, Extents extents, std::int64_t column_stride, bool padded) {
    const std::int64_t aligned = (extents.rows + 3) / 4 * 4;
    const auto extra =
        static_cast<std::size_t>(extents.columns == 0 ? 0 : aligned - extents.rows) * element_bytes(dtype);
    return Matrix(dtype, extents, {1, column_stride, 0}, padded ? extra : 0);
  }

  std::uint32_t dtype() const { return dtype_; }
  std::int64_t experts() const { return extents_.experts == 0 ? 1 : extents_.experts; }
  std::int64_t rows() const { return extents_.rows; }
  std::int64_t columns() const { return extents_.columns; }
  Extents extents() const { return extents_; }
  Strides strides() const { return strides_; }
  std::size_t bytes() const { return bytes_; }
  std::uint8_t *data() { return storage_.data() + kGuardBytes + offset_; }
  const std::uint8_t *data() const { return storage_.data() + kGuardBytes + offset_; }
  const AlignedBytes &storage() const { return storage_; }

  fp8rt_tensor tensor() const {
    fp8rt_tensor view{};
    view.data = const_cast<std::uint8_t *>(data());
    view.bytes = bytes_;
    view.dtype = dtype_;
    view.device = -1;
    view.rank = extents_.experts == 0 ? 2 : 3;
    const std::int64_t shape[] = {experts(), rows(), columns()};
    const std::int64_t stride[] = {strides_.expert, strides_.row, strides_.column};
    const std::uint32_t lead = 3 - view.rank;
    std::copy(shape + lead, shape + 3, view.shape);
    std::copy(stride + lead, stride + 3, view.stride);
    return view;
  }

  // Byte offset of an element from data(). Rows past the last are where the padding of a column lies.
  std::size_t offset_of(std::int64_t expert, std::int64_t row, std::int64_t column) const {
    const std::int64_t index = expert * strides_.expert + row * strides_.row + column * strides_.column;
    return static_cast<std::size_t>(index) * element_bytes(dtype_);
  }

  template <typename T>
  T load(std::int64_t expert, std::int64_t row, std::int64_t column) const {
    T value;
    std::memcpy(&value, data() + offset_of(expert, row, column), sizeof value);
    return value;
  }

  template <typename T>
  void store(std::int64_t expert, std::int64_t row, std::int64_t column, T value) {
    std::memcpy(data() + offset_of(expert, row, column), &value, sizeof value);
  }

  // The value of an element, whatever its type.
  float get(std::int64_t expert, std::int64_t row, std::int64_t column) const {
    switch (dtype_) {
      case FP8RT_DTYPE_BF16:
        return from_bf16(load<std::uint16_t>(expert, row, column));
      case FP8RT_DTYPE_F16:
        return from_f16(load<std::uint16_t>(expert, row, column));
      case FP8RT_DTYPE_E4M3:
        return from_e4m3(load<std::uint8_t>(expert, row, column));
      default:
        return load<float>(expert, row, column);
    }
  }

  // Rounds a value to the type and stores it.
  void set(std::int64_t expert, std::int64_t row, std::int64_t column, float value) {
    switch (dtype_) {
      case FP8RT_DTYPE_BF16:
        return store(expert, row, column, bf16_of(value));
      case FP8RT_DTYPE_F16:
        return store(expert, row, column, f16_of(value));
      case FP8RT_DTYPE_E4M3:
        return store(expert, row, column, e4m3_of(value));
      default:
        return store(expert, row, column, value);
    }
  }

  float get(std::int64_t row, std::int64_t column) const { return get(0, row, column); }
  void set(std::int64_t row, std::int64_t column, float value) { set(0, row, column, value); }
  std::uint8_t code(std::int64_t row, std::int64_t column) const { return load<std::uint8_t>(0, row, column); }

  // Calls `action(expert, row, column)` for each element.
  template <typename Action>
  void each(Action action) const {
    for (std::int64_t expert = 0; expert < experts(); ++expert) {
      for (std::int64_t row = 0; row < rows(); ++row) {
        for (std::int64_t column = 0; column < columns(); ++column) {
          action(expert, row, column);
        }
      }
    }
  }

  void fill(float value) {
    each([&](std::int64_t expert, std::int64_t row, std::int64_t column) { set(expert, row, column, value); });
  }

 private:
  std::int64_t span_of_slice() const {
    if (extents_.rows == 0 || extents_.columns == 0) {
      return 0;
    }
    return (extents_.rows - 1) * strides_.row + (extents_.columns - 1) * strides_.column + 1;
  }

  std::uint32_t dtype_;
  Extents extents_;
  Strides strides_;
  std::size_t offset_;
  std::size_t bytes_;
  AlignedBytes storage_;
};

// Equal in every byte: elements, gaps between rows, padding, and the memory around.
inline ::testing::AssertionResult same_bytes(const Matrix &got, const Matrix &want) {
  const AlignedBytes &a = got.storage(), &b = want.storage();
  if (a.size() != b.size()) {
    return ::testing::AssertionFailure() << a.size() << " bytes of storage, expected " << b.size();
  }
  if (std::memcmp(a.data(), b.data(), a.size()) == 0) {
    return ::testing::AssertionSuccess();
  }
  std::size_t different = 0, first = a.size();
  for (std::size_t at = 0; at < a.size(); ++at) {
    different += a[at] != b[at];
    first = a[at] != b[at] ? std::min(first, at) : first;
  }
  const auto offset = static_cast<std::int64_t>(first) - (got.data() - a.data());
  return ::testing::AssertionFailure() << different << " bytes differ, the first at byte " << offset << " of "
                                       << got.bytes() << ": " << int{a[first]} << ", expected " << int{b[first]}
                                       << " (" << dtype_name(got.dtype()) << " " << got.rows() << "x" << got.columns()
                                       << ")";
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_MATRIX_HPP
