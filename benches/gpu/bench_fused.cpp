// Times the fused producers on a GPU: bench_fused [silu] [norm] [host]
//
// Lines and times as bench_quantize. TB/s counts each input byte read once, the residual also written, each code once.

#include <cstdio>

#include "sections.hpp"
#include "tensors.hpp"
#include "timers.hpp"

namespace fp8rt_bench {
namespace {

constexpr float kEpsilon = 1e-5f;

// What silu_and_mul_quantize takes.
struct Silu {
  Silu(std::int64_t m, std::int64_t k) : gate_up(random_bf16(m, 2 * k)), outputs(m, k) {}

  void call(const fp8rt::Context &context, const Stream &stream) const {
    fp8rt::check(fp8rt_silu_and_mul_quantize(context.get(), nullptr, &gate_up.view, &outputs.codes.view,
                                             &outputs.scales.view, nullptr, stream.get()));
  }

  Tensor gate_up;
  ActivationOutputs outputs;
};

// What rms_norm_quantize takes, with a residual.
struct Norm {
  Norm(std::int64_t m, std::int64_t k)
      : input(random_bf16(m, k)), residual(random_bf16(m, k)), row(random_bf16(1, k)), outputs(m, k) {}

  void call(const fp8rt::Context &context, const Stream &stream) const {
    fp8rt_tensor weight = row.view;
    weight.rank = 1;
    weight.shape[0] = weight.shape[1];
    weight.stride[0] = 1;
    fp8rt::check(fp8rt_rms_norm_quantize(context.get(), nullptr, &input.view, &residual.view, &weight, kEpsilon,
                                         &outputs.codes.view, &outputs.scales.view, nullptr, stream.get()));
  }

  Tensor input, residual, row;
  ActivationOutputs outputs;
};

class Bench {
 public:
  Bench() : context_(gpu_context()), timer_(stream_) {
    fp8rt::check(fp8rt_context_prepare(context_.get(), stream_.get()));
  }

  void silu() {
    for (const std::int64_t m : {16, 1024, 8192}) {
      time(Silu(m, 14336), "silu", m, 14336, 5);
    }
  }

  void norm() {
    for (const std::int64_t k : {14336, 4096}) {
      for (const std::int64_t m : {16, 1024, 8192}) {
        time(Norm(m, k), "norm_residual", m, k, 7);
      }
    }
  }

  void host() {
    const Silu silu(1, 4096);
    const Norm norm(1, 4096);
    std::printf("host call=silu_and_mul_quantize us=%.2f\n", host_us(stream_, [&] { silu.call(context_, stream_); }));
    std::printf("host call=rms_norm_quantize us=%.2f\n", host_us(stream_, [&] { norm.call(context_, stream_); }));
  }

 private:
  template <typename Operands>
  void time(const Operands &operands, const char *name, std::int64_t m, std::int64_t k, int bytes) {
    const Call call = [&] { operands.call(context_, stream_); };
    const double us = timer_.us(call);
    std::printf("fused op=%s M=%ld K=%ld us=%.2f tbs=%.3f", name, long{m}, long{k}, us, rate(m * k, bytes, us));
    if (m <= 64) {
      std::printf(" graph_us=%.2f", graph_us(stream_, std::vector<Call>(20, call)));
    }
    std::printf("\n");
  }

  fp8rt::Context context_;
  Stream stream_;
  StreamTimer timer_;
};

constexpr Section<Bench> kSections[] = {{"silu", &Bench::silu}, {"norm", &Bench::norm}, {"host", &Bench::host}};

}  // namespace
}  // namespace fp8rt_bench

int main(int argc, char **argv) {
  using namespace fp8rt_bench;
  return run_sections<Bench>(kSections, sizeof kSections / sizeof *kSections, {argv + 1, argv + argc});
}
