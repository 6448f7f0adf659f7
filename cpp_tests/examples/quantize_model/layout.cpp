#include "layout.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "error.hpp"

using nlohmann::json;

namespace {

constexpr std::uint64_t BLOCK = 128;

std::uint64_t blocks(std::uint64_t extent) { return (extent + BLOCK - 1) / BLOCK; }

OutputTensor describe(const Tensor &source, Content content) {
    OutputTensor result{*source.info, content, &source};
    TensorInfo &info = result.info;
    std::uint64_t bytes = source.bytes();
    if (content == Content::CODES) {
        info.dtype = "F8_E4M3";
        bytes = info.shape[0] * info.shape[1];
    } else if (content == Content::SCALES) {
        info.name += "_scale_inv";
        info.dtype = "F32";
        info.shape = {blocks(info.shape[0]), blocks(info.shape[1])};
        bytes = info.shape[0] * info.shape[1] * sizeof(float);
    }
    info.bits = bits_of_dtype(info.dtype);
    info.begin = 0;
    info.end = bytes;
    return result;
}

void check_names(const Checkpoint &checkpoint, const std::vector<OutputTensor> &tensors) {
    std::set<std::string> names;
    for (const OutputTensor &tensor : tensors) {
        if (!names.insert(tensor.info.name).second) {
            throw Error(checkpoint.files().front() + ": has a tensor \"" + printable(tensor.info.name) +
                        "\" already, the name of new scales");
        }
    }
}

void place(std::vector<OutputTensor> &tensors) {
    std::sort(tensors.begin(), tensors.end(), [](const OutputTensor &a, const OutputTensor &b) {
        return std::tie(b.info.bits, a.info.name) < std::tie(a.info.bits, b.info.name);
    });
    std::uint64_t next = 0;
    for (OutputTensor &tensor : tensors) {
        tensor.info.begin = next;
        next = tensor.info.end += next;
    }
}

// Written piece by piece: a JSON object would order the tensors by name.
std::string header_of(const std::map<std::string, std::string> &metadata, const std::vector<OutputTensor> &tensors) {
    std::string text = "{";
    if (!metadata.empty()) text += "\"__metadata__\":" + json(metadata).dump() + ",";
    for (const OutputTensor &tensor : tensors) {
        const TensorInfo &info = tensor.info;
        text += json(info.name).dump() + ":{\"dtype\":" + json(info.dtype).dump() +
                ",\"shape\":" + json(info.shape).dump() + ",\"data_offsets\":[" + std::to_string(info.begin) + "," +
                std::to_string(info.end) + "]},";
    }
    text.back() = '}';
    while (text.size() % 8 != 0) text += ' ';
    if (text.size() > LONGEST_HEADER) throw Error("the new header is longer than the format allows");
    std::string length;
    for (unsigned byte = 0; byte < 8; ++byte) length += static_cast<char>(text.size() >> (8 * byte) & 0xFF);
    return length + text;
}

}  // namespace

const OutputTensor &Layout::find(const Tensor &source, Content content) const {
    return tensors[index.at({&source, content})];
}

Layout make_layout(const Checkpoint &checkpoint, const std::vector<const Tensor *> &selected) {
    const std::set<const Tensor *> quantized(selected.begin(), selected.end());
    Layout layout;
    for (const Tensor &tensor : checkpoint.tensors()) {
        if (quantized.count(&tensor) == 0) {
            layout.tensors.push_back(describe(tensor, Content::COPY));
        } else {
            layout.tensors.push_back(describe(tensor, Content::CODES));
            layout.tensors.push_back(describe(tensor, Content::SCALES));
        }
    }
    check_names(checkpoint, layout.tensors);
    place(layout.tensors);
    for (std::size_t at = 0; at < layout.tensors.size(); ++at) {
        layout.index[{layout.tensors[at].source, layout.tensors[at].content}] = at;
    }
    layout.header = header_of(checkpoint.metadata(), layout.tensors);
    return layout;
}
