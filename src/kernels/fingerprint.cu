// Fingerprints: the sum of a hash of each block, as src/fingerprint.rs defines it. One pass over the codes.
//
// A thread has the same places in every tile. The next tile is loaded while this one is multiplied. The keys lie in shared
// memory: in registers the compiler makes them anew each time. Hashes are finished for many tiles at once, one lane each,
// so that their long chain of multiplications is paid once for all of them.

#include "fingerprint_arguments.cuh"
#include "tiles.cuh"

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Thread blocks of a multiprocessor: 16 KiB each in flight.
constexpr int kResident = 3;
constexpr int kVector = 16;
constexpr int kVectorsOfRow = kBlock / kVector;
constexpr int kRowsAtOnce = kThreads / kVectorsOfRow;
constexpr int kPasses = kBlock / kRowsAtOnce;
// Rows of keys by which those of the second half are shifted: the next pass's.
constexpr int kShift = 32;
// Tiles whose hashes are finished together.
constexpr int kHeld = 32;

static_assert(kShift == kRowsAtOnce, "a thread has the keys of the second half in its next pass");

namespace {

__device__ inline uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

__device__ inline uint32_t key(uint32_t index) { return mix((index + 1) * 0x9E3779B97F4A7C15ull) >> 32; }

// Where a thread works in every tile: rows `first`, first + kRowsAtOnce, ..., 16 bytes from `column` on.
__device__ inline uint32_t first_row() { return threadIdx.x / kVectorsOfRow; }
__device__ inline uint32_t column() { return threadIdx.x % kVectorsOfRow * kVector; }

// Four keys each: row by row, those of the rows beyond a block too.
constexpr int kKeys = (kBlock + kShift) * kVectorsOfRow;

__device__ void make_keys(uint4 (&keys)[kKeys]) {
  for (uint32_t i = threadIdx.x; i < kKeys; i += kThreads) {
    keys[i] = {key(4 * i), key(4 * i + 1), key(4 * i + 2), key(4 * i + 3)};
  }
  __syncthreads();
}

__device__ inline uint64_t product(uint4 m, uint4 k) {
  return uint64_t(m.x + k.x) * (m.y + k.y) + uint64_t(m.z + k.z) * (m.w + k.w);
}

// 16 bytes of which `count` exist.
__device__ inline uint4 load_some(const uint8_t *from, int count) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < count) words[i / 4] |= uint32_t(from[i]) << (8 * (i % 4));
  }
  return {words[0], words[1], words[2], words[3]};
}

// What a thread has of a tile.
struct Piece {
  uint4 vectors[kPasses];
  uint32_t rows;  // of the tile
  uint32_t matrix;

  __device__ void load(const HashedMatrix &m, uint32_t tile) {
    const Tile t = place(m, tile);
    const uint8_t *from = m.codes + t.expert * m.codes_expert + (t.first_row + first_row()) * m.codes_stride +
                          t.group * kBlock + column();
    rows = t.rows;
    if (m.aligned && t.rows == kBlock && t.columns == kBlock) {
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        vectors[i] = __ldcs(reinterpret_cast<const uint4 *>(from + i * kRowsAtOnce * m.codes_stride));
      }
      return;
    }
    // Bytes alone: with vectors beside them, behind a branch, sums of edges were wrong on an H100.
    const int count = max(0, min(kVector, int(t.columns) - int(column())));
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const bool exists = first_row() + i * kRowsAtOnce < t.rows;
      vectors[i] = load_some(from + i * kRowsAtOnce * m.codes_stride, exists ? count : 0);
    }
  }

  // Both halves of the hash, over this thread's places.
  __device__ ulonglong2 halves(const uint4 (&keys)[kKeys]) const {
    ulonglong2 sum = {};
    uint4 k = keys[threadIdx.x];
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const uint4 next = keys[threadIdx.x + (i + 1) * kThreads];
      if (first_row() + i * kRowsAtOnce < rows) {
        sum.x += product(vectors[i], k);
        sum.y += product(vectors[i], next);
      }
      k = next;
    }
    return sum;
  }
};

__device__ inline uint64_t sum_of_warp(uint64_t value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, static_cast<unsigned long long>(value), step);
  }
  return value;
}

// Tiles whose halves are there, in parts, but not yet their hashes.
struct Held {
  uint64_t halves[kHeld][kWarps][2];
  uint32_t matrix[kHeld];
};

