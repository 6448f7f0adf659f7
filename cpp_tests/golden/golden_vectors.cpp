#include "golden_vectors.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "fp8rt.h"
#include "generated_input.hpp"

namespace golden {
namespace {

// Reads little-endian numbers, and never beyond the end.
class Reader {
 public:
  explicit Reader(Bytes bytes) : bytes_(std::move(bytes)) {}

  Bytes take(std::size_t count) {
    if (count > bytes_.size() - at_) {
      throw std::runtime_error("vectors.bin ends too early");
    }
    const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(at_);
    at_ += count;
    return Bytes(begin, begin + static_cast<std::ptrdiff_t>(count));
  }

  Bytes take_padded(std::size_t count) {
    Bytes taken = take(count);
    take((4 - count % 4) % 4);
    return taken;
  }

  std::uint32_t number() {
    const Bytes taken = take(4);
    return taken[0] | taken[1] << 8 | taken[2] << 16 | static_cast<std::uint32_t>(taken[3]) << 24;
  }

  bool at_end() const { return at_ == bytes_.size(); }

 private:
  Bytes bytes_;
  std::size_t at_ = 0;
};

Expected read_section(Reader &reader) {
  const auto encoding = static_cast<Encoding>(reader.number());
  const std::uint32_t length = reader.number();
  return {encoding, reader.take_padded(length)};
}

Bytes input_of(const Expected &section, const Case &described, const Bytes &before) {
  switch (section.encoding) {
    case Encoding::bytes:
      return section.payload;
    case Encoding::generated:
      return generated_input(section.payload, described);
    case Encoding::as_before:
      return before;
    case Encoding::digests:
      break;
  }
  throw std::runtime_error("vectors.bin has an input of an unknown encoding");
}

void read_settings(Reader &reader, Case &described) {
  described.operation = static_cast<Operation>(reader.number());
  described.subject = static_cast<Subject>(reader.number());
  described.dtype = reader.number();
  described.recipe = reader.number();
  described.format = reader.number();
  described.layout = reader.number();
  described.has_floor = reader.number() != 0;
  const std::uint32_t floor_bits = reader.number();
  std::memcpy(&described.floor, &floor_bits, sizeof floor_bits);
}

void read_shape(Reader &reader, Case &described) {
  described.experts = reader.number();
  described.rows = reader.number();
  described.columns = reader.number();
  described.parts.resize(reader.number());
  for (std::int64_t &part : described.parts) {
    part = reader.number();
  }
}

Case read_case(Reader &reader, const Bytes &input_before) {
  Case described;
  const Bytes name = reader.take_padded(reader.number());
  described.name.assign(name.begin(), name.end());
  read_settings(reader, described);
  read_shape(reader, described);
  described.input = input_of(read_section(reader), described, input_before);
  described.scales = read_section(reader);
  described.output = read_section(reader);
  const Bytes health = read_section(reader).payload;
  described.health.resize(health.size() / sizeof(std::uint64_t));
  if (!health.empty()) {
    std::memcpy(described.health.data(), health.data(), health.size());
  }
  return described;
}

std::uint32_t digest(const std::uint8_t *bytes, std::size_t count) {
  std::uint32_t state = 0x811C9DC5u;
  for (std::size_t i = 0; i < count; ++i) {
    state = (state ^ bytes[i]) * 0x01000193u;
  }
  return state;
}

Bytes digests(const Bytes &bytes, std::size_t line) {
  Bytes made;
  for (std::size_t begin = 0; begin < bytes.size(); begin += line) {
    const std::uint32_t one = digest(&bytes[begin], std::min(line, bytes.size() - begin));
    for (int shift = 0; shift < 32; shift += 8) {
      made.push_back(static_cast<std::uint8_t>(one >> shift));
    }
  }
  return made;
}

std::string first_difference(const Bytes &expected, const Bytes &actual, const std::string &unit, std::size_t size) {
  if (expected.size() != actual.size()) {
    return std::to_string(actual.size()) + " bytes, expected " + std::to_string(expected.size());
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] != actual[i]) {
      return unit + " " + std::to_string(i / size) + ": byte " + std::to_string(actual[i]) + ", expected " +
             std::to_string(expected[i]);
    }
  }
  return "";
}

}  // namespace

std::uint64_t Case::elements() const {
  return std::uint64_t{experts == 0 ? 1 : experts} * rows * columns;
}

std::size_t bytes_of_dtype(std::uint32_t dtype) {
  return dtype == FP8RT_DTYPE_F32 ? 4 : 2;
}

std::vector<Case> read_cases(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  Reader reader(Bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()});
  const Bytes magic = reader.take(8);
  if (std::string(magic.begin(), magic.end()) != "FP8RTGV1") {
    throw std::runtime_error(path + " is not a file of vectors");
  }
  const std::uint32_t count = reader.number();
  reader.number();
  std::vector<Case> cases;
  for (std::uint32_t i = 0; i < count; ++i) {
    const Bytes before = cases.empty() ? Bytes() : cases.back().input;
    cases.push_back(read_case(reader, before));
  }
  if (!reader.at_end()) {
    throw std::runtime_error(path + " goes on after its last case");
  }
  return cases;
}

std::string difference(const Expected &expected, const Bytes &actual, std::size_t line) {
  if (expected.encoding == Encoding::digests) {
    return first_difference(expected.payload, digests(actual, line), "line", 4);
  }
  return first_difference(expected.payload, actual, "at", 1);
}

}  // namespace golden
