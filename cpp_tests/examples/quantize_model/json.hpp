// JSON from a file that may be damaged or hostile.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

// Parses one document. A key that appears twice in an object, or nesting deeper than any real file has, is an error,
// which names `where`.
nlohmann::json parse_json(const char *text, std::size_t length, const std::string &where);

// Reads and parses a whole file, at most 100 MB.
nlohmann::json read_json(const std::string &path);
