// What the host passes to the kernels that measure. The same layout as src/kernels/measure_arguments.rs: both assert the
// sizes.
#pragma once

#include "arguments.cuh"

// Sums over the blocks of a source, as in src/measure.rs.
struct ErrorSums {
  double squares, errors;
  unsigned long long elements, became_zero, became_subnormal, non_finite, blocks, outlier_blocks;
};

// Values, and the codes and scales that they became.
struct MeasuredMatrix {
  Matrix matrix;
  ErrorSums *sums;
};

struct MeasureArguments {
  uint32_t count, tiles, format, reserved;
  MeasuredMatrix matrices[240];
};

static_assert(sizeof(ErrorSums) == 64 && sizeof(MeasureArguments) == 16 + 240 * 120, "as in measure_arguments.rs");
