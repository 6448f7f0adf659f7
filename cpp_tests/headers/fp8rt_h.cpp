// The C header needs nothing before it and may come twice, in C++ too.
#include "fp8rt.h"
#include "fp8rt.h"

#include <type_traits>

static_assert(sizeof(fp8rt_status) == 4, "a status is an int32_t");
static_assert(std::is_standard_layout<fp8rt_tensor>::value, "a tensor is a C struct");