// The bits of the scale of a tile; all ones where packed exponents of its rows disagree.
__device__ uint32_t scale_bits(const HashedMatrix &m, const Tile &t) {
  if (m.scale_kind == kNoScale) return 0;
  const int64_t expert = t.expert * m.scale_expert;
  if (m.scale_kind == kFloatScale) {
    return static_cast<const uint32_t *>(m.scales)[expert + t.band * m.scale_row + t.group * m.scale_column];
  }
  const uint8_t *exponents = static_cast<const uint8_t *>(m.scales) + t.group % 4 +
                             4 * (expert + t.first_row * m.scale_row + t.group / 4 * m.scale_column);
  const uint32_t exponent = exponents[0];
  bool agree = true;
#pragma unroll 8
  for (uint32_t row = 1; row < t.rows; ++row) agree &= exponents[4 * row * m.scale_row] == exponent;
  return agree ? to_bits(decode_exponent(exponent)) : 0xFFFFFFFFu;
}

// The hash of a block.
struct Hash {
  uint64_t a, b;

  __device__ void take(uint64_t word) {
    a = mix(a ^ word);
    b = mix(b + a);
    a += b;
  }
};

__device__ Hash hash_of(const HashedMatrix &m, const Tile &t, const uint64_t (&halves)[kWarps][2]) {
  uint64_t first = 0, second = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    first += halves[warp][0];
    second += halves[warp][1];
  }
  Hash hash{m.name_low, m.name_high};
  hash.take(uint64_t(m.block_row + t.band) | uint64_t(m.block_column + t.group) << 32);
  hash.take(uint64_t(m.expert + t.expert) | uint64_t(t.rows | t.columns << 16 | m.offsets) << 32);
  hash.take(scale_bits(m, t));
  hash.take(first);
  hash.take(second);
  return hash;
}

// One lane finishes tile `first` + lane * gridDim.x. All lanes of the warp must call it.
__device__ void finish(const FingerprintArguments &a, const Held &held, uint32_t first, uint32_t count) {
  const uint32_t lane = threadIdx.x % 32;
  uint32_t limbs[4] = {};
  unsigned long long *sum = nullptr;
  if (lane < count) {
    const HashedMatrix &m = a.matrices[held.matrix[lane]];
    const Hash hash = hash_of(m, place(m, first + lane * gridDim.x), held.halves[lane]);
    limbs[0] = hash.a, limbs[1] = hash.a >> 32, limbs[2] = hash.b, limbs[3] = hash.b >> 32;
    sum = m.sum;
  }
  // Lanes of one sum are added up first, in halves of 16 bits that cannot overflow.
  const auto sum_of_first = reinterpret_cast<unsigned long long *>(
      __shfl_sync(0xFFFFFFFFu, reinterpret_cast<unsigned long long>(sum), 0));
  const bool one = __all_sync(0xFFFFFFFFu, lane >= count || sum == sum_of_first);
  for (int i = 0; i < 4; ++i) {
    if (one) {
      const uint32_t low = __reduce_add_sync(0xFFFFFFFFu, limbs[i] & 0xFFFFu);
      const uint32_t high = __reduce_add_sync(0xFFFFFFFFu, limbs[i] >> 16);
      if (lane == 0) atomicAdd(sum_of_first + i, low + (static_cast<unsigned long long>(high) << 16));
    } else if (lane < count) {
      atomicAdd(sum + i, static_cast<unsigned long long>(limbs[i]));
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, kResident)
    fingerprint_blocks(const __grid_constant__ FingerprintArguments a) {
  __shared__ Held held;
  __shared__ uint4 keys[kKeys];
  make_keys(keys);
  release_consumer();
  wait_for_producer();
  Piece ahead;
  uint32_t matrix = 0, first = blockIdx.x, count = 0;
  // Tiles only grow, so the matrix of the next one is this one or comes after it.
  const auto load = [&](uint32_t tile) {
    while (matrix + 1 < a.count && a.matrices[matrix + 1].first_tile <= tile) ++matrix;
    ahead.load(a.matrices[matrix], tile);
    ahead.matrix = matrix;
  };
  if (first < a.tiles) load(first);
  for (uint32_t tile = first; tile < a.tiles; tile += gridDim.x) {
    const Piece piece = ahead;
    if (a.tiles - tile > gridDim.x) load(tile + gridDim.x);
    const ulonglong2 halves = piece.halves(keys);
    const uint64_t first_half = sum_of_warp(halves.x), second_half = sum_of_warp(halves.y);
    if (threadIdx.x % 32 == 0) {
      held.halves[count][threadIdx.x / 32][0] = first_half;
      held.halves[count][threadIdx.x / 32][1] = second_half;
    }
    if (threadIdx.x == 0) held.matrix[count] = piece.matrix;
    if (++count == kHeld) {
      __syncthreads();
      if (threadIdx.x < 32) finish(a, held, first, count);
      __syncthreads();
      first = tile + gridDim.x;
      count = 0;
    }
  }
  __syncthreads();
  if (threadIdx.x < 32 && count != 0) finish(a, held, first, count);
}
