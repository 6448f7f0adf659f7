#include "verify.hpp"

#include <cstring>

#include "error.hpp"
#include "mapped_file.hpp"
#include "progress.hpp"

namespace {

bool same_place(const TensorInfo &a, const TensorInfo &b) {
    return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin && a.end == b.end;
}

// The order of tensors without elements is not kept by offsets alone, so each is looked up.
const TensorInfo &find(const std::map<std::string, const TensorInfo *> &present, const OutputTensor &wanted,
                       const std::string &path) {
    const auto found = present.find(wanted.info.name);
    if (found == present.end() || !same_place(*found->second, wanted.info)) {
        throw Error(path + ": reading back, tensor \"" + printable(wanted.info.name) + "\" is not as it was written");
    }
    return *found->second;
}

void compare(const Safetensors &file, const TensorInfo &info, const void *expected, std::size_t bytes) {
    const bool has_bytes = info.end - info.begin == bytes;
    const bool same = has_bytes && (bytes == 0 || std::memcmp(file.data(info), expected, bytes) == 0);
    if (!same) throw Error(file.path() + ": reading back, tensor \"" + printable(info.name) + "\" has other bytes");
}

}  // namespace

void verify_model(const std::string &path, const Layout &layout, const Quantizer &quantizer) {
    const Safetensors file(path);
    std::map<std::string, const TensorInfo *> present;
    for (const TensorInfo &info : file.tensors()) present[info.name] = &info;
    if (present.size() != layout.tensors.size()) throw Error(path + ": reading back, tensors are missing");

    Progress progress("comparing", layout.tensors.size());
    for (const OutputTensor &tensor : layout.tensors) {
        progress.next(tensor.info.name);
        const TensorInfo &info = find(present, tensor, path);
        if (tensor.content == Content::COPY) {
            compare(file, info, tensor.source->data, tensor.source->bytes());
        } else if (tensor.content == Content::CODES) {
            const AlignedWeight weight(*tensor.source);
            const Quantized again = quantizer.quantize(weight.view());
            const OutputTensor &scales = layout.find(*tensor.source, Content::SCALES);
            compare(file, info, again.codes.data(), again.codes.size());
            compare(file, find(present, scales, path), again.scales.data(), again.scales.size() * sizeof(float));
        }
    }
}

void verify_config(const std::string &path, const std::string &text) {
    const MappedFile file(path);
    const bool same = file.size() == text.size() && std::memcmp(file.data(), text.data(), text.size()) == 0;
    if (!same) throw Error(path + ": reading back, the file has other bytes");
}
