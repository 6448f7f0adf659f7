// The trainer's side: values that change at each step, the buckets that they travel in, and what the engine must have.
#pragma once

#include <fp8rt.hpp>
#include <string>
#include <vector>

#include "memory.hpp"
#include "model.hpp"

// Rows of a tensor, and where they lie in a bucket.
struct Cut {
    std::size_t tensor;
    std::int64_t row, rows;
    std::size_t offset;
};

// Every tensor in order, cut on blocks of 128 rows where a bucket is full. Throws if 128 rows do not fit into one.
std::vector<std::vector<Cut>> make_buckets(const Model &model, std::size_t bytes);

// Random bf16 values like those of weights, the same for the same tensor, element and step.
class Values {
public:
    explicit Values(std::uint32_t threads);

    void fill(unsigned char *to, const TrainerTensor &tensor, const Cut &cut, int step) const;

private:
    std::vector<std::uint16_t> table_;
    unsigned threads_;
};

// What the trainer computes from the tensors that it sends: the fingerprint that each must have in the engine.
class Expectation {
public:
    // `context` runs on `device`, where the tensors lie that are added.
    Expectation(const fp8rt::Context &context, Device &device, int ordinal, const Model &model,
                const std::vector<std::vector<Cut>> &buckets);

    void clear();
    void add(const Cut &cut, const fp8rt_tensor &values);
    std::vector<fp8rt_fingerprint> read() const;

private:
    const fp8rt::Context &context_;
    Device &device_;
    int ordinal_;
    const Model &model_;
    Buffer codes_, scales_, sums_;
};
