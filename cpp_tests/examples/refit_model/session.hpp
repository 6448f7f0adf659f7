// Refits, step by step: streams buckets through the plan, and compares both sides.
#pragma once

#include <fp8rt.hpp>
#include <memory>
#include <string>
#include <vector>

#include "memory.hpp"
#include "model.hpp"
#include "spot_check.hpp"
#include "trainer.hpp"

// What one refit did.
struct Step {
    double milliseconds = 0;
    fp8rt_refit_receipt receipt{};
    fp8rt_health health{};
    fp8rt_fingerprint fingerprint{};
    // Bytes that the runs of the plan added to the memory in use.
    std::size_t grown = 0;
    // Tensors whose fingerprint is not the trainer's.
    std::vector<std::string> different;
    SpotCheck::Result spots;

    bool is_right() const { return different.empty() && spots.different.empty(); }
    double gigabytes_per_second() const {
        return static_cast<double>(receipt.bytes_read + receipt.bytes_written) / milliseconds / 1e6;
    }
};

class Session {
public:
    Session(const Options &options, const fp8rt::Policy &policy);

    Step refit(int step);
    // Compares the engine with what the last refit, number `step`, brought.
    void compare(int step, Step &result) const;
    // Flips one bit of the engine's copy of a tensor.
    void corrupt(const std::string &name);
    // In the form that the ending of the path says.
    std::string report(std::uint32_t format) const;

    const Model &model() const { return model_; }
    std::size_t buckets() const { return buckets_.size(); }
    // Memory of the device beside the model: a bucket, or staging.
    std::size_t extra_bytes() const {
        return (options_.device < 0 ? pinned_.bytes() : bucket_.bytes()) + staging_.bytes();
    }

private:
    void run(const std::vector<Cut> &bucket, int step, Step &result);
    fp8rt_tensor place(const Cut &cut, unsigned char *memory, int device) const;

    const Options &options_;
    std::unique_ptr<Device> device_, host_;
    fp8rt::Context context_, host_context_;
    Model model_;
    fp8rt::Refit plan_;
    std::vector<std::vector<Cut>> buckets_;
    Values values_;
    Expectation expectation_;
    SpotCheck spot_check_;
    // The trainer's tensors before they are sent; on a GPU the bucket there, or staging for tensors that stay on the
    // host.
    Buffer pinned_, bucket_, staging_, health_, sums_, errors_;
};
