// Which tensors the quantized checkpoint has, and where.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint.hpp"

enum class Content { COPY, CODES, SCALES };

struct OutputTensor {
    TensorInfo info;  // offsets as in the new file
    Content content;
    const Tensor *source;
};

struct Layout {
    // Ordered as safetensors does: wide elements first, then by name. So every tensor is aligned to its elements.
    std::vector<OutputTensor> tensors;
    // The length, the JSON and its padding to 8 bytes: everything before the data.
    std::string header;
    std::map<std::pair<const Tensor *, Content>, std::size_t> index;

    const OutputTensor &find(const Tensor &source, Content content) const;
    std::uint64_t offset(const OutputTensor &tensor) const { return header.size() + tensor.info.begin; }
};

// `selected` become NAME.weight in F8_E4M3 and NAME.weight_scale_inv in F32; all others stay as they are.
Layout make_layout(const Checkpoint &checkpoint, const std::vector<const Tensor *> &selected);
