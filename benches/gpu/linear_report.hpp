// What bench_linear prints: a table for a person, or a line of CSV for each tile; and the same to a file.

#ifndef FP8RT_BENCH_LINEAR_REPORT_HPP
#define FP8RT_BENCH_LINEAR_REPORT_HPP

#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "linear_options.hpp"

namespace fp8rt_bench {

struct LinearTime {
  const char *section;
  LinearShape shape;
  std::int64_t m;
  std::string backend, tile;
  std::optional<double> us;
  std::string choice;  // of the plan, or why there is no time

  double tflops() const { return 2e-6 * static_cast<double>(m * shape.n) * static_cast<double>(shape.k) / *us; }
  // TB/s of the weight's codes.
  double tbs() const { return 1e-6 * static_cast<double>(shape.n * shape.k) / *us; }
};

class LinearReport {
 public:
  explicit LinearReport(const LinearOptions &options) : of_tiles_(!options.tiles.empty()) {
    if (!options.csv.empty()) {
      csv_.reset(std::fopen(options.csv.c_str(), "w"));
      if (!csv_) {
        throw std::runtime_error("cannot write " + options.csv);
      }
    }
    const char *header = of_tiles_ ? "N,K,M,tile,us\n" : "section,model,N,K,M,backend,us,tflops,tbs\n";
    if (csv_) {
      std::fputs(header, csv_.get());
    }
    if (of_tiles_) {
      std::fputs(header, stdout);
    } else {
      std::printf("%-8s%-15s%6s%7s%6s  %-9s%10s%9s%7s  %s\n", "", "model", "N", "K", "M", "backend", "us", "TFLOP/s",
                  "TB/s", "choice");
    }
  }

  void add(const LinearTime &time) {
    const std::string line = of_tiles_ ? tile_line(time) : line_of(time);
    if (of_tiles_) {
      std::fputs(line.c_str(), stdout);
      if (!time.us) {
        std::fprintf(stderr, "%s: %s\n", time.tile.c_str(), time.choice.c_str());
      }
    } else {
      print(time);
    }
    std::fflush(stdout);
    if (csv_) {
      std::fputs(line.c_str(), csv_.get());
      std::fflush(csv_.get());
    }
  }

 private:
  struct Close {
    void operator()(std::FILE *file) const { std::fclose(file); }
  };

  static std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.3f", value);
    return text;
  }
  static std::string extents(const LinearTime &time) {
    return std::to_string(time.shape.n) + "," + std::to_string(time.shape.k) + "," + std::to_string(time.m) + ",";
  }
  static std::string tile_line(const LinearTime &time) {
    return extents(time) + time.tile + "," + (time.us ? number(*time.us) : "-") + "\n";
  }
  static std::string line_of(const LinearTime &time) {
    const std::string head = std::string(time.section) + "," + time.shape.model + "," + extents(time) + time.backend;
    return head + (time.us ? "," + number(*time.us) + "," + number(time.tflops()) + "," + number(time.tbs())
                           : std::string(",-,-,-")) + "\n";
  }
  static void print(const LinearTime &time) {
    std::printf("%-8s%-15s%6ld%7ld%6ld  %-9s", time.section, time.shape.model.c_str(), long{time.shape.n},
                long{time.shape.k}, long{time.m}, time.backend.c_str());
    if (time.us) {
      std::printf("%10.2f%9.1f%7.3f", *time.us, time.tflops(), time.tbs());
    } else {
      std::printf("%10s%9s%7s", "-", "-", "-");
    }
    std::printf("  %s\n", time.choice.c_str());
  }

  bool of_tiles_;
  std::unique_ptr<std::FILE, Close> csv_;
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_LINEAR_REPORT_HPP
