// Reads one safetensors file. Everything in its header is checked before any of it is used.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mapped_file.hpp"

struct TensorInfo {
    std::string name;
    std::string dtype;
    unsigned bits = 0;  // of one element
    std::vector<std::uint64_t> shape;
    std::uint64_t begin = 0;  // bytes, from the end of the header
    std::uint64_t end = 0;
};

// Bits of one element; 0 for a dtype that the format does not have.
unsigned bits_of_dtype(const std::string &dtype);

// Longest header that the format allows.
constexpr std::uint64_t LONGEST_HEADER = 100'000'000;

class Safetensors {
public:
    // Throws an Error that names the file, and the tensor where there is one.
    explicit Safetensors(const std::string &path);

    const std::string &path() const { return file_.path(); }
    const std::vector<TensorInfo> &tensors() const { return tensors_; }  // in the order of the data
    const std::map<std::string, std::string> &metadata() const { return metadata_; }
    // First byte of a tensor of this file. May be at any alignment.
    const std::uint8_t *data(const TensorInfo &tensor) const { return file_.data() + data_start_ + tensor.begin; }

private:
    void read_header();
    void check_coverage() const;

    MappedFile file_;
    std::uint64_t data_start_ = 0;
    std::vector<TensorInfo> tensors_;
    std::map<std::string, std::string> metadata_;
};
