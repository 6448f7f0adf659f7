// The two contexts of a test program: the GPU, and the host, whose bytes are the reference.

#ifndef FP8RT_TEST_CONTEXTS_HPP
#define FP8RT_TEST_CONTEXTS_HPP

#include "cuda.hpp"
#include "fp8rt.hpp"

namespace fp8rt_test {

// Made by main before the first test, and destroyed by it after the last.
const fp8rt::Context &gpu();
const fp8rt::Context &host();

inline fp8rt::Context gpu_context(int device) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.device = device;
  return fp8rt::Context(desc);
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_CONTEXTS_HPP
