// The regular expression of --filter.
#pragma once

#include <regex.h>

#include <string>

class Filter {
public:
    // An empty pattern matches every name.
    explicit Filter(const std::string &pattern);
    ~Filter();
    Filter(const Filter &) = delete;
    Filter &operator=(const Filter &) = delete;

    bool matches(const std::string &name) const;

private:
    regex_t compiled_;
};
