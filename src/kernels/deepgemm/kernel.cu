// One instantiation of DeepGEMM's FP8 kernel for Hopper: 1x128 scales of the activation, 128x128 of the weight. Which one is
// said by the build (src/kernels/tiles.rs).

#include <cuda_runtime.h>
#include <cutlass/arch/reg_reconfig.h>
#include <deep_gemm/scheduler/gemm.cuh>

// The kernel is the package's; some of the names that it uses are given other meanings here.

namespace deep_gemm::sched {

// Says when a thread block has no tile left. The thread that loads hears it first, when its last loads are on their way: from
// then on the next kernel may start, and ask for its own weight while this one finishes.
template <GemmType kType, uint32_t... kNumbers>
struct ReleasingScheduler : Scheduler<kType, kNumbers...> {
  using Scheduler<kType, kNumbers...>::Scheduler;

  __device__ __forceinline__ bool get_next_block(uint32_t &m_block, uint32_t &n_block) {
    const bool more = Scheduler<kType, kNumbers...>::get_next_block(m_block, n_block);
    if (!more) asm volatile("griddepcontrol.launch_dependents;");
    return more;
  }
};

}  // namespace deep_gemm::sched

// Where one group of threads multiplies, its registers fit without taking them from the threads that load. What is not
// taken leaves room for the thread blocks of the next kernel, or for another one of this.
namespace cutlass::arch {

template <uint32_t kRegisters>
__device__ __forceinline__ void take_registers() {
  if constexpr (MATH_THREADS > 128) warpgroup_reg_alloc<kRegisters>();
}

template <uint32_t kRegisters>
__device__ __forceinline__ void give_registers() {
  if constexpr (MATH_THREADS > 128) warpgroup_reg_dealloc<kRegisters>();
}

}  // namespace cutlass::arch
#define warpgroup_reg_alloc take_registers
#define warpgroup_reg_dealloc give_registers


// Where two groups multiply, every register is taken: the release stands where none is live, and the next kernel finds no
// room before this one ends.
namespace fp8rt {

__device__ __forceinline__ void wait_and_release() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
}

}  // namespace fp8rt

#if MATH_THREADS > 128
#define cudaGridDependencySynchronize fp8rt::wait_and_release
#else
#define Scheduler ReleasingScheduler
#endif
#include <deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh>

// An address is taken, so the compiler makes the kernel.
static void instantiate() {
  using namespace deep_gemm;
  constexpr uint32_t kRunTime = 0, kShapeN = WEIGHT_ROWS, kShapeK = WEIGHT_COLUMNS;
  constexpr uint32_t kOneGroup = 1, kSwizzle = 128, kLoadThreads = 128;
  auto kernel = &sm90_fp8_gemm_1d2d_impl<cute::UMMA::Major::K, kRunTime, kShapeN, kShapeK, kOneGroup, BLOCK_ROWS,
                                         BLOCK_COLUMNS, 128, kSwizzle, kSwizzle, OUTPUT_SWIZZLE, STAGES, kLoadThreads,
                                         MATH_THREADS, CLUSTER, bool(SHARES_ACTIVATION), THREAD_BLOCKS, GemmType::Normal,
                                         cutlass::bfloat16_t>;
  static_cast<void>(reinterpret_cast<void *>(kernel));
}
