#include "writer.hpp"

#include <unistd.h>

#include <filesystem>

#include "error.hpp"
#include "json.hpp"
#include "model_config.hpp"
#include "progress.hpp"
#include "verify.hpp"

namespace fs = std::filesystem;

namespace {

std::string config_beside(const std::string &out) { return (fs::path(out).parent_path() / "config.json").string(); }

void refuse_input(const Checkpoint &checkpoint, const std::string &target) {
    for (const std::string &file : checkpoint.files()) {
        std::error_code missing;
        if (fs::equivalent(file, target, missing)) throw Error("will not replace " + target + ", a file of the input");
    }
}

// A config.json of something else must not be lost to a mistaken --out.
void refuse_foreign_config(const std::string &target) {
    if (!fs::exists(target)) return;
    const nlohmann::json present = read_json(target);
    if (present.is_object() && present.contains("quantization_config")) return;
    throw Error("will not replace " + target + ", which has no quantization_config");
}

std::string checked(const Checkpoint &checkpoint, const std::string &out) {
    const std::string config = config_beside(out);
    refuse_input(checkpoint, out);
    refuse_input(checkpoint, config);
    refuse_foreign_config(config);
    return out;
}

}  // namespace

Writer::Writer(const Checkpoint &checkpoint, const std::vector<const Tensor *> &selected, const std::string &out,
               bool pow2)
    : layout_(make_layout(checkpoint, selected)),
      config_text_(make_config(checkpoint, selected, pow2)),
      model_(checked(checkpoint, out)),
      config_(config_beside(out)) {
    config_.write(config_text_.data(), config_text_.size(), 0);
    model_.write(layout_.header.data(), layout_.header.size(), 0);
}

void Writer::write(const Tensor &source, const Quantized &quantized) {
    const OutputTensor &codes = layout_.find(source, Content::CODES);
    const OutputTensor &scales = layout_.find(source, Content::SCALES);
    model_.write(quantized.codes.data(), quantized.codes.size(), layout_.offset(codes));
    model_.write(quantized.scales.data(), quantized.scales.size() * sizeof(float), layout_.offset(scales));
}

void Writer::copy_kept() {
    Progress progress("copying", layout_.tensors.size());
    for (const OutputTensor &tensor : layout_.tensors) {
        progress.next(tensor.info.name);
        if (tensor.content != Content::COPY) continue;
        model_.write(tensor.source->data, tensor.source->bytes(), layout_.offset(tensor));
    }
}

void Writer::finish(const Quantizer &quantizer) {
    copy_kept();
    model_.sync();
    config_.sync();
    verify_model(model_.path(), layout_, quantizer);
    verify_config(config_.path(), config_text_);
    rename();
}

// The model comes last: whoever finds it finds its config.json too.
void Writer::rename() {
    const bool had_config = fs::exists(config_.target());
    config_.rename();
    try {
        model_.rename();
    } catch (...) {
        if (!had_config) ::unlink(config_.target().c_str());
        throw;
    }
    sync_folder_of(model_.target());
}
