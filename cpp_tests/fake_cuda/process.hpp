// What /proc says of this process.

#ifndef FP8RT_TEST_PROCESS_HPP
#define FP8RT_TEST_PROCESS_HPP

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace fp8rt_test {

// Whether a file whose name contains `name` is mapped.
inline bool is_mapped(const std::string &name) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(name) != std::string::npos) return true;
  }
  return false;
}

inline long num_threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_PROCESS_HPP
