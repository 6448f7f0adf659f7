// y = x . w^T (+ bias) for every shape, stride and alignment, by instructions that every architecture has.
//
// A code becomes f16, which holds every value of E4M3, so the products are exact in float32. One output is defined
// without reference to tiles or to the grid: over each group of 128 columns, eight multiplications of 16 columns, one
// after the other; the sum times the product of the two scales, rounded, is added to the total, group after group. Both
// kernels below do that, so a row of y has the same bits whatever M is.
//
// The weight is the first operand of a multiplication and x is the second: 16 rows of the weight meet 8 rows of x.

#include "common.cuh"
#include "linear_arguments.cuh"

namespace {

constexpr int kWarp = 32;
constexpr int kVector = 16;  // codes that a thread takes of a row at once
constexpr int kHalf = 64;    // columns of a fragment: four threads share a row
constexpr int kHalves = kBlock / kHalf;
constexpr int kSteps = kHalf / 16;  // multiplications of a fragment
constexpr int kFragment = 16;       // rows of a fragment

// Sixteen codes of a row.
struct Codes {
  uint32_t words[4];
};

// Clears all but the first `count`.
__device__ inline void keep(Codes &codes, int count) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int left = count - 4 * i;
    if (left < 4) codes.words[i] &= left <= 0 ? 0u : (1u << (8 * left)) - 1;
  }
}

__device__ inline Codes load_vector(const uint8_t *at) {
  const uint4 vector = *reinterpret_cast<const uint4 *>(at);
  return {{vector.x, vector.y, vector.z, vector.w}};
}

// The bytes from `offset` on of two vectors.
__device__ inline Codes shift(const Codes &first, const Codes &second, uint32_t offset) {
  uint32_t words[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = first.words[i];
    words[i + 4] = second.words[i];
  }
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = offset & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = offset & 4 ? words[i + 1] : words[i];
  Codes codes;
#pragma unroll
  for (int i = 0; i < 4; ++i) codes.words[i] = __funnelshift_r(words[i], words[i + 1], 8 * (offset & 3));
  return codes;
}

// `count` codes, byte by byte, from the last four on.
__device__ inline Codes load_bytes(const uint8_t *at, int count) {
  Codes codes{};
#pragma unroll 1
  for (int i = 3; i >= 0; --i) {
#pragma unroll
    for (int j = 3; j > 0; --j) codes.words[j] = codes.words[j - 1];
    codes.words[0] = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (4 * i + j < count) codes.words[0] |= uint32_t(at[4 * i + j]) << (8 * j);
    }
  }
  return codes;
}

// Sixteen codes of a row from `column` on.
struct Place {
  uint32_t row, column;
};

// Codes at N places that `place(i)` gives, zeros beyond the matrix. All vectors are asked for before the first is used.
template <int N, class F>
__device__ inline void load_aligned(Codes (&codes)[N], const PlainOperand &m, uint32_t columns, F place) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Place at = place(i);
    codes[i] = Codes{};
    if (at.row < m.rows && at.column < columns) codes[i] = load_vector(m.codes + at.row * m.stride + at.column);
  }
}

// The same at any address and of any length. The two aligned vectors that cover 16 codes are read where both lie
// between the first and the last code of the matrix; elsewhere single bytes are.
template <int N, class F>
__device__ inline void load_unaligned(Codes (&codes)[N], const PlainOperand &m, uint32_t columns, F place) {
  const uint8_t *end = m.codes + (m.rows - 1) * m.stride + columns;
  const uint8_t *from[N];
  int counts[N], offsets[N];
  bool covered[N];
  Codes first[N] = {}, second[N] = {};
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Place at = place(i);
    const bool exists = at.row < m.rows && at.column < columns;
    from[i] = exists ? m.codes + at.row * m.stride + at.column : m.codes;
    counts[i] = exists ? min(uint32_t(kVector), columns - at.column) : 0;
    offsets[i] = reinterpret_cast<uintptr_t>(from[i]) % kVector;
    covered[i] = !exists || (from[i] - m.codes >= offsets[i] && end - from[i] >= 2 * kVector - offsets[i]);
    if (exists && covered[i]) {
      first[i] = load_vector(from[i] - offsets[i]);
      second[i] = load_vector(from[i] - offsets[i] + kVector);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    codes[i] = shift(first[i], second[i], offsets[i]);
    keep(codes[i], counts[i]);
    if (!covered[i]) codes[i] = load_bytes(from[i], counts[i]);
  }
}

