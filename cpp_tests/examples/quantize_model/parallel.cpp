#include "parallel.hpp"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace {

// Joins however the scope ends: a running thread must not be destroyed.
struct Workers {
    std::vector<std::thread> threads;

    void join() {
        for (std::thread &thread : threads) {
            if (thread.joinable()) thread.join();
        }
    }

    ~Workers() { join(); }
};

}  // namespace

void for_each_range(std::int64_t count, unsigned threads, const RangeBody &body) {
    const std::int64_t ranges = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, count));
    std::vector<std::exception_ptr> failures(static_cast<std::size_t>(ranges));
    const auto run = [&](std::int64_t range) noexcept {
        const auto start_of = [&](std::int64_t at) { return count / ranges * at + std::min(at, count % ranges); };
        try {
            body(start_of(range), start_of(range + 1));
        } catch (...) {
            failures[static_cast<std::size_t>(range)] = std::current_exception();
        }
    };
    Workers workers;
    for (std::int64_t range = 1; range < ranges; ++range) workers.threads.emplace_back(run, range);
    run(0);
    workers.join();
    for (const std::exception_ptr &failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}
