// Kernels of a cubin: an ELF file with a section .text.<name> for each, and its parameters in .nv.info.<name>.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fake_cuda {

struct Parameter {
  std::uint32_t offset;
  std::uint32_t bytes;
};

struct Kernel {
  std::string name;
  std::vector<Parameter> parameters;
  // Threads of a block that the kernel was compiled for; 0: not said.
  std::uint32_t max_threads;
  std::uint32_t static_shared_bytes;
};

struct Cubin {
  // 90 for sm_90 and sm_90a.
  int architecture;
  std::vector<Kernel> kernels;
};

// False if this is no cubin. An image carries its own length, so the caller gives none.
bool read_cubin(const void *image, Cubin &cubin);

}  // namespace fake_cuda
