// Reads back what was written and compares it, bit for bit, with what it was made from.
#pragma once

#include <string>

#include "layout.hpp"
#include "quantizer.hpp"

// Codes and scales are compared with a second quantization: nothing of the first need stay in memory.
void verify_model(const std::string &path, const Layout &layout, const Quantizer &quantizer);

void verify_config(const std::string &path, const std::string &text);
