// The code of the device for one instantiation. The build (src/kernels/build/cutlass.rs) says which, and its name.

#include "gemm.h"

namespace fp8rt {
using Chosen = Gemm<ARCHITECTURE, OPERANDS, TILE_ROWS, TILE_COLUMNS, CLUSTER_ROWS, CLUSTER_COLUMNS, OUTPUT>;
using Kernel = Chosen::Kernel;
constexpr uint32_t kThreads = Kernel::MaxThreadsPerBlock, kBlocks = Kernel::MinBlocksPerMultiprocessor;
}  // namespace fp8rt

extern "C" __global__ void __launch_bounds__(fp8rt::kThreads, fp8rt::kBlocks)
    NAME(const __grid_constant__ fp8rt::Kernel::Params parameters) {
  extern __shared__ char shared[];
  fp8rt::Kernel kernel;
  kernel(parameters, shared);
}
