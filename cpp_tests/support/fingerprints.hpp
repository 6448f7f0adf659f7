// Fingerprints of matrices: calls, arithmetic of 128 bits, and windows that stand for shards.

#ifndef FP8RT_TEST_FINGERPRINTS_HPP
#define FP8RT_TEST_FINGERPRINTS_HPP

#include <cstdint>
#include <iomanip>
#include <ostream>
#include <string>
#include <vector>

#include "fp8rt.hpp"
#include "matrix.hpp"

inline bool operator==(const fp8rt_fingerprint &a, const fp8rt_fingerprint &b) {
  return a.low == b.low && a.high == b.high;
}
inline bool operator!=(const fp8rt_fingerprint &a, const fp8rt_fingerprint &b) { return !(a == b); }

inline fp8rt_fingerprint operator+(const fp8rt_fingerprint &a, const fp8rt_fingerprint &b) {
  const std::uint64_t low = a.low + b.low;
  return {low, a.high + b.high + (low < a.low ? 1 : 0)};
}

inline std::ostream &operator<<(std::ostream &out, const fp8rt_fingerprint &value) {
  const auto flags = out.flags();
  out << std::hex << std::setfill('0') << std::setw(16) << value.high << std::setw(16) << value.low;
  out.flags(flags);
  return out << std::setfill(' ');
}

namespace fp8rt_test {

// Which tensor it is, or which shard of it.
struct Identity {
  std::string name = "model.layers.0.mlp.down_proj.weight";
  std::uint32_t part = 0;
  std::int64_t expert = 0, block_row = 0, block_column = 0;
  std::uint32_t format = FP8RT_SCALE_FORMAT_FP32;
  std::vector<std::int64_t> parts = {};

  fp8rt_fingerprint_desc desc() const {
    fp8rt_fingerprint_desc desc{};
    desc.struct_size = sizeof desc;
    desc.name = name.c_str();
    desc.part = part;
    desc.expert = expert;
    desc.first_block_row = block_row, desc.first_block_column = block_column;
    desc.scale_format = format;
    desc.part_rows = parts.data();
    desc.num_parts = static_cast<std::uint32_t>(parts.size());
    return desc;
  }
};

// Throws where a call fails. `scales` NULL: not FP8.
inline fp8rt_fingerprint_sum sum_of(const fp8rt::Context &context, const Identity &identity, const fp8rt_tensor &codes,
                                    const fp8rt_tensor *scales) {
  fp8rt_fingerprint_sum sum{};
  const fp8rt_fingerprint_desc desc = identity.desc();
  fp8rt::check(fp8rt_fingerprint_weight(context.get(), &desc, &codes, scales, &sum, nullptr));
  return sum;
}

inline fp8rt_fingerprint folded(const fp8rt::Context &context, const fp8rt_fingerprint_sum &sum) {
  fp8rt_fingerprint total{};
  fp8rt::check(fp8rt_fingerprint_read(context.get(), &sum, 1, nullptr, &total, nullptr));
  return total;
}

inline fp8rt_fingerprint fingerprint_of(const fp8rt::Context &context, const Identity &identity,
                                        const fp8rt_tensor &codes, const fp8rt_tensor *scales) {
  return folded(context, sum_of(context, identity, codes, scales));
}

// Some rows and columns of a matrix.
inline fp8rt_tensor window(fp8rt_tensor view, std::int64_t row, std::int64_t rows, std::int64_t column,
                           std::int64_t columns) {
  const std::uint32_t first = view.rank - 2;
  const auto offset = static_cast<std::uint64_t>(row * view.stride[first] + column * view.stride[first + 1]) *
                      element_bytes(view.dtype);
  view.data = static_cast<std::uint8_t *>(view.data) + offset;
  view.bytes -= offset;
  view.shape[first] = rows, view.shape[first + 1] = columns;
  return view;
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_FINGERPRINTS_HPP
