// The command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Options {
    std::string model;    // a file or a folder
    std::string library;  // empty: look for it
    std::vector<std::uint32_t> recipes;
    bool pow2 = false;
    std::uint32_t threads = 0;  // 0: all
    std::int64_t rows = 16;
    std::string filter;  // empty: every tensor
    std::string out;     // empty: write nothing
};

// The name of an fp8rt_recipe as the command line has it.
const char *recipe_name(std::uint32_t recipe);

// Prints and exits for --help (0) and for a command line that means nothing (2).
Options parse_options(int count, char **arguments);
