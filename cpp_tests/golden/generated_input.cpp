#include "generated_input.hpp"

#include <cstring>
#include <stdexcept>

#include "fp8rt.h"

namespace golden {
namespace {

constexpr std::uint64_t kGamma = 0x9E3779B97F4A7C15u;
constexpr std::uint64_t kTileSeed = 0x5851F42D4C957F2Du;

struct Parameters {
  std::uint64_t seed;
  std::uint32_t low, high, tile_rows, specials;
};

// Where exponent and mantissa of a dtype lie.
struct Layout {
  unsigned exponent_bits, mantissa_bits;

  std::uint64_t infinity() const { return ((std::uint64_t{1} << exponent_bits) - 1) << mantissa_bits; }
  std::uint64_t quiet_nan() const { return infinity() | std::uint64_t{1} << (mantissa_bits - 1); }
};

Layout layout_of(std::uint32_t dtype) {
  switch (dtype) {
    case FP8RT_DTYPE_BF16:
      return {8, 7};
    case FP8RT_DTYPE_F16:
      return {5, 10};
    case FP8RT_DTYPE_F32:
      return {8, 23};
    default:
      throw std::runtime_error("vectors.bin has an input of an unknown dtype");
  }
}

std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

std::uint64_t tile_exponent(const Parameters &parameters, std::uint64_t element, std::uint64_t columns) {
  const std::uint64_t tiles_in_a_row = (columns + 127) / 128;
  const std::uint64_t tile =
      element / columns / parameters.tile_rows * tiles_in_a_row + element % columns / 128;
  const std::uint64_t drawn = mix((parameters.seed ^ kTileSeed) + (tile + 1) * kGamma);
  return parameters.low + drawn % (parameters.high - parameters.low + 1);
}

std::uint64_t magnitude_of(const Parameters &parameters, Layout layout, std::uint64_t z, std::uint64_t base) {
  if (parameters.specials != 0) {
    switch ((z >> 24) & 0xFF) {
      case 0:
        return 0;
      case 1:
        return layout.quiet_nan();
      case 2:
        return layout.infinity();
      case 3:
        return 1;
      default:
        break;
    }
  }
  const std::uint64_t drop = ((z >> 40) & 0xFFFF) % 20;
  const std::uint64_t exponent = base > drop ? base - drop : 0;
  return exponent << layout.mantissa_bits | (z & ((std::uint64_t{1} << layout.mantissa_bits) - 1));
}

}  // namespace

Bytes generated_input(const Bytes &payload, const Case &described) {
  Parameters parameters;
  if (payload.size() != sizeof parameters) {
    throw std::runtime_error("vectors.bin has generator parameters of a wrong size");
  }
  std::memcpy(&parameters, payload.data(), sizeof parameters);
  const Layout layout = layout_of(described.dtype);
  const std::size_t size = bytes_of_dtype(described.dtype);
  Bytes made(described.elements() * size);
  for (std::uint64_t i = 0; i < described.elements(); ++i) {
    const std::uint64_t z = mix(parameters.seed + (i + 1) * kGamma);
    const std::uint64_t base = tile_exponent(parameters, i, described.columns);
    const std::uint64_t sign = (z >> 63) << (layout.exponent_bits + layout.mantissa_bits);
    const std::uint64_t bits = sign | magnitude_of(parameters, layout, z, base);
    std::memcpy(&made[i * size], &bits, size);
  }
  return made;
}

}  // namespace golden
