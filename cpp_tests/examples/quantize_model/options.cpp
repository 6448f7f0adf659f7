#include "options.hpp"

#include <fp8rt.h>
#include <getopt.h>

#include <cstdio>
#include <cstdlib>

#include "selection.hpp"

namespace {

struct RecipeName {
    std::uint32_t recipe;
    const char *name;
};

constexpr RecipeName RECIPES[] = {{FP8RT_RECIPE_NEMO_RL, "nemo_rl"},
                                  {FP8RT_RECIPE_DEEPGEMM, "deepgemm"},
                                  {FP8RT_RECIPE_VLLM, "vllm"},
                                  {FP8RT_RECIPE_TE, "te"}};

const char *const HELP =
    "usage: quantize_model [options] MODEL\n"
    "\n"
    "Quantizes the linear weights of a model to block-scaled FP8 with libfp8rt.so, runs an FP8 linear on each, and\n"
    "prints what that costs in accuracy and how fast it is. MODEL is a .safetensors file, or a folder with\n"
    "model.safetensors.index.json or *.safetensors.\n"
    "\n"
    "  --recipe NAME    nemo_rl (default), deepgemm, vllm, te, or all of them\n"
    "  --pow2           scales that are powers of two, for weights and activations\n"
    "  --rows M         rows of the random activations, 1 to 65536 (default 16)\n"
    "  --filter REGEX   only weights whose name matches, an extended regular expression\n"
    "  --threads N      threads, 1 to 4096 (default: as many as this process may use)\n"
    "  --out FILE       write the quantized model to FILE.safetensors, and config.json beside it\n"
    "  --library PATH   libfp8rt.so (default: $FP8RT_LIBRARY, else beside this program, else libfp8rt.so.0 where the\n"
    "                   system looks)\n"
    "  --help           print this\n"
    "\n"
    "Columns: the relative error (Frobenius norm) of the dequantized weight, and of the FP8 linear on random\n"
    "activations against the same linear in float32; GB/s are the bytes that quantizing reads and writes over the\n"
    "time of the best of five runs (a small weight is in the cache by then).\n"
    "\n";

[[noreturn]] void refuse(const std::string &message) {
    std::fprintf(stderr, "quantize_model: %s; see --help\n", message.c_str());
    std::exit(2);
}

std::int64_t parse_number(const char *option, const char *text, std::int64_t largest) {
    char *end = nullptr;
    const long long value = std::strtoll(text, &end, 10);
    if (end == text || *end != '\0' || value < 1 || value > largest) {
        refuse(std::string(option) + " is \"" + text + "\", must be a number from 1 to " + std::to_string(largest));
    }
    return value;
}

std::vector<std::uint32_t> parse_recipes(const std::string &text) {
    std::vector<std::uint32_t> result;
    for (const RecipeName &entry : RECIPES) {
        if (text == entry.name || text == "all") result.push_back(entry.recipe);
    }
    if (result.empty()) refuse("--recipe is \"" + text + "\", must be nemo_rl, deepgemm, vllm, te or all");
    return result;
}

[[noreturn]] void help() {
    std::printf("%s%s", HELP, SELECTION_RULE);
    std::exit(std::fflush(stdout) == 0 ? 0 : 1);
}

void apply(Options &options, int letter) {
    switch (letter) {
        case 'l': options.library = optarg; break;
        case 'r': options.recipes = parse_recipes(optarg); break;
        case 'p': options.pow2 = true; break;
        case 't': options.threads = static_cast<std::uint32_t>(parse_number("--threads", optarg, 4096)); break;
        case 'm': options.rows = parse_number("--rows", optarg, 65536); break;
        case 'f': options.filter = optarg; break;
        case 'o': options.out = optarg; break;
        case 'h': help();
        default: std::exit(2);  // getopt_long has said why
    }
}

void check_together(const Options &options) {
    if (options.out.empty()) return;
    if (options.recipes.size() != 1) refuse("--out takes one recipe, not all");
    const std::string ending = ".safetensors";
    const bool ends = options.out.size() > ending.size() &&
                      options.out.compare(options.out.size() - ending.size(), ending.size(), ending) == 0;
    if (!ends) refuse("--out is \"" + options.out + "\", must end in .safetensors");
}

}  // namespace

const char *recipe_name(std::uint32_t recipe) {
    for (const RecipeName &entry : RECIPES) {
        if (entry.recipe == recipe) return entry.name;
    }
    return "?";
}

Options parse_options(int count, char **arguments) {
    static const option LONG[] = {
        {"library", required_argument, nullptr, 'l'}, {"recipe", required_argument, nullptr, 'r'},
        {"pow2", no_argument, nullptr, 'p'},          {"threads", required_argument, nullptr, 't'},
        {"rows", required_argument, nullptr, 'm'},    {"filter", required_argument, nullptr, 'f'},
        {"out", required_argument, nullptr, 'o'},     {"help", no_argument, nullptr, 'h'},
        {nullptr, 0, nullptr, 0},
    };
    Options options;
    options.recipes = {FP8RT_RECIPE_NEMO_RL};
    for (int letter; (letter = getopt_long(count, arguments, "h", LONG, nullptr)) != -1;) apply(options, letter);
    if (count - optind != 1) refuse("needs one MODEL, got " + std::to_string(count - optind));
    options.model = arguments[optind];
    check_together(options);
    return options;
}
