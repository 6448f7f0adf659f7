// The command line of bench_linear.

#ifndef FP8RT_BENCH_LINEAR_OPTIONS_HPP
#define FP8RT_BENCH_LINEAR_OPTIONS_HPP

#include <algorithm>
#include <cctype>
#include <functional>
#include <map>
#include <utility>

#include "fp8rt.h"
#include "linear_shapes.hpp"

namespace fp8rt_bench {

constexpr const char *kUsage =
    "bench_linear [--section decode,prefill,host,first] [--shapes FILE|N,K ...] [--models NAME,...] [--m M,...]\n"
    "             [--backends any,deepgemm,cutlass,cublaslt,plain] [--tiles NAME,...|all] [--prequantized]\n"
    "             [--bias bf16|f16|f32] [--output bf16|f16|f32] [--invariant] [--quick] [--csv FILE]\n";

struct BackendName {
  const char *name;
  std::uint32_t bit;
};

// Any: the one that a plan chooses by itself.
constexpr BackendName kBackends[] = {{"any", 0},
                                     {"deepgemm", FP8RT_BACKEND_DEEPGEMM},
                                     {"cutlass", FP8RT_BACKEND_CUTLASS},
                                     {"cublaslt", FP8RT_BACKEND_CUBLASLT},
                                     {"plain", FP8RT_BACKEND_PLAIN}};

constexpr const char *kSectionNames[] = {"decode", "prefill", "host", "first"};

struct LinearOptions {
  std::vector<std::string> sections{"decode", "prefill"};
  std::vector<LinearShape> shapes;
  std::vector<std::int64_t> rows;
  std::vector<BackendName> backends{kBackends[0]};
  std::vector<std::string> tiles;
  std::uint32_t bias_dtype = 0;
  std::uint32_t output_dtype = FP8RT_DTYPE_BF16;
  bool prequantized = false, invariant = false, quick = false;
  std::string csv;

  bool wants(const std::string &section) const {
    return std::find(sections.begin(), sections.end(), section) != sections.end();
  }
};

// Arguments as they come: each option takes those that follow it up to the next option.
class LinearCommandLine {
 public:
  LinearCommandLine(int count, char **arguments) : arguments_(arguments + 1, arguments + count) {}

  LinearOptions parse() {
    const std::map<std::string, std::function<void()>> options = {
        {"--section", [&] { set_sections(); }},
        {"--shapes", [&] { set_shapes(); }},
        {"--models", [&] { models_ = split(value()); }},
        {"--m", [&] { options_.rows = positive_numbers(value()); }},
        {"--backends", [&] { set_backends(); }},
        {"--tiles", [&] { options_.tiles = split(value()); }},
        {"--bias", [&] { options_.bias_dtype = dtype(); }},
        {"--output", [&] { options_.output_dtype = dtype(); }},
        {"--csv", [&] { options_.csv = value(); }},
        {"--prequantized", [&] { options_.prequantized = true; }},
        {"--invariant", [&] { options_.invariant = true; }},
        {"--quick", [&] { options_.quick = true; }},
    };
    while (at_ < arguments_.size()) {
      name_ = arguments_[at_++];
      const auto option = options.find(name_);
      if (option == options.end()) {
        throw std::invalid_argument("\"" + name_ + "\" is no option");
      }
      option->second();
    }
    finish();
    return options_;
  }

 private:
  bool has_value() const { return at_ < arguments_.size() && arguments_[at_].rfind("--", 0) != 0; }
  std::string value() {
    if (!has_value()) {
      throw std::invalid_argument(name_ + " needs a value");
    }
    return arguments_[at_++];
  }

  void set_sections() {
    options_.sections = split(value());
    for (const std::string &name : options_.sections) {
      if (std::find(std::begin(kSectionNames), std::end(kSectionNames), name) == std::end(kSectionNames)) {
        throw std::invalid_argument("\"" + name + "\" is no section");
      }
    }
  }
  void set_shapes() {
    do {
      const std::string text = value();
      const bool is_pair = std::isdigit(static_cast<unsigned char>(text[0])) && text.find(',') != std::string::npos;
      if (!is_pair) {
        add_shapes_of(read_linear_table(text));
        continue;
      }
      const std::vector<std::int64_t> extents = positive_numbers(text);
      if (extents.size() != 2) {
        throw std::invalid_argument("\"" + text + "\" is not N,K");
      }
      options_.shapes.push_back({"-", extents[0], extents[1]});
    } while (has_value());
  }
  void set_backends() {
    options_.backends.clear();
    for (const std::string &name : split(value())) {
      const auto is_named = [&](const BackendName &backend) { return name == backend.name; };
      const auto found = std::find_if(std::begin(kBackends), std::end(kBackends), is_named);
      if (found == std::end(kBackends)) {
        throw std::invalid_argument("\"" + name + "\" is no backend");
      }
      options_.backends.push_back(*found);
    }
  }
  std::uint32_t dtype() {
    const std::map<std::string, std::uint32_t> dtypes = {
        {"bf16", FP8RT_DTYPE_BF16}, {"f16", FP8RT_DTYPE_F16}, {"f32", FP8RT_DTYPE_F32}};
    const std::string name = value();
    const auto found = dtypes.find(name);
    if (found == dtypes.end()) {
      throw std::invalid_argument(name_ + " is \"" + name + "\", takes bf16, f16, f32");
    }
    return found->second;
  }

  void add_shapes_of(const LinearTable &table) {
    options_.shapes.insert(options_.shapes.end(), table.shapes.begin(), table.shapes.end());
    if (options_.rows.empty()) {
      options_.rows = table.rows;
    }
  }
  // What was left out comes from the shared table.
  void finish() {
    if (options_.shapes.empty() || options_.rows.empty()) {
      const LinearTable table = read_linear_table(program_directory() + "/linear_shapes.txt");
      if (options_.shapes.empty()) {
        options_.shapes = table.shapes;
      }
      if (options_.rows.empty()) {
        options_.rows = table.rows;
      }
    }
    if (!models_.empty()) {
      const auto unwanted = [&](const LinearShape &shape) {
        return std::find(models_.begin(), models_.end(), shape.model) == models_.end();
      };
      auto &shapes = options_.shapes;
      shapes.erase(std::remove_if(shapes.begin(), shapes.end(), unwanted), shapes.end());
    }
    if (options_.shapes.empty()) {
      throw std::invalid_argument("no shape is left of those of --models");
    }
    const bool tunable = options_.backends.size() == 1 &&
                         (options_.backends[0].bit == FP8RT_BACKEND_DEEPGEMM ||
                          options_.backends[0].bit == FP8RT_BACKEND_CUTLASS);
    if (!options_.tiles.empty() && !tunable) {
      throw std::invalid_argument("--tiles needs --backends deepgemm or --backends cutlass");
    }
  }

  std::vector<std::string> arguments_, models_;
  std::size_t at_ = 0;
  std::string name_;
  LinearOptions options_;
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_LINEAR_OPTIONS_HPP
