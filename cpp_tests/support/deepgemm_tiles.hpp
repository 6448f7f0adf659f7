// The tiles of DeepGEMM's kernel that a build has, found by asking for every name that one may have.

#ifndef FP8RT_TEST_DEEPGEMM_TILES_HPP
#define FP8RT_TEST_DEEPGEMM_TILES_HPP

#include <string>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"

namespace fp8rt_test {

constexpr const char *kTileVariable = "FP8RT_DEEPGEMM_TILE";

// Rows by columns, what a cluster shares (a: the activation, w: the weight), how many blocks a multiprocessor has, and the
// weight that it is compiled for.
inline std::vector<std::string> possible_tile_names(std::int64_t n, std::int64_t k) {
  const std::string shape = "n" + std::to_string(n) + "k" + std::to_string(k);
  std::vector<std::string> names;
  for (const int rows : {16, 32, 64, 128, 192, 256}) {
    for (int columns = 16; columns <= 256; columns += 16) {
      for (const char *cluster : {"", "a", "w"}) {
        for (const char *blocks : {"", "p2", "p3", "p4"}) {
          names.push_back(std::to_string(rows) + "x" + std::to_string(columns) + cluster + blocks);
          names.push_back(names.back() + shape);
        }
      }
    }
  }
  return names;
}

// Those that a plan of `desc` can be made with.
inline std::vector<std::string> tile_names(const fp8rt::Context &context, fp8rt_linear_desc desc) {
  desc.backends = FP8RT_BACKEND_DEEPGEMM;
  std::vector<std::string> names;
  for (const std::string &name : possible_tile_names(desc.n, desc.k)) {
    const Environment environment(kTileVariable, name.c_str());
    fp8rt_linear_plan *plan = nullptr;
    if (fp8rt_linear_plan_create(context.get(), &desc, &plan) == FP8RT_STATUS_OK) {
      names.push_back(name);
    } else {
      EXPECT_NE(std::string(fp8rt_last_error()).find(kTileVariable), std::string::npos) << fp8rt_last_error();
    }
    fp8rt_linear_plan_destroy(plan);
  }
  return names;
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_DEEPGEMM_TILES_HPP
