// Which tensors of a checkpoint are weights of a linear, to be quantized.
#pragma once

#include <string>

#include "safetensors.hpp"

// The rule in words, for --help.
extern const char *const SELECTION_RULE;

// A matrix whose name ends in ".weight", of any dtype and any name before it.
bool is_module_weight(const TensorInfo &tensor);

// What SELECTION_RULE says.
bool is_linear_weight(const TensorInfo &tensor);
