// Times fingerprints on a GPU: bench_fingerprint [read] [model] [weights] [experts]
//
// One line a measurement. us: events around a call after L2 was written over, median. TB/s counts each code read once.
// The yardstick of "read" is a cudaMemcpyAsync from device to device of as many bytes: half of its time, since it reads
// and writes each byte.

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "sections.hpp"
#include "tensors.hpp"
#include "timers.hpp"

namespace fp8rt_bench {
namespace {

// Llama-3.1-8B: qkv, o, gate and up, down; 32 layers, and a head.
constexpr std::pair<std::int64_t, std::int64_t> kLayer[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
constexpr int kLayers = 32;

// Codes and scales alone: fingerprints need no values.
struct Quantized {
  Quantized(std::int64_t n, std::int64_t k) : codes(FP8RT_DTYPE_E4M3, n, k), scales(weight_scales(n, k)) {
    fill_normal(codes.memory, codes.memory.bytes());
    fill_normal(scales.memory, scales.memory.bytes());
  }

  Tensor codes, scales;
};

class Bench {
 public:
  Bench() : context_(gpu_context()), timer_(stream_), sums_(std::size_t{1} << 20) {
    fp8rt::check(fp8rt_context_prepare(context_.get(), stream_.get()));
  }

  void read() { std::printf("read bytes=%zu us=%.1f\n", kCopied, copy_us(kCopied) / 2); }

  void model() {
    std::vector<std::unique_ptr<Quantized>> weights;
    std::vector<std::string> names;
    std::int64_t bytes = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const auto &[n, k] : kLayer) {
        weights.push_back(std::make_unique<Quantized>(n, k));
        names.push_back("model.layers." + std::to_string(layer) + "." + std::to_string(weights.size() % 4) + ".weight");
        bytes += n * k;
      }
    }
    std::vector<fp8rt_refit_destination> destinations;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      destinations.push_back(
          fp8rt::refit_destination(names[i].c_str(), weights[i]->codes.view, weights[i]->scales.view));
    }
    const fp8rt::Refit plan(context_, destinations);
    const Call fingerprint = [&] {
      fp8rt::check(fp8rt_refit_fingerprint(plan.get(), sums(), stream_.get()));
    };
    const double us = timer_.us(fingerprint), yardstick = copy_us(kCopied) / 2 * static_cast<double>(bytes) / kCopied;
    std::printf("fingerprint model=llama-3.1-8b ms=%.3f tbs=%.3f read_ms=%.3f ratio=%.3f host_us=%.1f\n", us / 1e3,
                rate(bytes, 1, us), yardstick / 1e3, us / yardstick, host_us(stream_, fingerprint, 5));
  }

  void weights() {
    for (const auto &[n, k] : {kLayer[2], kLayer[1], std::pair<std::int64_t, std::int64_t>{4096, 4112}}) {
      const Quantized weight(n, k);
      fp8rt_fingerprint_desc desc{};
      desc.struct_size = sizeof desc;
      desc.name = "weight";
      const Call fingerprint = [&] {
        fp8rt::check(fp8rt_fingerprint_weight(context_.get(), &desc, &weight.codes.view, &weight.scales.view, sums(),
                                              stream_.get()));
      };
      const double us = timer_.us(fingerprint);
      std::printf("fingerprint N=%ld K=%ld us=%.2f tbs=%.3f host_us=%.2f\n", long{n}, long{k}, us, rate(n * k, 1, us),
                  host_us(stream_, fingerprint));
    }
  }

  // A slab of experts, [128, 1536, 2048].
  void experts() {
    const Quantized slab(128 * 1536, 2048);
    fp8rt_tensor codes = slab.codes.view, scales = slab.scales.view;
    const auto cut = [](fp8rt_tensor &view, std::int64_t rows, std::int64_t columns) {
      view.rank = 3;
      const std::int64_t shape[] = {128, rows, columns}, stride[] = {rows * columns, columns, 1};
      std::copy(shape, shape + 3, view.shape), std::copy(stride, stride + 3, view.stride);
    };
    cut(codes, 1536, 2048), cut(scales, 12, 16);
    fp8rt_fingerprint_desc desc{};
    desc.struct_size = sizeof desc;
    desc.name = "experts";
    const double us = timer_.us([&] {
      fp8rt::check(fp8rt_fingerprint_weight(context_.get(), &desc, &codes, &scales, sums(), stream_.get()));
    });
    std::printf("fingerprint experts=128x1536x2048 us=%.1f tbs=%.3f\n", us, rate(128 * 1536 * 2048, 1, us));
  }

 private:
  static constexpr std::size_t kCopied = std::size_t{4} << 30;

  fp8rt_fingerprint_sum *sums() const { return reinterpret_cast<fp8rt_fingerprint_sum *>(sums_.data()); }
  double copy_us(std::size_t bytes) {
    const DeviceBuffer from(bytes), to(bytes);
    fill_normal(from, bytes);
    return timer_.us([&] {
      CUDA(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream_.get()));
    });
  }

  fp8rt::Context context_;
  fp8rt_test::Stream stream_;
  StreamTimer timer_;
  DeviceBuffer sums_;
};

constexpr Section<Bench> kSections[] = {
    {"read", &Bench::read}, {"model", &Bench::model}, {"weights", &Bench::weights}, {"experts", &Bench::experts}};

}  // namespace
}  // namespace fp8rt_bench

int main(int argc, char **argv) {
  using namespace fp8rt_bench;
  return run_sections<Bench>(kSections, sizeof kSections / sizeof *kSections, {argv + 1, argv + argc});
}
