// Feeds the fuzz target a fixed sequence of random inputs where there is no libFuzzer: random_inputs COUNT [FIRST].
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv) {
  uint32_t count = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 1000;
  uint32_t first = argc > 2 ? static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)) : 0;
  const char *verbose = std::getenv("FUZZ_VERBOSE");
  for (uint32_t seed = first; seed < first + count; seed++) {
    if (verbose != nullptr) {
      std::fprintf(stderr, "seed %u\n", seed);
    }
    std::mt19937 random(seed);
    std::vector<uint8_t> bytes(random() % 200);
    for (uint8_t &byte : bytes) {
      byte = static_cast<uint8_t>(random());
    }
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  return 0;
}
