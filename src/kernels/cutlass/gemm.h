// CUTLASS's FP8 kernels with 1x128 scales of the activation and 128x128 of the weight. The code of the device and that
// of the host include this, and so agree.
#pragma once

#include <cutlass/arch/grid_dependency_control.h>
#include <cutlass/cutlass.h>
#include <cutlass/detail/blockwise_scale_layout.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/numeric_types.h>
#include <type_traits>
#include <utility>

namespace fp8rt {

using namespace cute;

using Code = cutlass::float_e4m3_t;
using Bf16 = cutlass::bfloat16_t;
using F16 = cutlass::half_t;
using F32 = float;

constexpr int kScaled = 128;  // rows, columns and K that share a scale

enum Architecture { kSm90, kSm100, kSm120 };
enum Operands { kPlain, kSwapped };

template <Architecture>
struct Schedule;

template <>
struct Schedule<kSm90> {
  using Arch = cutlass::arch::Sm90;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
};

template <>
struct Schedule<kSm100> {
  using Arch = cutlass::arch::Sm100;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedBlockwise1SmSm100;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized1Sm;
};

template <>
struct Schedule<kSm120> {
  using Arch = cutlass::arch::Sm120;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedBlockwiseCooperativeSm120;
  using Epilogue = cutlass::epilogue::collective::EpilogueScheduleAuto;
};

// What Hopper's kernels lack when they are launched while the kernel before still runs.
template <class Base>
struct DependentMainloop : Base {
  // The warp that loads scales one by one is the only one that does not wait by itself.
  template <class... Arguments>
  CUTLASS_DEVICE void load_auxiliary(Arguments &&...arguments) {
    cutlass::arch::wait_on_dependent_grids();
    Base::load_auxiliary(std::forward<Arguments>(arguments)...);
  }

  // The last loads are on their way: from now on the next kernel may start.
  template <class... Arguments>
  CUTLASS_DEVICE void load_tail(Arguments &&...arguments) {
    cutlass::arch::launch_dependent_grids();
    Base::load_tail(std::forward<Arguments>(arguments)...);
  }
};

// One instantiation: a tile and a cluster are rows and columns of y.
template <Architecture kArchitecture_, Operands kOperands, int kTileRows_, int kTileColumns_,
          int kClusterRows, int kClusterColumns, class Output_>
struct Gemm {
  static constexpr Architecture kArchitecture = kArchitecture_;
  static constexpr int kTileRows = kTileRows_, kTileColumns = kTileColumns_;
  // CUTLASS calls its operands A [M, K] and B [N, K]. Plain: A is the activation. Swapped: A is the weight, so that a
  // tile may have few rows of the activation; y is then written as columns.
  static constexpr bool kSwap = kOperands == kSwapped;
  using Output = Output_;
  using Tile = Shape<Int<kSwap ? kTileColumns : kTileRows>, Int<kSwap ? kTileRows : kTileColumns>, Int<kScaled>>;
  using Cluster = Shape<Int<kSwap ? kClusterColumns : kClusterRows>, Int<kSwap ? kClusterRows : kClusterColumns>, _1>;
  using Schedules = Schedule<kArchitecture>;

  // Scales of the activation lie in columns, those of the weight in rows.
  static constexpr auto kColumns = UMMA::Major::MN;
  static constexpr auto kRows = UMMA::Major::K;
  using ScaleLayouts =
      std::conditional_t<kSwap, cutlass::detail::Sm1xxBlockwiseScaleConfig<kScaled, 1, kScaled, kRows, kColumns>,
                         cutlass::detail::Sm1xxBlockwiseScaleConfig<1, kScaled, kScaled, kColumns, kRows>>;
  using ScalesA = typename ScaleLayouts::LayoutSFA;
  using ScalesB = typename ScaleLayouts::LayoutSFB;
  using OutputLayout = std::conditional_t<kSwap, cutlass::layout::ColumnMajor, cutlass::layout::RowMajor>;
  static constexpr int kCodeAlignment = 16 / sizeof(Code), kOutputAlignment = 16 / sizeof(Output);

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      typename Schedules::Arch, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, F32, F32, void, OutputLayout, kOutputAlignment, Output,
      OutputLayout, kOutputAlignment, typename Schedules::Epilogue,
      cutlass::epilogue::fusion::LinearCombination<Output, F32, void, F32>>::CollectiveOp;
  using Stages =
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>;
  using BuiltMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      typename Schedules::Arch, cutlass::arch::OpClassTensorOp, Code, cute::tuple<cutlass::layout::RowMajor, ScalesA>,
      kCodeAlignment, Code, cute::tuple<cutlass::layout::ColumnMajor, ScalesB>, kCodeAlignment, F32, Tile, Cluster,
      Stages, typename Schedules::Mainloop>::CollectiveOp;
  using Mainloop = std::conditional_t<kArchitecture == kSm90, DependentMainloop<BuiltMainloop>, BuiltMainloop>;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Parameters = typename Kernel::Params;
};

}  // namespace fp8rt
