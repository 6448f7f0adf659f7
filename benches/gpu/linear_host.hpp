// What it costs the host to enqueue a prepared linear, beside what its launches and tensor maps cost by themselves.

#ifndef FP8RT_BENCH_LINEAR_HOST_HPP
#define FP8RT_BENCH_LINEAR_HOST_HPP

#include <cstdio>
#include <limits>
#include <utility>

#include "bare_launch.hpp"
#include "bare_maps.hpp"
#include "linear_operands.hpp"

namespace fp8rt_bench {

// A small product, so that the device keeps up with the host.
constexpr std::int64_t kHostM = 1, kHostN = 512, kHostK = 4096;
// Rows that the workspace holds for so few.
constexpr std::int64_t kStoredRows = 16;

// The least time of each call, all of them taking turns.
inline std::vector<double> host_us_in_turn(const Stream &stream, const std::vector<Call> &calls) {
  std::vector<double> best(calls.size(), std::numeric_limits<double>::infinity());
  for (int turn = 0; turn < 5; ++turn) {
    for (std::size_t index = 0; index < calls.size(); ++index) {
      calls[index]();
      best[index] = std::min(best[index], host_us(stream, calls[index]));
    }
  }
  return best;
}

inline BareMaps maps_of(const LinearOperands &operands, const QuantizedWeight &weight) {
  BareMaps maps;
  maps.add_codes(operands.quantized.codes.view.data, kStoredRows, operands.k);
  maps.add_codes(weight.codes.view.data, operands.n, operands.k);
  maps.add_output(operands.y.view.data, operands.m, operands.n);
  maps.add_scales(operands.quantized.scales.view.data, kStoredRows, operands.k / 128);
  return maps;
}

inline std::vector<std::size_t> product_parameters() {
  return {std::begin(kProductParameters), std::end(kProductParameters)};
}

inline void time_host(const fp8rt::Context &context, const Stream &stream, const LinearOptions &options,
                      std::uint32_t backends) {
  const std::vector<QuantizedWeight> weights = quantized_weights(context, stream, kHostN, kHostK, 1);
  const LinearOperands operands(context, stream, options, kHostM, kHostN, kHostK);
  Workspace workspace;
  const fp8rt_linear_desc desc = linear_desc_of(options, backends, kHostM, kHostN, kHostK);
  const PreparedLinear linear(context, stream, desc, operands, weights[0], workspace);
  BareLaunch quantizer(stream, kQuantizerBytes), early_quantizer(stream, kQuantizerBytes);
  BareLaunch product(stream, fp8rt_empty_product(), product_parameters());
  BareLaunch early_product(stream, fp8rt_empty_product(), product_parameters());
  early_quantizer.allow_early_start();
  early_product.allow_early_start();
  const BareMaps maps = maps_of(operands, weights[0]);
  const std::pair<const char *, Call> subjects[] = {
      {"fp8rt_linear", [&] { linear.run(weights[0]); }},
      {"fp8rt_linear_prequantized", [&] { linear.run_prequantized(weights[0]); }},
      {"two_bare_launches", [&] { quantizer(), product(); }},
      {"two_bare_launches_early_start", [&] { early_quantizer(), early_product(); }},
      {"four_tensor_maps", [&] { maps(); }},
      {"two_bare_launches_and_four_tensor_maps", [&] { quantizer(), maps(), product(); }},
  };
  std::vector<Call> calls;
  for (const auto &subject : subjects) {
    calls.push_back(subject.second);
  }
  const std::vector<double> us = host_us_in_turn(stream, calls);
  std::printf("host M=%ld N=%ld K=%ld choice=\"%s\"\n", long{kHostM}, long{kHostN}, long{kHostK},
              linear.choice().c_str());
  for (std::size_t index = 0; index < us.size(); ++index) {
    std::printf("host call=%s us=%.2f\n", subjects[index].first, us[index]);
  }
  std::printf("host fp8rt_linear above two_bare_launches: us=%.2f, above those and four_tensor_maps: us=%.2f\n",
              us[0] - us[2], us[0] - us[5]);
}

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_LINEAR_HOST_HPP
