// What the program is at, on stderr, for work that takes seconds.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

class Progress {
public:
    explicit Progress(std::string verb, std::size_t total);
    ~Progress();
    Progress(const Progress &) = delete;
    Progress &operator=(const Progress &) = delete;

    // Says that the next of `total` is begun: one line that is rewritten on a terminal, else a line every few seconds.
    void next(const std::string &name);

private:
    using Clock = std::chrono::steady_clock;

    std::string verb_;
    std::size_t total_;
    std::size_t done_ = 0;
    bool is_terminal_;
    bool is_shown_ = false;
    Clock::time_point last_ = Clock::now();
};
