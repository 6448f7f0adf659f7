// Writes the quantized checkpoint beside its final name, reads it back, and only then gives it the name.
#pragma once

#include <string>
#include <vector>

#include "checkpoint.hpp"
#include "layout.hpp"
#include "quantizer.hpp"
#include "temporary_file.hpp"

class Writer {
public:
    // Refuses names that would replace a file of the input. Nothing has its final name before finish().
    Writer(const Checkpoint &checkpoint, const std::vector<const Tensor *> &selected, const std::string &out,
           bool pow2);

    void write(const Tensor &source, const Quantized &quantized);
    // Copies what is not quantized, compares everything with the source, and names the files.
    void finish(const Quantizer &quantizer);

    std::size_t tensor_count() const { return layout_.tensors.size(); }
    std::uint64_t bytes() const { return layout_.header.size() + layout_.tensors.back().info.end; }
    const std::string &config_path() const { return config_.target(); }

private:
    void copy_kept();
    void rename();

    Layout layout_;
    std::string config_text_;
    TemporaryFile model_;
    TemporaryFile config_;
};
