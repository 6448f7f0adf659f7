// A look at the bytes that the engine has, past the plan that wrote them.
#pragma once

#include <cstddef>
#include <fp8rt.hpp>
#include <string>
#include <vector>

#include "memory.hpp"
#include "model.hpp"
#include "trainer.hpp"

// Reads the last block of rows of every tensor from the engine's memory, at the addresses that it was given before the
// first refit, and compares it byte by byte: codes and scales with what fp8rt_quantize_weight makes on the host of the
// values that the trainer sent, what is kept with the values. On a GPU both halves of the library must agree.
class SpotCheck {
public:
    struct Result {
        std::size_t bytes = 0;
        std::vector<std::string> different;
    };

    SpotCheck(const fp8rt::Context &host, Device &device, const Model &model, const Values &values)
        : host_(host), device_(device), model_(model), values_(values) {}

    Result run(int step) const;

private:
    // The engine's scales of some rows of a tensor, in the order of `like`.
    std::vector<std::uint32_t> scales_of(const TrainerTensor &tensor, std::int64_t row, const fp8rt_tensor &like) const;
    bool is_right(const TrainerTensor &tensor, std::int64_t row, const std::vector<unsigned char> &values,
                  std::size_t &bytes) const;

    const fp8rt::Context &host_;
    Device &device_;
    const Model &model_;
    const Values &values_;
};
