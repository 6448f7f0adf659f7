// Times the quantizers on a GPU: bench_quantize [copy] [weights] [refit] [activations] [host]
//
// One line a measurement. us: events around a call after L2 was written over, median. graph_us: one call of many
// captured back to back, median. TB/s counts each input byte read once and each code written once; copy counts bytes
// read and written.

#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "bare_launch.hpp"
#include "sections.hpp"
#include "tensors.hpp"
#include "timers.hpp"

namespace fp8rt_bench {
namespace {

constexpr std::pair<std::int64_t, std::int64_t> kLayer[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}};
constexpr int kLayers = 32;

class Bench {
 public:
  Bench() : context_(gpu_context()), timer_(stream_) {
    fp8rt::check(fp8rt_context_prepare(context_.get(), stream_.get()));
  }

  void copy() {
    const Tensor from(FP8RT_DTYPE_E4M3, 1 << 16, 1 << 16), to(FP8RT_DTYPE_E4M3, 1 << 16, 1 << 16);
    fill_normal(from.memory, from.memory.bytes());
    const std::size_t bytes = to.memory.bytes();
    const double us = timer_.us([&] {
      CUDA(cudaMemcpyAsync(to.view.data, from.view.data, bytes, cudaMemcpyDeviceToDevice, stream_.get()));
    });
    std::printf("copy bytes=%zu us=%.1f tbs=%.3f\n", bytes, us, 2 * static_cast<double>(bytes) / us / 1e6);
  }

  void weights() {
    for (const auto &[n, k] : {kLayer[2], kLayer[3], kLayer[1], kLayer[0]}) {
      const Weight weight(n, k);
      const double us = timer_.us([&] {
        fp8rt::check(fp8rt_quantize_weight(context_.get(), nullptr, &weight.values.view, &weight.codes.view,
                                           &weight.scales.view, nullptr, stream_.get()));
      });
      std::printf("weights N=%ld K=%ld us=%.2f tbs=%.3f\n", long{n}, long{k}, us, rate(n * k, 3, us));
    }
  }

  void refit() {
    std::vector<std::unique_ptr<Weight>> layers;
    std::vector<fp8rt_weight_entry> entries;
    std::int64_t elements = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const auto &[n, k] : kLayer) {
        layers.push_back(std::make_unique<Weight>(n, k));
        fp8rt_weight_entry entry{};
        entry.weight = layers.back()->values.view;
        entry.codes = layers.back()->codes.view;
        entry.scales = layers.back()->scales.view;
        entries.push_back(entry);
        elements += n * k;
      }
    }
    const auto count = static_cast<std::uint32_t>(entries.size());
    fp8rt_weight_table *table = nullptr;
    fp8rt::check(fp8rt_weight_table_create(context_.get(), nullptr, entries.data(), count, &table));
    const Call by_table = [&] { fp8rt::check(fp8rt_weight_table_run(table, nullptr, stream_.get())); };
    const Call by_call = [&] {
      fp8rt::check(
          fp8rt_quantize_weights(context_.get(), nullptr, entries.data(), count, nullptr, stream_.get()));
    };
    const Call one_by_one = [&] {
      for (const auto &weight : layers) {
        fp8rt::check(fp8rt_quantize_weight(context_.get(), nullptr, &weight->values.view, &weight->codes.view,
                                           &weight->scales.view, nullptr, stream_.get()));
      }
    };
    print_refit("table", elements, timer_.us(by_table));
    print_refit("entries", elements, timer_.us(by_call));
    print_refit("call_each", elements, timer_.us(one_by_one));
    print_refit("table_graph", elements, graph_us(stream_, {by_table}));
    std::printf("refit_host way=table us=%.2f\n", host_us(stream_, by_table, 5));
    std::printf("refit_host way=entries us=%.2f\n", host_us(stream_, by_call, 5));
    stream_.synchronize();
    fp8rt_weight_table_destroy(table);
  }

  void activations() {
    for (const std::int64_t k : {4096, 14336}) {
      for (const std::int64_t m : {1, 16, 64, 256, 1024, 4096, 16384}) {
        std::vector<Tensor> inputs;
        for (int index = 0; index < (m <= 64 ? 20 : 1); ++index) {
          inputs.push_back(random_bf16(m, k));
        }
        const ActivationOutputs outputs(m, k);
        std::vector<Call> calls;
        for (const Tensor &input : inputs) {
          calls.push_back([&] { quantize(input, outputs); });
        }
        const double us = timer_.us(calls[0]);
        std::printf("activations M=%ld K=%ld us=%.2f tbs=%.3f", long{m}, long{k}, us, rate(m * k, 3, us));
        if (m <= 64) {
          std::printf(" graph_us=%.2f", graph_us(stream_, calls));
        }
        std::printf("\n");
      }
    }
  }

  void host() {
    for (const std::size_t bytes : kEmptyKernelBytes) {
      BareLaunch launch(stream_, bytes);
      const double us = host_us(stream_, [&] { launch(); });
      std::printf("host call=cuLaunchKernelEx parameter_bytes=%zu us=%.2f\n", bytes, us);
    }
    const Tensor x = random_bf16(1, 4096);
    const ActivationOutputs outputs(1, 4096);
    const Weight weight(128, 4096);
    print_host("quantize_activation", [&] { quantize(x, outputs); });
    print_host("quantize_weight", [&] {
      fp8rt::check(fp8rt_quantize_weight(context_.get(), nullptr, &weight.values.view, &weight.codes.view,
                                         &weight.scales.view, nullptr, stream_.get()));
    });
  }

 private:
  static void print_refit(const char *way, std::int64_t elements, double us) {
    std::printf("refit model=llama-3.1-8b way=%s ms=%.3f tbs=%.3f\n", way, us / 1e3, rate(elements, 3, us));
  }
  void print_host(const char *name, const Call &call) {
    call();
    std::printf("host call=%s us=%.2f\n", name, host_us(stream_, call));
  }
  void quantize(const Tensor &input, const ActivationOutputs &outputs) {
    fp8rt::check(fp8rt_quantize_activation(context_.get(), nullptr, &input.view, &outputs.codes.view,
                                           &outputs.scales.view, nullptr, stream_.get()));
  }

  fp8rt::Context context_;
  fp8rt_test::Stream stream_;
  StreamTimer timer_;
};

constexpr Section<Bench> kSections[] = {{"copy", &Bench::copy},
                                 {"weights", &Bench::weights},
                                 {"refit", &Bench::refit},
                                 {"activations", &Bench::activations},
                                 {"host", &Bench::host}};

}  // namespace
}  // namespace fp8rt_bench

int main(int argc, char **argv) {
  using namespace fp8rt_bench;
  return run_sections<Bench>(kSections, sizeof kSections / sizeof *kSections, {argv + 1, argv + argc});
}