template <int N, class F>
__device__ inline void load_codes(Codes (&codes)[N], const PlainOperand &m, uint32_t columns, bool aligned, F place) {
  if (aligned) {
    load_aligned(codes, m, columns, place);
  } else {
    load_unaligned(codes, m, columns, place);
  }
}

// Whether the matrix is made of whole aligned vectors.
__device__ inline bool is_aligned(const PlainOperand &m, uint32_t columns) {
  const uint64_t stride = m.rows > 1 ? m.stride : 0;
  return (reinterpret_cast<uintptr_t>(m.codes) | stride | columns) % kVector == 0;
}

// The scale of a row, where `band` rows share one; zero beyond the matrix.
__device__ inline float scale_of(const PlainOperand &m, uint32_t band, uint32_t row, uint32_t group) {
  if (row >= m.rows) return 0.0f;
  if (m.packed) {
    const int64_t word = row * m.scale_row + (group / 4) * m.scale_column;
    return decode_exponent(static_cast<const uint8_t *>(m.scales)[4 * word + group % 4]);
  }
  return static_cast<const float *>(m.scales)[(row / band) * m.scale_row + group * m.scale_column];
}

__device__ inline float activation_scale(const PlainArguments &a, uint32_t row, uint32_t group) {
  return scale_of(a.activation, 1, row, group);
}

__device__ inline float weight_scale(const PlainArguments &a, uint32_t row, uint32_t group) {
  return scale_of(a.weight, kBlock, row, group);
}

// A product of scales beyond float32 has no right result, but must not make an infinity of finite values: such a group
// counts for nothing.
__device__ inline float finite(float scale) { return scale == from_bits(kInfinity) ? 0.0f : scale; }

// Two codes, the first in the low byte, as f16: exact.
__device__ inline uint32_t decode_two(uint32_t codes) {
#if __CUDA_ARCH__ >= 890
  uint32_t values;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(values) : "h"(uint16_t(codes)));
  return values;
#else
  // The same fields with the exponent's bias of f16 are the value times 2^-8, subnormal or not.
  const uint32_t high_bytes = __byte_perm(codes, 0, 0x1404);
  const uint32_t magnitudes = (high_bytes & 0x7F007F00u) >> 1, signs = high_bytes & 0x80008000u;
  const __half2 scaled = __halves2half2(__ushort_as_half((magnitudes | signs) & 0xFFFFu),
                                        __ushort_as_half((magnitudes | signs) >> 16));
  const __half2 values = __hmul2(scaled, __float2half2_rn(256.0f));
  const uint32_t bits = __half_as_ushort(__low2half(values)) | uint32_t(__half_as_ushort(__high2half(values))) << 16;
  return bits | (__vcmpeq2(magnitudes, 0x3F803F80u) & 0x7FFF7FFFu);
#endif
}

// Codes of 16 rows in half a group. A thread has 16 columns, from 16 * (lane % 4) on, of the rows lane / 4 and
// lane / 4 + 8.
struct Fragment {
  Codes rows[2];
};

// A fragment's values in one multiplication: a thread's next four columns of both rows, two columns in a word. The
// instruction means other columns by these places, the same ones for both operands.
struct Values {
  uint32_t first[2], second[2];

  __device__ Values(const Fragment &fragment, int step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t codes = fragment.rows[i].words[step];
      first[i] = decode_two(codes & 0xFFFFu);
      second[i] = decode_two(codes >> 16);
    }
  }
};

// Sums of 16 rows of the weight by 8 rows of x: sum i is that of row lane / 4 + 8 * (i / 2) of the weight and row
// 2 * (lane % 4) + i % 2 of x.
using Sums = float[4];

__device__ inline void multiply(Sums &sums, const Values &weight, uint32_t first, uint32_t second) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(weight.first[0]), "r"(weight.first[1]), "r"(weight.second[0]), "r"(weight.second[1]), "r"(first),
        "r"(second));
}

// 16 rows of the weight by 16 of x.
__device__ inline void multiply(Sums (&sums)[2], const Values &weight, const Values &activation) {
#pragma unroll
  for (int i = 0; i < 2; ++i) multiply(sums[i], weight, activation.first[i], activation.second[i]);
}

