#include "model_config.hpp"

#include <algorithm>
#include <set>

#include "error.hpp"
#include "json.hpp"
#include "selection.hpp"

using nlohmann::json;

namespace {

json what_was_done(bool pow2) {
    json result = {{"quant_method", "fp8"},
                   {"fmt", "e4m3"},
                   {"activation_scheme", "dynamic"},
                   {"weight_block_size", {128, 128}}};
    if (pow2) result["scale_fmt"] = "ue8m0";
    return result;
}

// The caller's own list first, then what it lacks.
json kept_modules(const Checkpoint &checkpoint, const std::vector<const Tensor *> &selected, json list) {
    const std::set<const Tensor *> quantized(selected.begin(), selected.end());
    for (const Tensor &tensor : checkpoint.tensors()) {
        if (!is_module_weight(*tensor.info) || quantized.count(&tensor) != 0) continue;
        const std::string &name = tensor.info->name;
        const std::string module = name.substr(0, name.rfind('.'));
        if (std::find(list.begin(), list.end(), json(module)) == list.end()) list.push_back(module);
    }
    return list;
}

json *quantization_of(json &config, const std::string &where) {
    if (!config.is_object()) throw Error(where + " is not a JSON object");
    json &result = config["quantization_config"];
    if (result.is_null()) result = json::object();
    if (!result.is_object()) throw Error(where + ": quantization_config is not an object");
    return &result;
}

}  // namespace

std::string make_config(const Checkpoint &checkpoint, const std::vector<const Tensor *> &selected, bool pow2) {
    const std::string &where = checkpoint.config_path();
    json config = where.empty() ? json::object() : read_json(where);
    json &quantization = *quantization_of(config, where);
    const json done = what_was_done(pow2);
    for (const auto &[key, value] : done.items()) {
        const auto present = quantization.find(key);
        if (present != quantization.end() && *present != value) {
            throw Error(where + ": quantization_config has " + key + " " + printable(present->dump(), 60) +
                        ", the quantized model needs " + value.dump());
        }
        quantization[key] = value;
    }
    const char *const list = "modules_to_not_convert";
    json modules = quantization.value(list, json::array());
    if (!modules.is_array()) throw Error(where + ": " + list + " is not a list");
    quantization[list] = kept_modules(checkpoint, selected, std::move(modules));
    return config.dump(2) + "\n";
}
