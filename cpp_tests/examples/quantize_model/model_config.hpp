// config.json of the quantized checkpoint.
#pragma once

#include <string>
#include <vector>

#include "checkpoint.hpp"

// The text of the source's config.json, or of a new one, with quantization_config in it. Keys that are there stay; one
// that says something else than what was done is an error. Modules of `kept` matrices are named as not converted.
std::string make_config(const Checkpoint &checkpoint, const std::vector<const Tensor *> &selected, bool pow2);