// The bias of a column of y. Without one, -0, which changes no number.
__device__ inline float bias_of(const PlainArguments &a, uint32_t column) {
  const void *values = a.bias.values;
  if (values == nullptr || column >= a.weight.rows) return -0.0f;
  switch (a.bias.dtype) {
    case kBf16:
      return Bf16::to_float(static_cast<const Bf16::Bits *>(values)[column]);
    case kF16:
      return F16::to_float(static_cast<const F16::Bits *>(values)[column]);
    default:
      return static_cast<const float *>(values)[column];
  }
}

template <class T>
__device__ inline void store(const PlainArguments &a, uint32_t row, uint32_t column, float value) {
  if (row >= a.activation.rows || column >= a.weight.rows) return;
  static_cast<typename T::Bits *>(a.output)[row * a.output_stride + column] = T::from_float(value);
}

// Few rows of x: a thread block takes 16 rows of the weight and 16 of x. Each warp takes every eighth group, straight
// from memory, while the next one's codes are on their way.
namespace few {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
// Floats of a row of sums in shared memory: 20 put the four pairs of rows of a warp on different banks.
constexpr int kPitch = 20;

// The scaled sums of a tile in one group.
using Tile = float[kFragment][kPitch];

// Two sets of tiles, a tile for each warp.
using Shared = Tile[2][kWarps];

// What a thread needs of a tile in one group.
struct Piece {
  Fragment weight[kHalves], activation[kHalves];
  float weight_scales[2], activation_scales[4];
};

// A thread's codes of 16 rows of a group.
__device__ inline void load_fragments(Fragment (&fragments)[kHalves], const PlainOperand &m, uint32_t columns,
                                      bool aligned, uint32_t first_row, uint32_t group) {
  const uint32_t lane = threadIdx.x % kWarp;
  const uint32_t row = first_row + lane / 4, column = group * kBlock + lane % 4 * kVector;
  Codes codes[2 * kHalves];
  load_codes(codes, m, columns, aligned, [&](int i) { return Place{row + 8 * (i % 2), column + kHalf * (i / 2)}; });
#pragma unroll
  for (int i = 0; i < 2 * kHalves; ++i) fragments[i / 2].rows[i % 2] = codes[i];
}

__device__ inline void load(Piece &piece, const PlainArguments &a, bool aligned, uint32_t first_row,
                            uint32_t first_column, uint32_t group) {
  const uint32_t lane = threadIdx.x % kWarp;
  load_fragments(piece.weight, a.weight, a.columns, aligned, first_column, group);
  load_fragments(piece.activation, a.activation, a.columns, aligned, first_row, group);
#pragma unroll
  for (int i = 0; i < 2; ++i) piece.weight_scales[i] = weight_scale(a, first_column + lane / 4 + 8 * i, group);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t row = 8 * (i / 2) + 2 * (lane % 4) + i % 2;
    piece.activation_scales[i] = activation_scale(a, first_row + row, group);
  }
}

__device__ inline void multiply_piece(Tile &tile, const Piece &piece) {
  Sums sums[2] = {};
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      multiply(sums, Values(piece.weight[half], step), Values(piece.activation[half], step));
    }
  }
  const uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t row = 8 * (i / 4) + 2 * (lane % 4) + i % 2, column = lane / 4 + 8 * (i % 4 / 2);
    const float scale = finite(piece.activation_scales[i / 4 * 2 + i % 2] * piece.weight_scales[i % 4 / 2]);
    tile[row][column] = sums[i / 4][i % 4] * scale;
  }
}

template <class T>
__device__ void linear(const PlainArguments &a, bool aligned, Shared &tiles) {
  const uint32_t tiles_of_rows = (a.activation.rows + kFragment - 1) / kFragment;
  const uint32_t first_row = blockIdx.x % tiles_of_rows * kFragment;
  const uint32_t first_column = blockIdx.x / tiles_of_rows * kFragment;
  const uint32_t warp = threadIdx.x / kWarp, groups = (a.columns + kBlock - 1) / kBlock;
  // This thread's output, in the tile.
  const uint32_t row = threadIdx.x / kFragment, column = threadIdx.x % kFragment;
  float total = 0.0f;
  Piece piece, next;
#pragma unroll 1
  for (uint32_t first = 0; first < groups + kWarps; first += kWarps) {
    if (first + warp < groups) load(next, a, aligned, first_row, first_column, first + warp);
    if (first != 0) {
      // The groups before these. Two sets of tiles in turn: who still adds the set before does not see this one.
      const uint32_t before = first - kWarps, count = min(uint32_t(kWarps), groups - before);
      Tile(&set)[kWarps] = tiles[before / kWarps % 2];
      if (warp < count) multiply_piece(set[warp], piece);
      __syncthreads();
      for (uint32_t i = 0; i < count; ++i) total += set[i][row][column];
    }
    piece = next;
  }
  store<T>(a, first_row + row, first_column + column, total + bias_of(a, first_column + column));
}

}  // namespace few

