// A user's program in C++: both installed headers, with the library found by CMake.
#include <fp8rt.h>
#include <fp8rt.hpp>

#include <cstdio>

int main() {
  std::puts(fp8rt_build_info());
  return fp8rt_abi_version() == FP8RT_ABI_VERSION ? 0 : 1;
}
