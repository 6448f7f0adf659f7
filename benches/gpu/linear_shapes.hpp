// The table of shapes that tests, benches and scripts share: linear_shapes.txt beside the program.

#ifndef FP8RT_BENCH_LINEAR_SHAPES_HPP
#define FP8RT_BENCH_LINEAR_SHAPES_HPP

#include <unistd.h>

#include <climits>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fp8rt_bench {

struct LinearShape {
  std::string model;
  std::int64_t n, k;
};

struct LinearTable {
  std::vector<LinearShape> shapes;
  std::vector<std::int64_t> rows;
};

inline std::vector<std::string> split(const std::string &list) {
  std::vector<std::string> items;
  std::istringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) {
    items.push_back(item);
  }
  return items;
}

inline std::int64_t positive_number(const std::string &text) {
  std::size_t read = 0;
  std::int64_t value = 0;
  try {
    value = std::stoll(text, &read);
  } catch (const std::logic_error &) {
    read = 0;
  }
  if (read == 0 || read != text.size() || value < 1) {
    throw std::invalid_argument("\"" + text + "\" is no number above 0");
  }
  return value;
}

inline std::vector<std::int64_t> positive_numbers(const std::string &list) {
  std::vector<std::int64_t> numbers;
  for (const std::string &item : split(list)) {
    numbers.push_back(positive_number(item));
  }
  return numbers;
}

inline std::string program_directory() {
  char program[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program);
  if (length <= 0) {
    throw std::runtime_error("/proc/self/exe names no program");
  }
  const std::string path(program, static_cast<std::size_t>(length));
  return path.substr(0, path.rfind('/'));
}

inline LinearTable read_linear_table(const std::string &path) {
  std::ifstream file(path);
  if (!file) {
    throw std::runtime_error("there is no table of shapes " + path);
  }
  LinearTable table;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line.substr(0, line.find('#')));
    std::string first, second, third;
    if (!(fields >> first >> second)) {
      continue;
    }
    if (first == "rows") {
      table.rows = positive_numbers(second);
    } else if (fields >> third) {
      table.shapes.push_back({first, positive_number(second), positive_number(third)});
    } else {
      throw std::runtime_error(path + ": \"" + line + "\" is not `model N K`");
    }
  }
  return table;
}

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_LINEAR_SHAPES_HPP
