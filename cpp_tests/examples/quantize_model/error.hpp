// The one exception of the program: a line for a person, printed by main.
#pragma once

#include <stdexcept>
#include <string>

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// For UTF-8 that comes from a file: without control characters, on one line, and of bounded length.
std::string printable(const std::string &text, std::size_t longest = 200);

// `verb path: reason of errno`.
Error system_error(const std::string &verb, const std::string &path);
