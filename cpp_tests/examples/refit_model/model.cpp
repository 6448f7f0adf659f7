#include "model.hpp"

#include <stdexcept>

namespace {

std::int64_t blocks_of(std::int64_t rows) { return (rows + 127) / 128; }

}  // namespace

Model::Model(const Options &options, std::int64_t scale_down, const fp8rt::Policy &policy)
    : options_(options), scale_down_(scale_down), policy_(policy) {
    const std::int64_t hidden = 4096 / scale_down, key_value = 1024 / scale_down;
    const std::int64_t intermediate = 14336 / scale_down, vocabulary = 128256 / scale_down;
    const auto alone = [&](const std::string &name, std::int64_t rows, std::int64_t columns) {
        add(name, {{name, rows}}, columns);
    };
    alone("model.embed_tokens.weight", vocabulary, hidden);
    for (int layer = 0; layer < options.layers; ++layer) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".";
        const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
        alone(prefix + "input_layernorm.weight", 1, hidden);
        add(attention + "qkv_proj.weight",
            {{attention + "q_proj.weight", hidden},
             {attention + "k_proj.weight", key_value},
             {attention + "v_proj.weight", key_value}},
            hidden);
        alone(attention + "o_proj.weight", hidden, hidden);
        alone(prefix + "post_attention_layernorm.weight", 1, hidden);
        add(mlp + "gate_up_proj.weight",
            {{mlp + "gate_proj.weight", intermediate}, {mlp + "up_proj.weight", intermediate}}, hidden);
        alone(mlp + "down_proj.weight", hidden, intermediate);
    }
    alone("model.norm.weight", 1, hidden);
    alone("lm_head.weight", vocabulary, hidden);
}

void Model::add(const std::string &name, const std::vector<Part> &parts, std::int64_t columns) {
    parameters_.push_back({});
    Parameter &parameter = parameters_.back();
    parameter.name = name, parameter.columns = columns, parameter.rows = 0;
    fp8rt_policy_decision decision{};
    std::int64_t blocks = 0;
    for (const Part &part : parts) {
        // Without its one row a norm is a vector.
        const auto asked = part.rows == 1 ? policy_.decide(part.name, {columns})
                                          : policy_.decide(part.name, {part.rows, columns});
        // The policy decides alike for what runs as one.
        decision = asked.values;
        parameter.fp8 = asked.fp8;
        // A packed scale has a row for each row of the weight, a float one for each block.
        const bool packed = decision.weight_scale_format == FP8RT_SCALE_FORMAT_UE8M0_PACKED;
        tensors_.push_back({part.name, part.rows, columns, asked.fp8, parameters_.size() - 1, parameter.rows,
                            packed ? parameter.rows : blocks});
        blocks += blocks_of(part.rows);
        parameter.part_rows.push_back(part.rows);
        parameter.rows += part.rows;
    }
    lay_out(parameter, decision);
}

void Model::lay_out(Parameter &parameter, const fp8rt_policy_decision &decision) {
    const std::size_t elements = static_cast<std::size_t>(parameter.rows * parameter.columns);
    parameter.quantize = fp8rt::quantize_desc();
    parameter.quantize.recipe = decision.weight_recipe;
    parameter.quantize.scale_format = decision.weight_scale_format;
    parameter.code_bytes = parameter.fp8 ? elements : 2 * elements;
    parameter.codes_view = fp8rt::tensor(nullptr, parameter.fp8 ? FP8RT_DTYPE_E4M3 : FP8RT_DTYPE_BF16,
                                         {parameter.rows, parameter.columns});
    parameter.codes_view.device = options_.device;
    bytes_ += parameter.code_bytes;
    if (!parameter.fp8) return;
    fp8rt_quantize_desc layout = parameter.quantize;
    layout.part_rows = parameter.part_rows.data();
    layout.num_parts = static_cast<std::uint32_t>(parameter.part_rows.size());
    fp8rt::check(fp8rt_weight_scales_layout(&layout, 0, parameter.rows, parameter.columns, &parameter.scales_view));
    parameter.scale_bytes = static_cast<std::size_t>(parameter.scales_view.bytes);
    parameter.scales_view.device = options_.device;
    bytes_ += parameter.scale_bytes;
}

void Model::allocate(Device &device) {
    for (Parameter &parameter : parameters_) {
        parameter.codes = Buffer(device, parameter.code_bytes);
        parameter.codes_view.data = parameter.codes.data();
        if (!parameter.fp8) continue;
        parameter.scales = Buffer(device, parameter.scale_bytes);
        parameter.scales_view.data = parameter.scales.data();
    }
}

std::size_t Model::trainer_bytes() const {
    std::size_t values = 0;
    for (const TrainerTensor &tensor : tensors_) values += static_cast<std::size_t>(tensor.rows * tensor.columns);
    return 2 * values;
}

std::size_t Model::find(const std::string &name) const {
    for (std::size_t index = 0; index < tensors_.size(); ++index) {
        if (tensors_[index].name == name) return index;
    }
    throw std::runtime_error("no tensor is called " + name);
}

fp8rt::Refit Model::make_plan(const fp8rt::Context &context) const {
    std::vector<fp8rt_refit_destination> destinations;
    for (const Parameter &parameter : parameters_) {
        fp8rt_refit_destination destination =
            fp8rt::refit_destination(parameter.name.c_str(), parameter.codes_view, parameter.scales_view);
        destination.recipe = parameter.quantize.recipe;
        destination.scale_format = parameter.quantize.scale_format;
        destination.part_rows = parameter.part_rows.data();
        destination.num_parts = static_cast<std::uint32_t>(parameter.part_rows.size());
        destinations.push_back(destination);
    }
    // Every tensor is a region, so that fingerprints are counted by the names that the trainer has.
    std::vector<fp8rt_refit_region> regions;
    for (const TrainerTensor &tensor : tensors_) {
        regions.push_back({tensor.name.c_str(), static_cast<std::uint32_t>(tensor.parameter), 0, {0, 0, 0},
                           {1, tensor.rows, tensor.columns}, {0, tensor.first_row, 0}});
    }
    return fp8rt::Refit(context, destinations, regions);
}
