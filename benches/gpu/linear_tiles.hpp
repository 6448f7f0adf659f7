// The tiles and kernels that a backend can be told to use, by environment variable, to measure them all.

#ifndef FP8RT_BENCH_LINEAR_TILES_HPP
#define FP8RT_BENCH_LINEAR_TILES_HPP

#include <cstdlib>
#include <string>
#include <vector>

#include "fp8rt.hpp"
#include "linear_options.hpp"

namespace fp8rt_bench {

// Sets a backend's variable for as long as it lives; an empty tile sets nothing.
class TileVariable {
 public:
  TileVariable(std::uint32_t backend, const std::string &tile) {
    if (!tile.empty()) {
      name_ = backend == FP8RT_BACKEND_CUTLASS ? "FP8RT_CUTLASS_KERNEL" : "FP8RT_DEEPGEMM_TILE";
      setenv(name_, tile.c_str(), 1);
    }
  }
  TileVariable(const TileVariable &) = delete;
  TileVariable &operator=(const TileVariable &) = delete;
  ~TileVariable() {
    if (name_ != nullptr) {
      unsetenv(name_);
    }
  }

 private:
  const char *name_ = nullptr;
};

// Every beginning with every ending.
inline std::vector<std::string> joined(const std::vector<std::string> &beginnings,
                                       const std::vector<std::string> &endings) {
  std::vector<std::string> names;
  for (const std::string &beginning : beginnings) {
    for (const std::string &ending : endings) {
      names.push_back(beginning + ending);
    }
  }
  return names;
}

// Every name that a build may have: rows by columns of y, and what a backend adds.
inline std::vector<std::string> possible_tiles(const fp8rt_linear_desc &desc) {
  std::vector<std::string> rows, columns;
  for (const int extent : {8, 16, 32, 64, 128, 192, 256}) {
    rows.push_back(std::to_string(extent));
  }
  for (int extent = 16; extent <= 256; extent += 16) {
    columns.push_back("x" + std::to_string(extent));
  }
  const std::vector<std::string> tiles = joined(rows, columns);
  if (desc.backends == FP8RT_BACKEND_CUTLASS) {
    // Swapped operands, the cluster, the type of y.
    return joined(joined(joined(tiles, {"", "s"}), {"", "_1x2", "_2x1"}), {"", "_f16", "_f32"});
  }
  // What a cluster shares, the blocks of a multiprocessor, and the weight that a tile is compiled for.
  const std::string weight = "n" + std::to_string(desc.n) + "k" + std::to_string(desc.k);
  return joined(joined(joined(tiles, {"", "a", "w"}), {"", "p2", "p3", "p4"}), {"", weight});
}

// Those that a plan of `desc` can be made with: all that this build has.
inline std::vector<std::string> available_tiles(const fp8rt::Context &context, const fp8rt_linear_desc &desc) {
  std::vector<std::string> names;
  for (const std::string &name : possible_tiles(desc)) {
    const TileVariable variable(desc.backends, name);
    fp8rt_linear_plan *plan = nullptr;
    if (fp8rt_linear_plan_create(context.get(), &desc, &plan) == FP8RT_STATUS_OK) {
      names.push_back(name);
    }
    fp8rt_linear_plan_destroy(plan);
  }
  if (names.empty()) {
    throw std::runtime_error(std::string("no tile that --tiles all knows is in this build: ") + fp8rt_last_error());
  }
  return names;
}

// Whether a tile is worth a measurement: not one that is mostly beyond M, nor one far too small.
inline bool may_win(const std::string &tile, std::int64_t m) {
  const std::int64_t rows = std::atol(tile.c_str());
  return rows <= 4 * std::max<std::int64_t>(m, 16) && (rows >= 64 || 4 * rows >= m);
}

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_LINEAR_TILES_HPP
