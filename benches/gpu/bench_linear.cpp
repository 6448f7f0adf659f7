// Times linears on a GPU; kUsage in linear_options.hpp has the command line.
//
// decode (M <= 128): one call per weight of a set larger than L2, captured in a graph; the median replay divided by the
// calls. prefill: L2 is written over before each call; the median of what events around a call say. host: what it costs
// to enqueue. first: the first linear of a fresh process. TB/s counts the weight's codes.
//
// With --tiles each tile of one backend is measured by itself, for making the tables of choices: N,K,M,tile,us.

#include <cstdio>

#include "linear_host.hpp"
#include "linear_operands.hpp"
#include "linear_report.hpp"
#include "linear_tiles.hpp"
#include "sections.hpp"

namespace fp8rt_bench {
namespace {

constexpr std::int64_t kMostDecodeRows = 128;

// What a backend says in the message of a plan that no backend takes; the message if it says nothing.
std::string refusal_of(const std::string &backend, const std::string &message) {
  const std::size_t begin = message.find(backend + ": ");
  return begin == std::string::npos ? message : message.substr(begin, message.find(';', begin) - begin);
}

class Bench {
 public:
  explicit Bench(const LinearOptions &options)
      : options_(options), context_(gpu_context()), timer_(stream_), tiles_(options.tiles) {
    fp8rt::check(fp8rt_context_prepare(context_.get(), stream_.get()));
    if (tiles_ == std::vector<std::string>{"all"}) {
      const LinearShape &shape = options.shapes[0];
      tiles_ = available_tiles(context_, linear_desc_of(options, options.backends[0].bit, 1, shape.n, shape.k));
    }
  }

  void times() {
    LinearReport report(options_);
    for (const LinearShape &shape : options_.shapes) {
      times_of(shape, report);
    }
  }

  void host() {
    for (const BackendName &backend : options_.backends) {
      time_host(context_, stream_, options_, backend.bit);
    }
  }

 private:
  static bool is_decode(std::int64_t m) { return m <= kMostDecodeRows; }
  static const char *section_of(std::int64_t m) { return is_decode(m) ? "decode" : "prefill"; }

  void times_of(const LinearShape &shape, LinearReport &report) {
    std::vector<std::int64_t> rows;
    for (const std::int64_t m : options_.rows) {
      if (options_.wants(section_of(m))) {
        rows.push_back(m);
      }
    }
    const bool any_decode = std::any_of(rows.begin(), rows.end(), is_decode);
    const int count = any_decode ? weights_beyond_cache(shape.n, shape.k) : 1;
    const auto weights = quantized_weights(context_, stream_, shape.n, shape.k, rows.empty() ? 0 : count);
    for (const std::int64_t m : rows) {
      const LinearOperands operands(context_, stream_, options_, m, shape.n, shape.k);
      for (const BackendName &backend : options_.backends) {
        if (tiles_.empty()) {
          report.add(time_of(shape, operands, weights, backend, ""));
        }
        for (const std::string &tile : tiles_) {
          if (options_.tiles[0] != "all" || may_win(tile, m)) {
            report.add(time_of(shape, operands, weights, backend, tile));
          }
        }
      }
    }
  }

  LinearTime time_of(const LinearShape &shape, const LinearOperands &operands,
                     const std::vector<QuantizedWeight> &weights, const BackendName &backend, const std::string &tile) {
    LinearTime time{section_of(operands.m), shape, operands.m, backend.name, tile, {}, ""};
    try {
      const TileVariable variable(backend.bit, tile);
      const fp8rt_linear_desc desc = linear_desc_of(options_, backend.bit, operands.m, shape.n, shape.k);
      const PreparedLinear linear(context_, stream_, desc, operands, weights[0], workspace_);
      time.us = us_of(linear, operands.m, weights);
      time.choice = linear.choice();
    } catch (const fp8rt::Error &error) {
      time.choice = refusal_of(backend.name, error.what());
    }
    return time;
  }

  double us_of(const PreparedLinear &linear, std::int64_t m, const std::vector<QuantizedWeight> &weights) {
    const auto call = [&](const QuantizedWeight &weight) {
      return [this, &linear, &weight] { options_.prequantized ? linear.run_prequantized(weight) : linear.run(weight); };
    };
    if (!is_decode(m)) {
      return options_.quick ? timer_.us_of(call(weights[0]), 10) : timer_.us(call(weights[0]));
    }
    std::vector<Call> calls;
    for (const QuantizedWeight &weight : weights) {
      calls.push_back(call(weight));
    }
    return options_.quick ? graph_us(stream_, calls, 5, 1) : graph_us(stream_, calls);
  }

  const LinearOptions &options_;
  fp8rt::Context context_;
  Stream stream_;
  StreamTimer timer_;
  Workspace workspace_;
  std::vector<std::string> tiles_;
};

// A program of its own, which is not linked to the library. Some times, because the first one reads it from disk.
void first() {
  const std::string program = program_directory() + "/first_linear";
  for (int run = 0; run < 5; ++run) {
    std::fflush(stdout);
    if (std::system(("'" + program + "'").c_str()) != 0) {
      throw std::runtime_error(program + " failed");
    }
  }
}

int run(const LinearOptions &options) {
  const auto [devices, reason] = fp8rt_test::count_devices();
  if (devices == 0) {
    std::printf("skipped: no GPU: %s\n", reason.c_str());
    return 77;
  }
  if (options.tiles.empty()) {
    print_device();
  }
  if (options.wants("first")) {
    first();
  }
  if (options.sections == std::vector<std::string>{"first"}) {
    return 0;
  }
  Bench bench(options);
  if (options.wants("decode") || options.wants("prefill")) {
    bench.times();
  }
  if (options.wants("host")) {
    bench.host();
  }
  return 0;
}

}  // namespace
}  // namespace fp8rt_bench

int main(int argc, char **argv) {
  using namespace fp8rt_bench;
  try {
    return run(LinearCommandLine(argc, argv).parse());
  } catch (const std::invalid_argument &error) {
    std::fprintf(stderr, "%s\n%s", error.what(), kUsage);
    return 2;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
}
