#include "checkpoint.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include "error.hpp"
#include "json.hpp"

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Tensor name to shard name. A shard is a plain name: an index must not lead out of its folder.
std::map<std::string, std::string> read_index(const std::string &index) {
    const json document = read_json(index);
    if (!document.is_object()) throw Error(index + " is not a JSON object");
    const auto weights = document.find("weight_map");
    if (weights == document.end() || !weights->is_object()) throw Error(index + " has no object weight_map");
    std::map<std::string, std::string> result;
    for (const auto &[tensor, shard] : weights->items()) {
        const std::string where = index + ": tensor \"" + printable(tensor) + "\"";
        if (!shard.is_string()) throw Error(where + " has no shard name");
        const auto name = shard.get<std::string>();
        const bool plain = !name.empty() && name[0] != '.' && name.find_first_of(std::string("/\0", 2)) == name.npos;
        if (!plain) throw Error(where + ": shard \"" + printable(name) + "\" is no plain file name");
        result[tensor] = name;
    }
    return result;
}

std::vector<std::string> files_with_ending(const std::string &folder, const std::string &ending) {
    std::vector<std::string> result;
    for (const auto &entry : fs::directory_iterator(folder)) {
        if (entry.path().extension() == ending) result.push_back(entry.path().string());
    }
    std::sort(result.begin(), result.end());
    return result;
}

}  // namespace

Checkpoint::Checkpoint(const std::string &path) {
    fs::path folder = path;
    if (fs::is_directory(path)) {
        open_folder(path);
    } else {
        open_shards({path});
        folder = folder.has_parent_path() ? folder.parent_path() : ".";
    }
    collect();
    const fs::path config = folder / "config.json";
    if (fs::exists(config)) {
        config_path_ = config.string();
        files_.push_back(config_path_);
    }
}

std::uint64_t Checkpoint::bytes() const {
    std::uint64_t total = 0;
    for (const Tensor &tensor : tensors_) total += tensor.bytes();
    return total;
}

void Checkpoint::open_folder(const std::string &folder) {
    const fs::path index = fs::path(folder) / "model.safetensors.index.json";
    if (fs::exists(index)) return open_indexed(folder, index.string());
    const auto paths = files_with_ending(folder, ".safetensors");
    if (paths.empty()) throw Error(folder + " has no .safetensors file");
    open_shards(paths);
}

// The index and the shards must agree on every tensor: what only one of them names would be lost in silence.
void Checkpoint::open_indexed(const std::string &folder, const std::string &index) {
    const auto shard_of = read_index(index);
    files_.push_back(index);
    std::set<std::string> names;
    for (const auto &entry : shard_of) names.insert(entry.second);
    for (const std::string &name : names) {
        const std::string path = (fs::path(folder) / name).string();
        if (!fs::exists(path)) throw Error(index + ": shard " + printable(name) + " does not exist");
        open_shards({path});
    }
    std::set<std::pair<std::string, std::string>> present;
    for (const Safetensors &shard : shards_) {
        const std::string name = fs::path(shard.path()).filename().string();
        for (const TensorInfo &tensor : shard.tensors()) present.emplace(tensor.name, name);
    }
    for (const auto &entry : shard_of) {
        if (present.erase(entry) != 0) continue;
        throw Error(index + ": tensor \"" + printable(entry.first) + "\" is not in shard " + printable(entry.second));
    }
    if (!present.empty()) {
        const auto &[tensor, shard] = *present.begin();
        throw Error(index + " does not place tensor \"" + printable(tensor) + "\" in shard " + printable(shard));
    }
}

void Checkpoint::open_shards(const std::vector<std::string> &paths) {
    for (const std::string &path : paths) {
        shards_.emplace_back(path);
        files_.push_back(path);
    }
}

// Called once, when every shard is open: tensors point into the shards.
void Checkpoint::collect() {
    std::map<std::string, std::string> path_of;
    for (const Safetensors &shard : shards_) {
        metadata_.insert(shard.metadata().begin(), shard.metadata().end());
        for (const TensorInfo &tensor : shard.tensors()) {
            const auto [first, is_new] = path_of.emplace(tensor.name, shard.path());
            if (!is_new) {
                throw Error(shard.path() + ": tensor \"" + printable(tensor.name) + "\" is also in " + first->second);
            }
            tensors_.push_back({&tensor, shard.data(tensor)});
        }
    }
    std::sort(tensors_.begin(), tensors_.end(),
              [](const Tensor &a, const Tensor &b) { return a.info->name < b.info->name; });
}
