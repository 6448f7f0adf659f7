#include "selection.hpp"

#include <algorithm>
#include <cctype>
#include <set>
#include <vector>

const char *const SELECTION_RULE =
    "A tensor is quantized if it is a matrix with elements, F32, F16 or BF16, its name ends in \".weight\", and no\n"
    "part of the name between dots says that it is kept:\n"
    "  embeddings     a word of the part begins with \"embed\" (embed_tokens, word_embeddings), or it is wte or wpe\n"
    "  norms          a word of the part ends in \"norm\", or in that and digits (LayerNorm, input_layernorm, norm1)\n"
    "  output heads   the part is lm_head\n"
    "  routers        the part is router, or the last part is gate or shared_expert_gate (mlp.gate.weight, but not\n"
    "                 mlp.gate_proj.weight)\n"
    "  vision towers  the part is visual, vision_tower or vision_model\n"
    "Words are separated by \"_\", and letters count the same in upper and lower case. Everything else is kept.\n";

namespace {

const std::string ENDING = ".weight";

std::vector<std::string> split(const std::string &text, char separator) {
    std::vector<std::string> pieces(1);
    for (const char letter : text) {
        if (letter == separator) {
            pieces.emplace_back();
        } else {
            pieces.back() += letter;
        }
    }
    return pieces;
}

std::string lower(std::string text) {
    for (char &letter : text) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    return text;
}

bool ends_with(const std::string &text, const std::string &ending) {
    return text.size() >= ending.size() && text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

bool is_kept_word(std::string word) {
    if (word.rfind("embed", 0) == 0) return true;
    while (!word.empty() && std::isdigit(static_cast<unsigned char>(word.back()))) word.pop_back();
    return ends_with(word, "norm");
}

bool is_kept_part(const std::string &part) {
    static const std::set<std::string> kept = {"wte",    "wpe",          "lm_head",     "router",
                                               "visual", "vision_tower", "vision_model"};
    if (kept.count(part) != 0) return true;
    const auto words = split(part, '_');
    return std::any_of(words.begin(), words.end(), is_kept_word);
}

bool is_kept_name(const std::string &name) {
    const auto parts = split(lower(name.substr(0, name.size() - ENDING.size())), '.');
    if (parts.back() == "gate" || parts.back() == "shared_expert_gate") return true;
    return std::any_of(parts.begin(), parts.end(), is_kept_part);
}

}  // namespace

bool is_module_weight(const TensorInfo &tensor) {
    return tensor.shape.size() == 2 && ends_with(tensor.name, ENDING);
}

bool is_linear_weight(const TensorInfo &tensor) {
    if (!is_module_weight(tensor) || tensor.begin == tensor.end) return false;
    const bool is_float = tensor.dtype == "F32" || tensor.dtype == "F16" || tensor.dtype == "BF16";
    return is_float && !is_kept_name(tensor.name);
}