// Many rows of x: a thread block takes a tile of y, and brings both operands to shared memory, a group at a time. A
// warp multiplies 32 rows of the weight by 32 of x.
namespace many {

constexpr int kFragments = 2;  // of each operand, in a warp
constexpr int kOfWarp = kFragments * kFragment;
constexpr int kWarpsOfColumns = 2, kWarpsOfRows = 2;
constexpr int kThreads = kWarpsOfColumns * kWarpsOfRows * kWarp;
constexpr int kColumns = kWarpsOfColumns * kOfWarp, kRows = kWarpsOfRows * kOfWarp;
static_assert(kBlock % kColumns == 0, "a tile lies in one block of the weight");
static_assert(kRows + kColumns <= kThreads, "a thread brings one scale");

// A group of `kCount` rows: halves, then rows, then four vectors. Eight threads in a row read 128 bytes of it.
template <int kCount>
struct Rows {
  Codes vectors[kHalves * kCount * 4];

  __device__ Fragment fragment(int half, uint32_t first) const {
    const uint32_t lane = threadIdx.x % kWarp;
    const Codes *at = vectors + (half * kCount + first + lane / 4) * 4 + lane % 4;
    return {{load_shared(at), load_shared(at + 8 * 4)}};
  }

  __device__ static Codes load_shared(const Codes *at) { return load_vector(reinterpret_cast<const uint8_t *>(at)); }
};

// What a thread brings of `kCount` rows of a group: vectors in the order of `Rows`.
template <int kCount>
struct Staged {
  static constexpr int kVectorsOfThread = kHalves * kCount * 4 / kThreads;
  Codes codes[kVectorsOfThread];

  __device__ void load(const PlainOperand &m, uint32_t columns, bool aligned, uint32_t first_row, uint32_t group) {
    load_codes(codes, m, columns, aligned, [&](int i) {
      const uint32_t index = i * kThreads + threadIdx.x, half = index / (kCount * 4);
      const uint32_t column = half * kHalf + index % 4 * kVector;
      return Place{first_row + index / 4 % kCount, group * kBlock + column};
    });
  }

  __device__ void store(Rows<kCount> &rows) const {
#pragma unroll
    for (int i = 0; i < kVectorsOfThread; ++i) {
      const uint32_t *words = codes[i].words;
      reinterpret_cast<uint4 *>(rows.vectors)[i * kThreads + threadIdx.x] = {words[0], words[1], words[2], words[3]};
    }
  }
};

// A group of a tile. Where the weight's scale is one for the tile, those of x hold it too.
struct alignas(16) Shared {
  Rows<kColumns> weight;
  Rows<kRows> activation;
  float scales[kRows + kColumns];  // of x, then of the weight
};

// The two scales whose product this thread brings. They are multiplied when they have come.
struct ScalePair {
  float own, other;
};

__device__ inline ScalePair load_scales(const PlainArguments &a, Place tile, uint32_t group) {
  const uint32_t index = threadIdx.x;
  if (index < kRows) {
    const float own = activation_scale(a, tile.row + index, group);
    return {own, a.weight.packed ? 1.0f : weight_scale(a, tile.column, group)};
  }
  return {a.weight.packed ? weight_scale(a, tile.column + index - kRows, group) : 0.0f, 1.0f};
}

// Sums of a warp: fragments of the weight, fragments of x, halves of those.
using WarpSums = Sums[kFragments][kFragments][2];

// Row of x and row of the weight that a thread's sum belongs to, in the tile.
__device__ inline uint32_t row_of(int fragment, int half, int sum) {
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp / kWarpsOfColumns;
  return warp * kOfWarp + fragment * kFragment + half * 8 + 2 * (lane % 4) + sum % 2;
}

__device__ inline uint32_t column_of(int fragment, int sum) {
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp % kWarpsOfColumns;
  return warp * kOfWarp + fragment * kFragment + lane / 4 + 8 * (sum / 2);
}

// Calls `visit(i, j, half, sum)` for each of a thread's sums.
template <class F>
__device__ inline void for_each_sum(F visit) {
#pragma unroll
  for (int i = 0; i < kFragments; ++i) {
#pragma unroll
    for (int sum = 0; sum < 4; ++sum) {
#pragma unroll
      for (int j = 0; j < kFragments; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) visit(i, j, half, sum);
      }
    }
  }
}

