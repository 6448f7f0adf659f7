// Inputs that are made from a seed, as encoding 1 of FORMAT.md says.
#pragma once

#include "golden_vectors.hpp"

namespace golden {

Bytes generated_input(const Bytes &parameters, const Case &described);

}  // namespace golden
