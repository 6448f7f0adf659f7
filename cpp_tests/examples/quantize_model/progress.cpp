#include "progress.hpp"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "error.hpp"

namespace {

constexpr std::chrono::milliseconds BETWEEN_REWRITES{100};
constexpr std::chrono::seconds BETWEEN_LINES{5};
constexpr std::size_t LONGEST_NAME = 60;

}  // namespace

Progress::Progress(std::string verb, std::size_t total)
    : verb_(std::move(verb)), total_(total), is_terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
    if (is_shown_ && is_terminal_) std::fprintf(stderr, "\r\x1B[K");
}

void Progress::next(const std::string &name) {
    ++done_;
    const auto now = Clock::now();
    if (now - last_ < (is_terminal_ ? Clock::duration(BETWEEN_REWRITES) : Clock::duration(BETWEEN_LINES))) return;
    last_ = now;
    is_shown_ = true;
    const std::string shown = printable(name, LONGEST_NAME);
    if (is_terminal_) {
        std::fprintf(stderr, "\r\x1B[K%s %zu of %zu: %s", verb_.c_str(), done_, total_, shown.c_str());
    } else {
        std::fprintf(stderr, "%s %zu of %zu: %s\n", verb_.c_str(), done_, total_, shown.c_str());
    }
    std::fflush(stderr);
}
