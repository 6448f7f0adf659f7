// What the host passes to the kernels of a linear. The same layout as src/kernels/linear_arguments.rs: both assert the
// sizes.
#pragma once

#include "numbers.cuh"

// Values of src/kernels/linear_arguments.rs.
enum : uint32_t { kBf16 = 0, kF16 = 1, kF32 = 2 };

// One value for each column of y.
struct Bias {
  const void *values;  // or NULL
  uint32_t dtype;
  uint32_t reserved;
};

// Codes and scales: x, or a part of the weight.
struct PlainOperand {
  const uint8_t *codes;
  const void *scales;
  int64_t stride;                   // between rows, in elements
  int64_t scale_row, scale_column;  // of the scales, in elements of 4 bytes
  uint32_t rows;
  uint32_t packed;  // whether the scales are exponents, four groups in an element; else floats
};

struct PlainArguments {
  PlainOperand activation, weight;
  Bias bias;
  void *output;
  int64_t output_stride;
  uint32_t columns;  // of both operands: K
  uint32_t reserved;
};

// y += bias.
struct BiasArguments {
  Bias bias;
  void *output;
  int64_t stride;
  uint32_t rows, columns;
};

// Elements of 4 bytes. The target has rows and columns up to the padded extents; zeros beyond the source.
struct CopyArguments {
  const uint32_t *source;
  uint32_t *target;
  int64_t source_row, source_column;
  int64_t target_row, target_column;
  uint32_t rows, columns;
  uint32_t padded_rows, padded_columns;
};

static_assert(sizeof(Bias) == 16 && sizeof(PlainOperand) == 48, "as in linear_arguments.rs");
static_assert(sizeof(PlainArguments) == 136 && sizeof(BiasArguments) == 40, "as in linear_arguments.rs");
static_assert(sizeof(CopyArguments) == 64, "as in linear_arguments.rs");
