// The model as both sides see it: the trainer's tensors by name, and the engine's parameters at addresses that stay.
#pragma once

#include <deque>
#include <fp8rt.hpp>
#include <string>
#include <vector>

#include "memory.hpp"
#include "options.hpp"

// What the trainer sends.
struct TrainerTensor {
    std::string name;
    std::int64_t rows, columns;
    bool fp8;
    // Where it goes: a parameter of the engine, and the first row in it and in its scales.
    std::size_t parameter;
    std::int64_t first_row, first_scale_row;
};

// What the engine holds.
struct Parameter {
    std::string name;
    std::int64_t rows, columns;
    bool fp8;
    std::vector<std::int64_t> part_rows;
    std::size_t code_bytes, scale_bytes;
    Buffer codes, scales;  // of one that is kept, `codes` has its values
    fp8rt_tensor codes_view, scales_view;
    fp8rt_quantize_desc quantize;
};

class Model {
public:
    // Asks `policy` about every tensor. Takes no memory for them yet.
    Model(const Options &options, std::int64_t scale_down, const fp8rt::Policy &policy);

    // Gives the engine's parameters their addresses, which stay.
    void allocate(Device &device);

    const std::deque<TrainerTensor> &tensors() const { return tensors_; }
    const Parameter &parameter_of(const TrainerTensor &tensor) const { return parameters_[tensor.parameter]; }
    // Its index, or an exception that says that there is none.
    std::size_t find(const std::string &name) const;
    std::size_t parameters() const { return parameters_.size(); }
    std::size_t bytes() const { return bytes_; }
    std::size_t trainer_bytes() const;
    std::int64_t scale_down() const { return scale_down_; }

    fp8rt::Refit make_plan(const fp8rt::Context &context) const;

private:
    struct Part {
        std::string name;
        std::int64_t rows;
    };

    // One parameter of the engine, made of these tensors of the trainer, one below the other.
    void add(const std::string &name, const std::vector<Part> &parts, std::int64_t columns);
    void lay_out(Parameter &parameter, const fp8rt_policy_decision &decision);

    const Options &options_;
    std::int64_t scale_down_;
    const fp8rt::Policy &policy_;
    std::deque<TrainerTensor> tensors_;
    std::deque<Parameter> parameters_;
    std::size_t bytes_ = 0;
};
