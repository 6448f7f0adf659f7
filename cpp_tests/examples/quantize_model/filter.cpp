#include "filter.hpp"

#include "error.hpp"

Filter::Filter(const std::string &pattern) {
    const int code = ::regcomp(&compiled_, pattern.c_str(), REG_EXTENDED | REG_NOSUB);
    if (code == 0) return;
    char reason[200];
    ::regerror(code, &compiled_, reason, sizeof reason);
    throw Error("--filter is \"" + printable(pattern) + "\": " + reason);
}

Filter::~Filter() { ::regfree(&compiled_); }

bool Filter::matches(const std::string &name) const {
    return ::regexec(&compiled_, name.c_str(), 0, nullptr, 0) == 0;
}
