// Replaces malloc and its kin by the same ones of glibc, counted.

#include "counted_memory.hpp"

#include <cerrno>
#include <cstdlib>

namespace {

thread_local std::size_t calls = 0;

}  // namespace

std::size_t fp8rt_test::allocator_calls() { return calls; }

extern "C" {

void *__libc_malloc(std::size_t bytes);
void *__libc_calloc(std::size_t count, std::size_t bytes);
void *__libc_realloc(void *memory, std::size_t bytes);
void *__libc_memalign(std::size_t alignment, std::size_t bytes);
void __libc_free(void *memory);

void *malloc(std::size_t bytes) {
  ++calls;
  return __libc_malloc(bytes);
}

void *calloc(std::size_t count, std::size_t bytes) {
  ++calls;
  return __libc_calloc(count, bytes);
}

void *realloc(void *memory, std::size_t bytes) {
  ++calls;
  return __libc_realloc(memory, bytes);
}

void *memalign(std::size_t alignment, std::size_t bytes) {
  ++calls;
  return __libc_memalign(alignment, bytes);
}

void *aligned_alloc(std::size_t alignment, std::size_t bytes) {
  ++calls;
  return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **memory, std::size_t alignment, std::size_t bytes) {
  ++calls;
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}

void free(void *memory) {
  ++calls;
  __libc_free(memory);
}
}
