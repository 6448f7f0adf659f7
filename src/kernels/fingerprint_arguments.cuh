// What the host passes to the kernel of fingerprints. The same layout as src/kernels/fingerprint_arguments.rs: both assert
// the sizes.
#pragma once

#include <stdint.h>

// A part of a matrix whose blocks are hashed, for all of its experts.
struct HashedMatrix {
  const uint8_t *codes;
  const void *scales;
  unsigned long long *sum;  // four limbs
  uint64_t name_low, name_high;
  int64_t codes_stride, codes_expert;             // between rows and experts, in bytes
  int64_t scale_row, scale_column, scale_expert;  // in elements of 4 bytes
  uint32_t rows, columns, experts;
  uint32_t first_tile;                      // number of tiles of the matrices before
  uint32_t expert, block_row, block_column;  // of the first block, in the named tensor
  uint32_t scale_kind;
  uint32_t aligned;  // whether 16-byte loads are
  uint32_t offsets;  // of the first block: row << 8 | byte << 24
};

enum ScaleKind : uint32_t { kNoScale = 0, kFloatScale = 1, kPackedScale = 2 };

struct FingerprintArguments {
  uint32_t count, tiles;
  HashedMatrix matrices[240];
};

static_assert(sizeof(HashedMatrix) == 120 && sizeof(FingerprintArguments) == 8 + 240 * 120,
              "as in fingerprint_arguments.rs");
