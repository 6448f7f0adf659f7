// The C++ header needs nothing before it and may come twice.
#include "fp8rt.hpp"
#include "fp8rt.hpp"
