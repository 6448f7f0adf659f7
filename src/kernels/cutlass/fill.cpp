// The host's half of the kernels: their parameters and the sizes of a launch. Nothing here launches, allocates, prints,
// throws or knows a device. The build (src/kernels/build/cutlass.rs) says which kernels there are.

#include "plain_cpp.h"

#include <new>

#include "gemm.h"
#include "problem.h"

namespace fp8rt {
namespace {

using Problem = fp8rt_cutlass_problem;
using Launch = fp8rt_cutlass_launch;

constexpr int64_t kMost = INT32_MAX;

bool is_aligned(const void *address, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

int64_t groups(const Problem &problem) { return ceil_div(int64_t(problem.k), kScaled); }

int64_t bands(const Problem &problem) { return ceil_div(int64_t(problem.n), kScaled); }

// Tiles, with what swizzling them rounds up.
int64_t tiles(const Problem &problem, int rows, int columns) {
  return (ceil_div(int64_t(problem.m), rows) + 16) * (ceil_div(int64_t(problem.n), columns) + 16);
}

// CUTLASS counts rows, scales and tiles in 32 bits.
template <class Gemm>
bool fits(const Problem &problem) {
  for (int64_t extent : {problem.m, problem.n, problem.k, problem.multiprocessors}) {
    if (extent < 1 || extent > kMost - kScaled) return false;
  }
  if (problem.readable_rows < problem.m || problem.readable_rows > kMost - kScaled) return false;
  if (tiles(problem, Gemm::kTileRows, Gemm::kTileColumns) > kMost) return false;
  if (bands(problem) * groups(problem) > kMost || problem.scales_stride > kMost / groups(problem)) return false;
  // This one reads whole blocks.
  return Gemm::kArchitecture != kSm120 || (problem.n % kScaled == 0 && problem.k % kScaled == 0);
}

bool is_stride(int64_t stride, int64_t extent, int64_t multiple) { return stride >= extent && stride % multiple == 0; }

template <class Gemm>
int32_t check(const Problem &problem) {
  if (!fits<Gemm>(problem)) return FP8RT_CUTLASS_EXTENT;
  const bool strides = is_stride(problem.codes_stride, problem.k, Gemm::kCodeAlignment) &&
                       is_stride(problem.weight_stride, problem.k, Gemm::kCodeAlignment) &&
                       is_stride(problem.output_stride, problem.n, Gemm::kOutputAlignment) &&
                       is_stride(problem.scales_stride, problem.readable_rows, 4);
  if (!strides) return FP8RT_CUTLASS_STRIDE;
  const bool aligned = is_aligned(problem.codes, 16) && is_aligned(problem.weight, 16) &&
                       is_aligned(problem.output, 16) && is_aligned(problem.scales, 16) &&
                       is_aligned(problem.weight_scales, alignof(float));
  return aligned ? FP8RT_CUTLASS_OK : FP8RT_CUTLASS_ALIGNMENT;
}

// Of the activation: column-major, a scale for each row.
template <class Layout>
Layout activation_scales(const Problem &problem) {
  const int rows = int(problem.readable_rows), columns = int(groups(problem)), stride = int(problem.scales_stride);
  return Layout(make_shape(make_shape(_1{}, rows), make_shape(Int<kScaled>{}, columns), 1),
                make_stride(make_stride(_0{}, _1{}), make_stride(_0{}, stride), stride * columns));
}

// Of the weight: row-major, a scale for each block.
template <class Layout>
Layout weight_scales(const Problem &problem) {
  const int rows = int(bands(problem)), columns = int(groups(problem));
  return Layout(make_shape(make_shape(Int<kScaled>{}, rows), make_shape(Int<kScaled>{}, columns), 1),
                make_stride(make_stride(_0{}, columns), make_stride(_0{}, _1{}), rows * columns));
}

template <class Gemm>
typename Gemm::Mainloop::Arguments operands(const Problem &problem) {
  const auto *codes = reinterpret_cast<const Code *>(problem.codes);
  const auto *weight = reinterpret_cast<const Code *>(problem.weight);
  typename Gemm::Mainloop::Arguments operands{};
  if constexpr (Gemm::kSwap) {
    operands.ptr_A = weight;
    operands.ptr_B = codes;
    get<0>(operands.dA) = problem.weight_stride;
    get<0>(operands.dB) = problem.codes_stride;
    operands.ptr_SFA = problem.weight_scales;
    operands.ptr_SFB = problem.scales;
    operands.layout_SFA = weight_scales<typename Gemm::ScalesA>(problem);
    operands.layout_SFB = activation_scales<typename Gemm::ScalesB>(problem);
  } else {
    operands.ptr_A = codes;
    operands.ptr_B = weight;
    get<0>(operands.dA) = problem.codes_stride;
    get<0>(operands.dB) = problem.weight_stride;
    operands.ptr_SFA = problem.scales;
    operands.ptr_SFB = problem.weight_scales;
    operands.layout_SFA = activation_scales<typename Gemm::ScalesA>(problem);
    operands.layout_SFB = weight_scales<typename Gemm::ScalesB>(problem);
  }
  return operands;
}

// M, N, K and one problem, as CUTLASS names them.
template <class Gemm>
Shape<int, int, int, int> shape(const Problem &problem, uint32_t rows) {
  const int m = int(rows), n = int(problem.n), k = int(problem.k);
  return Gemm::kSwap ? make_shape(n, m, k, 1) : make_shape(m, n, k, 1);
}

template <class Gemm>
typename Gemm::Kernel::TileSchedulerArguments order(const Problem &problem) {
  typename Gemm::Kernel::TileSchedulerArguments order{};
  using Orders = std::decay_t<decltype(order.raster_order)>;
  constexpr uint32_t kAlongM = Gemm::kSwap ? FP8RT_CUTLASS_ALONG_COLUMNS : FP8RT_CUTLASS_ALONG_ROWS;
  if (problem.order != FP8RT_CUTLASS_HEURISTIC) {
    order.raster_order = problem.order == kAlongM ? Orders::AlongM : Orders::AlongN;
  }
  order.max_swizzle_size = problem.swizzle == 0 ? 1 : int(problem.swizzle);
  return order;
}

template <class Gemm>
typename Gemm::Kernel::Arguments arguments(const Problem &problem) {
  typename Gemm::Kernel::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = shape<Gemm>(problem, problem.m);
  arguments.mainloop = operands<Gemm>(problem);
  arguments.epilogue.thread.alpha = 1.0f;
  arguments.epilogue.ptr_D = static_cast<typename Gemm::Output *>(problem.output);
  get<Gemm::kSwap ? 1 : 0>(arguments.epilogue.dD) = problem.output_stride;
  arguments.hw_info.sm_count = int(problem.multiprocessors);
  arguments.scheduler = order<Gemm>(problem);
  return arguments;
}

// As the kernel's own `to_underlying_arguments`, but that operands may have more rows than are multiplied, and that no
// device is asked for its size.
template <class Gemm>
typename Gemm::Parameters parameters_of(const Problem &problem) {
  const auto arguments = fp8rt::arguments<Gemm>(problem);
  if constexpr (Gemm::kArchitecture == kSm100) {
    return Gemm::Kernel::to_underlying_arguments(arguments, nullptr);
  } else {
    using Tile = typename Gemm::Tile;
    using Epilogue = typename Gemm::Epilogue;
    using Scheduler = typename Gemm::Kernel::TileScheduler;
    constexpr uint32_t kParts = Epilogue::get_store_pipe_increment(Tile{});
    const auto readable = shape<Gemm>(problem, problem.readable_rows);
    typename Gemm::Parameters parameters{};
    parameters.mode = arguments.mode;
    parameters.problem_shape = arguments.problem_shape;
    parameters.mainloop = Gemm::Mainloop::to_underlying_arguments(readable, arguments.mainloop, nullptr);
    parameters.epilogue = Epilogue::to_underlying_arguments(arguments.problem_shape, arguments.epilogue, nullptr);
    parameters.hw_info = arguments.hw_info;
    parameters.scheduler =
        Scheduler::to_underlying_arguments(arguments.problem_shape, Tile{}, typename Gemm::Cluster{},
                                           arguments.hw_info, arguments.scheduler, nullptr, kParts);
    return parameters;
  }
}

template <class Gemm>
Launch sizes() {
  using Cluster = typename Gemm::Cluster;
  Launch launch{};
  launch.cluster[0] = size<0>(Cluster{});
  launch.cluster[1] = size<1>(Cluster{});
  launch.cluster[2] = 1;
  launch.threads = Gemm::Kernel::MaxThreadsPerBlock;
  launch.shared_bytes = Gemm::Kernel::SharedStorageSize;
  launch.parameter_bytes = sizeof(typename Gemm::Parameters);
  launch.stages = Gemm::Mainloop::DispatchPolicy::Stages;
  return launch;
}

template <class Gemm>
int32_t fill(const Problem *problem, const void *encode, void *parameters, Launch *launch) {
  using Parameters = typename Gemm::Parameters;
  static_assert(alignof(Parameters) <= FP8RT_CUTLASS_PARAMETER_ALIGNMENT, "as in problem.h");
  static_assert(sizeof(Parameters) <= FP8RT_CUTLASS_MOST_PARAMETERS, "as in problem.h");
  *launch = sizes<Gemm>();
  if (problem == nullptr) return FP8RT_CUTLASS_OK;
  if (const int32_t failure = check<Gemm>(*problem); failure != FP8RT_CUTLASS_OK) return failure;
  if (!is_aligned(parameters, FP8RT_CUTLASS_PARAMETER_ALIGNMENT)) return FP8RT_CUTLASS_ALIGNMENT;
  encoding = {reinterpret_cast<EncodeTensorMap>(const_cast<void *>(encode)), CUDA_SUCCESS};
  const auto *filled = new (parameters) Parameters(parameters_of<Gemm>(*problem));
  const dim3 grid = Gemm::Kernel::get_grid_shape(*filled);
  launch->grid[0] = grid.x;
  launch->grid[1] = grid.y;
  launch->grid[2] = grid.z;
  return encoding.result;
}

}  // namespace
}  // namespace fp8rt

#define FILL(name, ...)                                                                                              \
  extern "C" __attribute__((visibility("hidden"))) int32_t name(                                                     \
      const fp8rt_cutlass_problem *problem, const void *encode, void *parameters, fp8rt_cutlass_launch *launch) {    \
    using namespace fp8rt;                                                                                           \
    return fill<Gemm<__VA_ARGS__>>(problem, encode, parameters, launch);                                             \
  }

INSTANCES