__device__ inline void multiply_group(WarpSums &sums, const Shared &shared) {
  const uint32_t warp = threadIdx.x / kWarp;
  const uint32_t column = warp % kWarpsOfColumns * kOfWarp, row = warp / kWarpsOfColumns * kOfWarp;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    Fragment weight[kFragments], activation[kFragments];
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      weight[i] = shared.weight.fragment(half, column + i * kFragment);
      activation[i] = shared.activation.fragment(half, row + i * kFragment);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const Values of_activation[kFragments] = {{activation[0], step}, {activation[1], step}};
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        const Values of_weight(weight[i], step);
#pragma unroll
        for (int j = 0; j < kFragments; ++j) multiply(sums[i][j], of_weight, of_activation[j]);
      }
    }
  }
}

__device__ inline void add_group(WarpSums &totals, const WarpSums &sums, const float *scales, bool by_row) {
  if (by_row) {
    for_each_sum([&](int i, int j, int half, int sum) {
      const float scale = finite(scales[row_of(j, half, sum)] * scales[kRows + column_of(i, sum)]);
      totals[i][j][half][sum] += sums[i][j][half][sum] * scale;
    });
  } else {
    for_each_sum([&](int i, int j, int half, int sum) {
      totals[i][j][half][sum] += sums[i][j][half][sum] * scales[row_of(j, half, sum)];
    });
  }
}

template <class T>
__device__ void linear(const PlainArguments &a, bool aligned, Shared &shared) {
  const uint32_t tiles_of_rows = (a.activation.rows + kRows - 1) / kRows;
  const Place tile = {blockIdx.x % tiles_of_rows * kRows, blockIdx.x / tiles_of_rows * kColumns};
  const uint32_t groups = (a.columns + kBlock - 1) / kBlock;
  WarpSums totals = {};
  Staged<kColumns> weight;
  Staged<kRows> activation;
  ScalePair scales = {};
#pragma unroll 1
  for (uint32_t group = 0; group <= groups; ++group) {
    // While a group is on its way to registers, the one before is multiplied.
    if (group < groups) {
      weight.load(a.weight, a.columns, aligned, tile.column, group);
      activation.load(a.activation, a.columns, aligned, tile.row, group);
      scales = load_scales(a, tile, group);
    }
    if (group != 0) {
      WarpSums sums = {};
      multiply_group(sums, shared);
      add_group(totals, sums, shared.scales, a.weight.packed);
      __syncthreads();
    }
    weight.store(shared.weight);
    activation.store(shared.activation);
    if (threadIdx.x < kRows + kColumns) shared.scales[threadIdx.x] = finite(scales.own * scales.other);
    __syncthreads();
  }
  for_each_sum([&](int i, int j, int half, int sum) {
    const uint32_t column = tile.column + column_of(i, sum);
    const float value = totals[i][j][half][sum] + bias_of(a, column);
    store<T>(a, tile.row + row_of(j, half, sum), column, value);
  });
}

}  // namespace many

}  // namespace

// Nothing is read before the producer of x has ended.
#define PLAIN(name, type, size, resident)                                                        \
  extern "C" __global__ void __launch_bounds__(size::kThreads, resident)                         \
      plain_##name##_##size(const __grid_constant__ PlainArguments a) {                          \
    __shared__ size::Shared shared;                                                              \
    release_consumer();                                                                          \
    wait_for_producer();                                                                         \
    const bool aligned = is_aligned(a.activation, a.columns) && is_aligned(a.weight, a.columns); \
    size::linear<type>(a, aligned, shared);                                                      \
  }

PLAIN(bf16, Bf16, few, 2)
PLAIN(f16, F16, few, 2)
PLAIN(f32, F32, few, 2)
PLAIN(bf16, Bf16, many, 3)
PLAIN(f16, F16, many, 3)
PLAIN(f32, F32, many, 3)
