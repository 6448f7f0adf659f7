// What the command line asks for.
#pragma once

#include <cstdint>
#include <string>

struct Options {
    int device = -1;
    int layers = 32;
    // 0: the least that fits into memory.
    std::int64_t scale_down = 0;
    // 0: nine tenths of what is free.
    std::int64_t memory_mib = 0;
    std::int64_t bucket_mib = 1024;
    int refits = 2;
    bool host_sources = false;
    std::uint32_t threads = 0;
    std::string settings;  // a file; empty: fp8 with the first and the last layer in bf16
    std::string receipt, report, corrupt;
};

// Exits with what --help says, or with 2 and a reason.
Options parse_options(int count, char **arguments);
