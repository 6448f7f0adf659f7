// Counts the allocations of the whole process: malloc and its kin are replaced for the program that links
// counted_memory.cpp.

#ifndef FP8RT_TEST_COUNTED_MEMORY_HPP
#define FP8RT_TEST_COUNTED_MEMORY_HPP

#include <cstddef>

namespace fp8rt_test {

// Calls of malloc, calloc, realloc, aligned allocation and free on this thread since it started.
std::size_t allocator_calls();

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_COUNTED_MEMORY_HPP
