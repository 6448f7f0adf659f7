#include "options.hpp"

#include <getopt.h>

#include <cstdio>
#include <cstdlib>

namespace {

const char *const HELP =
    "usage: refit_model [options]\n"
    "\n"
    "Plays a trainer and an engine. The trainer has random bf16 tensors with the names and shapes of Llama-3.1-8B, new\n"
    "values at each step. The engine holds the model as FP8, q, k, v and gate, up merged, as its settings say. Each step\n"
    "streams the tensors in buckets through one refit plan, checks that the engine holds what the trainer expects (a\n"
    "fingerprint of every tensor, and the bytes of its last rows), and prints how long it took.\n"
    "\n"
    "  --device N        -1: host memory (default); else a GPU\n"
    "  --layers N        layers, 1 to 1000 (default 32)\n"
    "  --scale-down N    divide hidden, intermediate and vocabulary sizes by N: 1 to 16, a power of two\n"
    "                    (default: the least that fits into memory)\n"
    "  --memory-mib N    memory that the model and its buckets may take (default: nine tenths of what is free)\n"
    "  --bucket-mib N    size of a bucket; tensors are cut on blocks to fit (default 1024)\n"
    "  --refits N        steps (default 2)\n"
    "  --host-sources    on a GPU: the tensors stay in pinned host memory and pass through staging memory\n"
    "  --threads N       threads of the host (default: as many as this process may use)\n"
    "  --settings FILE   which parameters are FP8: settings of NeMo-RL, Hugging Face, verl or fp8rt, as JSON\n"
    "  --receipt FILE    write what each refit did as JSON\n"
    "  --report FILE     write what FP8 costs each layer: .json, .txt or .html\n"
    "  --corrupt NAME    flip one bit of the engine's copy of this tensor after the last refit, which must be found\n"
    "  --help            print this\n"
    "\n"
    "Exit code: 0, or 1 if the engine does not hold what the trainer sent.\n";

[[noreturn]] void refuse(const std::string &message) {
    std::fprintf(stderr, "refit_model: %s; see --help\n", message.c_str());
    std::exit(2);
}

std::int64_t number(const char *option, std::int64_t least, std::int64_t most) {
    char *end = nullptr;
    const long long value = std::strtoll(optarg, &end, 10);
    if (end == optarg || *end != '\0' || value < least || value > most) {
        refuse(std::string(option) + " is \"" + optarg + "\", must be a number from " + std::to_string(least) + " to " +
               std::to_string(most));
    }
    return value;
}

void apply(Options &options, int letter) {
    switch (letter) {
        case 'd': options.device = static_cast<int>(number("--device", -1, 1024)); break;
        case 'l': options.layers = static_cast<int>(number("--layers", 1, 1000)); break;
        case 's': options.scale_down = number("--scale-down", 1, 16); break;
        case 'm': options.memory_mib = number("--memory-mib", 1, std::int64_t{1} << 30); break;
        case 'b': options.bucket_mib = number("--bucket-mib", 1, 65536); break;
        case 'n': options.refits = static_cast<int>(number("--refits", 1, 1000)); break;
        case 'o': options.host_sources = true; break;
        case 't': options.threads = static_cast<std::uint32_t>(number("--threads", 1, 4096)); break;
        case 'c': options.settings = optarg; break;
        case 'r': options.receipt = optarg; break;
        case 'p': options.report = optarg; break;
        case 'x': options.corrupt = optarg; break;
        case 'h': std::printf("%s", HELP); std::exit(std::fflush(stdout) == 0 ? 0 : 1);
        default: std::exit(2);  // getopt_long has said why
    }
}

}  // namespace

Options parse_options(int count, char **arguments) {
    static const option LONG[] = {
        {"device", required_argument, nullptr, 'd'},     {"layers", required_argument, nullptr, 'l'},
        {"scale-down", required_argument, nullptr, 's'}, {"bucket-mib", required_argument, nullptr, 'b'},
        {"memory-mib", required_argument, nullptr, 'm'}, {"refits", required_argument, nullptr, 'n'},
        {"host-sources", no_argument, nullptr, 'o'},     {"threads", required_argument, nullptr, 't'},
        {"settings", required_argument, nullptr, 'c'},   {"receipt", required_argument, nullptr, 'r'},
        {"report", required_argument, nullptr, 'p'},     {"corrupt", required_argument, nullptr, 'x'},
        {"help", no_argument, nullptr, 'h'},
        {nullptr, 0, nullptr, 0},
    };
    Options options;
    for (int letter; (letter = getopt_long(count, arguments, "h", LONG, nullptr)) != -1;) apply(options, letter);
    if (count != optind) refuse(std::string("\"") + arguments[optind] + "\" is no option");
    // 0, which stands for the default, passes too.
    if ((options.scale_down & (options.scale_down - 1)) != 0) refuse("--scale-down must be a power of two");
    if (options.host_sources && options.device < 0) refuse("--host-sources needs a --device that is a GPU");
    return options;
}
