// Plays a trainer that refits an engine, and shows how long that takes. See --help.

#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "options.hpp"
#include "session.hpp"

namespace {

constexpr const char *DEFAULT_SETTINGS =
    R"({"precision": "fp8", "num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 1})";

std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file) throw std::runtime_error(path + ": cannot be read");
    return text;
}

// Whole or not at all: written beside, then renamed.
void write_file(const std::string &path, const std::string &text) {
    const std::string partial = path + ".partial";
    std::ofstream file(partial, std::ios::binary);
    file << text;
    file.close();
    if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
        std::remove(partial.c_str());
        throw std::runtime_error(path + ": cannot be written");
    }
}

fp8rt::Policy make_policy(const Options &options) {
    // No layer is both the first and the last.
    const std::string settings = !options.settings.empty() ? read_file(options.settings)
                                 : options.layers < 2      ? R"({"precision": "fp8"})"
                                                           : DEFAULT_SETTINGS;
    const nlohmann::json config = {{"model_type", "llama"}, {"num_hidden_layers", options.layers}};
    const std::string config_text = config.dump();
    fp8rt_policy_desc desc = fp8rt::policy_desc();
    desc.settings = settings.c_str();
    desc.config = config_text.c_str();
    return fp8rt::Policy(desc);
}

std::string hex(const fp8rt_fingerprint &fingerprint) {
    char text[33];
    std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(fingerprint.high),
                  static_cast<unsigned long long>(fingerprint.low));
    return text;
}

void print_model(const Session &session, const Options &options) {
    const Model &model = session.model();
    std::size_t fp8 = 0;
    for (const TrainerTensor &tensor : model.tensors()) fp8 += tensor.fp8;
    const std::string scaled =
        model.scale_down() == 1 ? "" : " (scaled down by " + std::to_string(model.scale_down()) + ")";
    std::printf("%s\n", fp8rt_build_info());
    std::printf("%zu tensors of %.2f billion values%s, %zu become FP8; the engine holds %zu parameters in %.2f GB\n",
                model.tensors().size(), static_cast<double>(model.trainer_bytes()) / 2e9, scaled.c_str(), fp8,
                model.parameters(), static_cast<double>(model.bytes()) / 1e9);
    std::printf("%zu buckets of up to %lld MiB, %.1f MB beside the model\n", session.buckets(),
                static_cast<long long>(options.bucket_mib), static_cast<double>(session.extra_bytes()) / 1e6);
}

void print(int number, const Step &step) {
    std::printf("refit %d: %.1f ms, %.1f GB/s, %u of %u parameters, %llu not finite, %llu became zero, %.1f MB of "
                "memory taken, fingerprint %s%s\n",
                number, step.milliseconds, step.gigabytes_per_second(), step.receipt.destinations_filled,
                step.receipt.num_destinations, static_cast<unsigned long long>(step.health.non_finite),
                static_cast<unsigned long long>(step.health.became_zero), static_cast<double>(step.grown) / 1e6,
                hex(step.fingerprint).c_str(), step.is_right() ? ", as the trainer's" : "");
    for (const std::string &name : step.different) std::printf("  %s is not what the trainer sent\n", name.c_str());
    for (const std::string &name : step.spots.different) {
        std::printf("  the last rows of %s are not what the host makes of them\n", name.c_str());
    }
}

nlohmann::json to_json(const Step &step) {
    return {{"entries", step.receipt.destinations_filled},
            {"tensors_and_cuts", step.receipt.items},
            {"milliseconds", step.milliseconds},
            {"bytes_read", step.receipt.bytes_read},
            {"bytes_written", step.receipt.bytes_written},
            {"memory_taken", step.grown},
            {"non_finite", step.health.non_finite},
            {"underflowed", step.health.became_zero},
            {"became_subnormal", step.health.became_subnormal},
            {"fingerprint", hex(step.fingerprint)},
            {"different", step.different},
            {"bytes_compared", step.spots.bytes},
            {"different_bytes", step.spots.different}};
}

std::uint32_t format_of(const std::string &path) {
    const auto ends = [&](const std::string &ending) {
        return path.size() >= ending.size() && path.compare(path.size() - ending.size(), ending.size(), ending) == 0;
    };
    if (ends(".json")) return FP8RT_REPORT_FORMAT_JSON;
    if (ends(".txt")) return FP8RT_REPORT_FORMAT_TEXT;
    if (ends(".html")) return FP8RT_REPORT_FORMAT_HTML;
    throw std::runtime_error(path + ": a report is .json, .txt or .html");
}

int run(const Options &options) {
    const std::uint32_t format = options.report.empty() ? 0 : format_of(options.report);
    if (!options.report.empty() && options.host_sources) {
        throw std::runtime_error("--report reads the tensors on the device, --host-sources leaves them on the host");
    }
    const fp8rt::Policy policy = make_policy(options);
    Session session(options, policy);
    if (!options.corrupt.empty()) session.model().find(options.corrupt);
    print_model(session, options);
    nlohmann::json receipt = {{"policy", hex(policy.fingerprint())},
                              {"extra_bytes", session.extra_bytes()},
                              {"model_bytes", session.model().bytes()},
                              {"scale_down", session.model().scale_down()},
                              {"refits", nlohmann::json::array()}};
    bool right = true;
    for (int number = 1; number <= options.refits; ++number) {
        Step step = session.refit(number);
        if (number == options.refits && !options.corrupt.empty()) {
            session.corrupt(options.corrupt);
            session.compare(number, step);
        }
        print(number, step);
        std::fflush(stdout);
        receipt["refits"].push_back(to_json(step));
        right = right && step.is_right();
    }
    if (!options.receipt.empty()) write_file(options.receipt, receipt.dump(2) + "\n");
    if (!options.report.empty()) write_file(options.report, session.report(format));
    return right ? 0 : 1;
}

}  // namespace

int main(int count, char **arguments) {
    const Options options = parse_options(count, arguments);
    try {
        return run(options);
    } catch (const std::exception &failure) {
        std::fprintf(stderr, "refit_model: %s\n", failure.what());
        return 1;
    }
}
