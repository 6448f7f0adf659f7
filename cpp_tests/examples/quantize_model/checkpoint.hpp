// A model on disk: one safetensors file, or a folder of them with or without an index.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "safetensors.hpp"

struct Tensor {
    const TensorInfo *info;
    const std::uint8_t *data;

    std::uint64_t bytes() const { return info->end - info->begin; }
};

class Checkpoint {
public:
    explicit Checkpoint(const std::string &path);

    const std::vector<Tensor> &tensors() const { return tensors_; }  // by name
    const std::map<std::string, std::string> &metadata() const { return metadata_; }
    // Every file that the model was read from, config.json included: none of them may be written.
    const std::vector<std::string> &files() const { return files_; }
    // Empty if there is none.
    const std::string &config_path() const { return config_path_; }
    std::uint64_t bytes() const;

private:
    void open_folder(const std::string &folder);
    void open_indexed(const std::string &folder, const std::string &index);
    void open_shards(const std::vector<std::string> &paths);
    void collect();

    std::vector<Safetensors> shards_;
    std::vector<Tensor> tensors_;
    std::map<std::string, std::string> metadata_;
    std::vector<std::string> files_;
    std::string config_path_;
};
