#include "cubin.hpp"

#include <algorithm>
#include <cstring>

#include <elf.h>

namespace fake_cuda {

namespace {

constexpr int kCudaMachine = 190;
// Entries of .nv.info: a byte for how the value is stored, a byte for what it is, two bytes of value or of its length.
constexpr std::uint8_t kSized = 4;
constexpr std::uint8_t kMaxThreads = 0x05, kParameterInfo = 0x17, kLargeParameterInfo = 0x45;

template <class T>
T load(const std::uint8_t *from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Both forms: index (4 bytes), ordinal (2), offset (2), then either flags with the size above bit 18, or the size.
void read_parameter(const std::uint8_t *value, bool large, Kernel &kernel) {
  const auto ordinal = load<std::uint16_t>(value + 4);
  const auto last = load<std::uint32_t>(value + 8);
  if (kernel.parameters.size() <= ordinal) kernel.parameters.resize(ordinal + std::size_t{1});
  kernel.parameters[ordinal] = {load<std::uint16_t>(value + 6), large ? last : last >> 18};
}

void read_info(const std::uint8_t *info, std::size_t bytes, Kernel &kernel) {
  for (std::size_t at = 0; at + 4 <= bytes;) {
    const std::uint8_t storage = info[at], kind = info[at + 1];
    const std::uint16_t length = storage == kSized ? load<std::uint16_t>(info + at + 2) : 0;
    const std::uint8_t *value = info + at + 4;
    if ((kind == kParameterInfo || kind == kLargeParameterInfo) && length >= 12) {
      read_parameter(value, kind == kLargeParameterInfo, kernel);
    }
    if (kind == kMaxThreads && length >= 12) {
      kernel.max_threads = load<std::uint32_t>(value) * load<std::uint32_t>(value + 4) * load<std::uint32_t>(value + 8);
    }
    at += 4 + std::size_t{length};
  }
}

struct Sections {
  const std::uint8_t *image;
  const std::uint8_t *table;
  std::size_t count;
  const char *names;

  Elf64_Shdr header(std::size_t i) const { return load<Elf64_Shdr>(table + i * sizeof(Elf64_Shdr)); }
  std::string name(std::size_t i) const { return names + header(i).sh_name; }
};

void read_kernel(const Sections &sections, Kernel &kernel) {
  for (std::size_t i = 0; i < sections.count; ++i) {
    const Elf64_Shdr header = sections.header(i);
    const std::string name = sections.name(i);
    if (name == ".nv.info." + kernel.name) read_info(sections.image + header.sh_offset, header.sh_size, kernel);
    if (name == ".nv.shared." + kernel.name) kernel.static_shared_bytes = static_cast<std::uint32_t>(header.sh_size);
  }
}

}  // namespace

bool read_cubin(const void *image, Cubin &cubin) {
  const auto *bytes = static_cast<const std::uint8_t *>(image);
  if (std::memcmp(bytes, ELFMAG, SELFMAG) != 0) return false;
  const auto elf = load<Elf64_Ehdr>(bytes);
  if (elf.e_machine != kCudaMachine || elf.e_shentsize != sizeof(Elf64_Shdr)) return false;
  cubin.architecture = static_cast<int>(elf.e_flags >> 8 & 0xFF);
  Sections sections{bytes, bytes + elf.e_shoff, elf.e_shnum, nullptr};
  sections.names = reinterpret_cast<const char *>(bytes + sections.header(elf.e_shstrndx).sh_offset);
  const std::string text = ".text.";
  for (std::size_t i = 0; i < sections.count; ++i) {
    const std::string name = sections.name(i);
    if (name.compare(0, text.size(), text) != 0) continue;
    cubin.kernels.push_back({name.substr(text.size()), {}, 0, 0});
    read_kernel(sections, cubin.kernels.back());
  }
  return true;
}

}  // namespace fake_cuda
