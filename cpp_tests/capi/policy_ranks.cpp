// Ranks agree on their policy before a model runs: this program starts itself once for each rank, and rank 0 compares
// what they say. One rank that was given another setting is refused, with the setting's name.
//
//   policy_ranks                          the test
//   policy_ranks rank SETTINGS            what a rank does: prints its fingerprint and its canonical text

#include <cstdio>
#include <cstdlib>
#include <fp8rt.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kRanks = 4;
constexpr const char *kSettings = "{\"precision\": \"fp8\", \"num_first_layers_in_bf16\": 1, \"tensor_parallel_size\": 4}";
// The same, in another order.
constexpr const char *kSame = "{\"num_first_layers_in_bf16\": 1, \"use_deep_gemm\": true, \"precision\": \"fp8\"}";
constexpr const char *kOther =
    "{\"precision\": \"fp8\", \"num_first_layers_in_bf16\": 2, \"pow2_weight_scaling_factors\": true}";

fp8rt::Policy make_policy(const std::string &settings) {
  fp8rt_policy_desc desc = fp8rt::policy_desc();
  desc.kind = FP8RT_POLICY_KIND_NEMO_RL;
  desc.settings = settings.c_str();
  desc.config = "{\"num_hidden_layers\": 32}";
  return fp8rt::Policy(desc);
}

std::string fingerprint(const fp8rt::Policy &policy) {
  const fp8rt_fingerprint value = policy.fingerprint();
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(value.high),
                static_cast<unsigned long long>(value.low));
  return text;
}

struct Rank {
  std::string fingerprint, text;
};

// Runs all ranks at the same time, each in a process of its own.
std::vector<Rank> run_ranks(const std::string &program, const std::vector<std::string> &settings) {
  std::vector<std::FILE *> pipes;
  for (const std::string &one : settings) {
    std::FILE *pipe = popen(("'" + program + "' rank '" + one + "'").c_str(), "r");
    if (pipe == nullptr) throw std::runtime_error("popen failed");
    pipes.push_back(pipe);
  }
  std::vector<Rank> ranks;
  for (std::FILE *pipe : pipes) {
    std::string all;
    for (int byte = std::fgetc(pipe); byte != EOF; byte = std::fgetc(pipe)) all.push_back(static_cast<char>(byte));
    if (pclose(pipe) != 0) throw std::runtime_error("a rank failed: " + all);
    const std::size_t end = all.find('\n');
    ranks.push_back({all.substr(0, end), all.substr(end + 1)});
  }
  return ranks;
}

// Rank 0's check before the model runs: empty if all agree, else what to tell the user.
std::string disagreement(const std::vector<Rank> &ranks, const fp8rt::Policy &own) {
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    if (ranks[rank].fingerprint != fingerprint(own)) {
      return "rank " + std::to_string(rank) + ": " + own.difference(ranks[rank].text);
    }
  }
  return "";
}

void require(bool condition, const std::string &text) {
  if (!condition) throw std::runtime_error(text);
}

int test(const std::string &program) {
  const fp8rt::Policy own = make_policy(kSettings);
  std::vector<std::string> settings(kRanks, kSettings);
  settings[2] = kSame;
  std::string found = disagreement(run_ranks(program, settings), own);
  require(found.empty(), "ranks with the same settings disagree: " + found);

  settings[3] = kOther;
  found = disagreement(run_ranks(program, settings), own);
  const std::string expected =
      "rank 3: num_first_layers_in_bf16 is 1 here, 2 there\n"
      "weight.scale_format is \"FP32\" here, \"POW2\" there";
  require(found == expected, "got \"" + found + "\"");
  std::printf("refused: %s\n", found.c_str());
  return 0;
}

}  // namespace

int main(int count, char **arguments) try {
  if (count == 3 && std::string(arguments[1]) == "rank") {
    const fp8rt::Policy policy = make_policy(arguments[2]);
    std::printf("%s\n%s", fingerprint(policy).c_str(), policy.text().c_str());
    return 0;
  }
  return test(arguments[0]);
} catch (const std::exception &failure) {
  std::fprintf(stderr, "%s\n", failure.what());
  return 1;
}
