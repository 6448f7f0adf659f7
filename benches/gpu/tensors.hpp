// Device tensors of random bf16 values, and outputs that fit them.

#ifndef FP8RT_BENCH_TENSORS_HPP
#define FP8RT_BENCH_TENSORS_HPP

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cuda.hpp"
#include "fp8rt.hpp"

namespace fp8rt_bench {

using fp8rt_test::DeviceBuffer;
using fp8rt_test::kDevice;

// A tensor that owns its memory.
struct Tensor {
  explicit Tensor(fp8rt_tensor shaped) : view(shaped), memory(static_cast<std::size_t>(shaped.bytes)) {
    view.data = memory.data();
    view.device = kDevice;
  }
  Tensor(std::uint32_t dtype, std::int64_t rows, std::int64_t columns)
      : Tensor(fp8rt::tensor(nullptr, static_cast<fp8rt_dtype>(dtype), {rows, columns})) {}

  fp8rt_tensor view;
  DeviceBuffer memory;
};

// 32 MiB of normally distributed bf16, drawn once; tensors begin anywhere in it.
inline const std::vector<std::uint16_t> &normal_bf16() {
  static const std::vector<std::uint16_t> values = [] {
    std::mt19937 engine(std::random_device{}());
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> drawn(std::size_t{16} << 20);
    for (std::uint16_t &value : drawn) {
      const float x = normal(engine);
      std::uint32_t bits;
      std::memcpy(&bits, &x, sizeof bits);
      value = static_cast<std::uint16_t>(bits >> 16);
    }
    return drawn;
  }();
  return values;
}

inline void fill_normal(const DeviceBuffer &memory, std::size_t bytes) {
  static const DeviceBuffer source = [] {
    DeviceBuffer copy(normal_bf16().size() * 2);
    copy.upload(normal_bf16().data(), copy.bytes());
    return copy;
  }();
  static std::size_t turn = 0;
  std::size_t skip = 2 * (turn++ * 7919 * 128 % (source.bytes() / 4));
  for (std::size_t at = 0; at < bytes;) {
    const std::size_t length = std::min(bytes - at, source.bytes() - skip);
    CUDA(cudaMemcpy(memory.data() + at, source.data() + skip, length, cudaMemcpyDeviceToDevice));
    at += length;
    skip = 0;
  }
  CUDA(cudaDeviceSynchronize());
}

inline Tensor random_bf16(std::int64_t rows, std::int64_t columns) {
  Tensor tensor(FP8RT_DTYPE_BF16, rows, columns);
  fill_normal(tensor.memory, static_cast<std::size_t>(tensor.view.bytes));
  return tensor;
}

inline Tensor weight_scales(std::int64_t n, std::int64_t k) {
  fp8rt_tensor scales{};
  fp8rt::check(fp8rt_weight_scales_layout(nullptr, 0, n, k, &scales));
  return Tensor(scales);
}

inline Tensor activation_scales(std::int64_t m, std::int64_t k) {
  fp8rt_tensor scales{};
  fp8rt::check(fp8rt_activation_scales_layout(nullptr, FP8RT_SCALE_LAYOUT_COLUMN_MAJOR, m, k, &scales));
  return Tensor(scales);
}

// A weight with what quantize writes.
struct Weight {
  Weight(std::int64_t n, std::int64_t k)
      : values(random_bf16(n, k)), codes(FP8RT_DTYPE_E4M3, n, k), scales(weight_scales(n, k)) {}

  Tensor values, codes, scales;
};

// Codes and column-major scales of an activation.
struct ActivationOutputs {
  ActivationOutputs(std::int64_t m, std::int64_t k) : codes(FP8RT_DTYPE_E4M3, m, k), scales(activation_scales(m, k)) {}

  Tensor codes, scales;
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_TENSORS_HPP
