// The committed vectors, as FORMAT.md describes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace golden {

using Bytes = std::vector<std::uint8_t>;

enum class Operation : std::uint32_t { quantize = 0, quantize_with_scales = 1, dequantize = 2 };
enum class Subject : std::uint32_t { weight = 0, activation = 1 };
enum class Encoding : std::uint32_t { bytes = 0, generated = 1, digests = 2, as_before = 3 };

// Bytes to compare with: themselves, or a digest of each line of them.
struct Expected {
  Encoding encoding;
  Bytes payload;
};

struct Case {
  std::string name;
  Operation operation;
  Subject subject;
  std::uint32_t dtype, recipe, format, layout;
  bool has_floor;
  float floor;
  std::uint32_t experts, rows, columns;
  std::vector<std::int64_t> parts;
  Bytes input;
  Expected scales;
  Expected output;
  std::vector<std::uint64_t> health;

  std::uint64_t elements() const;
};

// Throws std::runtime_error if the file is not what FORMAT.md says.
std::vector<Case> read_cases(const std::string &path);

// What is wrong with `actual`, empty if nothing is. `line` is the number of bytes of a digest.
std::string difference(const Expected &expected, const Bytes &actual, std::size_t line);

std::size_t bytes_of_dtype(std::uint32_t dtype);

}  // namespace golden
