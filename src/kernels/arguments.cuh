// What the host passes to the kernels. The same layout as src/kernels/arguments.rs: both assert the sizes.
#pragma once

#include <stdint.h>

// One matrix whose blocks or groups are quantized: a part of a weight, for all of its experts.
struct Matrix {
  const void *source;
  uint8_t *codes;
  void *scales;
  int64_t source_stride, codes_stride;            // between rows, in elements
  int64_t source_expert, codes_expert;            // between experts
  int64_t scale_row, scale_column, scale_expert;  // of the scales, in elements of 4 bytes
  int64_t scale_limit;                            // elements of the scales that may be written
  uint32_t rows, columns, experts;
  uint32_t padding;     // rows below the last that are zeroed in column-major scales
  uint32_t first_tile;  // number of tiles of the matrices before
  uint32_t aligned;     // whether 16-byte loads and 8-byte stores are
};

struct Header {
  unsigned long long *health;  // four counters, or NULL
  const Matrix *table;         // NULL: the matrices follow
  float floor;
  uint32_t recipe, format, rule;
  uint32_t count, tiles;
};

template <int N>
struct Arguments {
  Header header;
  Matrix matrices[N];
};

struct DequantizeArguments {
  Matrix matrix;  // source: the output
  uint32_t format;
  uint32_t band;  // rows that share a scale
};

// A producer of an activation. `matrix.source` is the input, of 2 `columns` if gate and up; `matrix.codes` is the output,
// codes or values.
struct FusedArguments {
  Header header;
  Matrix matrix;
  void *residual;  // or NULL
  const void *weight;
  int64_t residual_stride;  // between rows, in elements
  float epsilon;
  uint32_t reserved;
};

// What a kernel asks of L2 before its input is there: the beginning of each row of a weight, and its scales.
struct Ahead {
  const uint8_t *weight, *scales;
  int64_t stride;        // between rows, in bytes
  uint32_t rows, bytes;  // of each row
  uint32_t scale_bytes;
  uint32_t blocks;  // thread blocks that ask
};

// An activation that a linear quantizes, and the weight that it multiplies then.
struct AheadArguments {
  Header header;
  Matrix matrix;
  Ahead ahead;
};

static_assert(sizeof(Matrix) == 112 && sizeof(Header) == 40, "as in arguments.rs");
static_assert(sizeof(Arguments<4>) == 40 + 4 * 112 && sizeof(DequantizeArguments) == 120, "as in arguments.rs");
static_assert(sizeof(FusedArguments) == 184 && sizeof(AheadArguments) == 192, "as in arguments.rs");
