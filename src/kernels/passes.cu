// Small passes before and after a linear: a bias added to y, and scales brought to another layout.

#include "common.cuh"
#include "linear_arguments.cuh"

namespace {

constexpr int kThreads = 128;
// Rows of y that a thread takes, all loaded before the first is used.
constexpr int kRowsOfThread = 4;

template <class T>
__device__ inline bool is_aligned(const void *first, uint64_t stride) {
  return (reinterpret_cast<uintptr_t>(first) | (stride * sizeof(typename T::Bits))) % sizeof(uint4) == 0;
}

template <class T>
__device__ inline void load_chunk(Chunk<T> &chunk, const typename T::Bits *from, int count, bool aligned) {
  if (aligned && count == kChunk) {
    chunk.load_aligned(from);
  } else {
    chunk.load_some(from, count);
  }
}

template <class T>
__device__ inline void store_chunk(typename T::Bits *to, const Chunk<T> &chunk, int count, bool aligned) {
  if (aligned && count == kChunk) {
    constexpr int kVectors = sizeof(chunk.bits) / sizeof(uint4);
    uint4 vectors[kVectors];
    memcpy(vectors, chunk.bits, sizeof chunk.bits);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) reinterpret_cast<uint4 *>(to)[i] = vectors[i];
  } else {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      if (i < count) to[i] = chunk.bits[i];
    }
  }
}

template <class T>
__device__ inline void load_bias_of(float (&values)[kChunk], const void *bias, uint32_t column, int count) {
  Chunk<T> chunk;
  load_chunk(chunk, static_cast<const typename T::Bits *>(bias) + column, count, is_aligned<T>(bias, 0));
#pragma unroll
  for (int i = 0; i < kChunk; ++i) values[i] = chunk.value(i);
}

__device__ inline void load_bias(float (&values)[kChunk], const Bias &bias, uint32_t column, int count) {
  switch (bias.dtype) {
    case kBf16:
      return load_bias_of<Bf16>(values, bias.values, column, count);
    case kF16:
      return load_bias_of<F16>(values, bias.values, column, count);
    default:
      return load_bias_of<F32>(values, bias.values, column, count);
  }
}

// A thread takes eight columns of four rows.
template <class T>
__device__ void add_bias(const BiasArguments &a) {
  constexpr uint32_t kColumnsOfBlock = kThreads * kChunk;
  const uint32_t blocks_of_columns = (a.columns + kColumnsOfBlock - 1) / kColumnsOfBlock;
  const uint32_t column = blockIdx.x % blocks_of_columns * kColumnsOfBlock + threadIdx.x * kChunk;
  const uint32_t first_row = blockIdx.x / blocks_of_columns * kRowsOfThread;
  release_consumer();
  wait_for_producer();
  if (column >= a.columns) return;
  const int count = min(uint32_t(kChunk), a.columns - column);
  const int rows = min(uint32_t(kRowsOfThread), a.rows - first_row);
  const bool aligned = is_aligned<T>(a.output, a.rows > 1 ? a.stride : 0);
  typename T::Bits *output = static_cast<typename T::Bits *>(a.output) + first_row * a.stride + column;
  float bias[kChunk];
  load_bias(bias, a.bias, column, count);
  Chunk<T> chunks[kRowsOfThread];
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) load_chunk(chunks[i], output + i * a.stride, i < rows ? count : 0, aligned);
#pragma unroll
  for (int i = 0; i < kRowsOfThread; ++i) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j) chunks[i].bits[j] = T::from_float(chunks[i].value(j) + bias[j]);
    store_chunk(output + i * a.stride, chunks[i], i < rows ? count : 0, aligned);
  }
}

constexpr int kSide = 32;
constexpr int kCopyThreads = 256;

// An element of a square. Where `along_rows`, the lanes of a warp have one column, so that they touch neighbors.
struct Element {
  uint32_t row, column;

  __device__ Element(int index, bool along_rows) {
    const uint32_t lane = index % kSide, line = index / kSide;
    row = along_rows ? lane : line;
    column = along_rows ? line : lane;
  }
};

// A thread block takes a square of the target. It passes through shared memory, because rows may be neighbors in the
// source and columns in the target.
__device__ void copy_square(const CopyArguments &a, uint32_t first_row, uint32_t first_column) {
  __shared__ uint32_t square[kSide][kSide + 1];
  const bool source_along_rows = a.source_row < a.source_column, target_along_rows = a.target_row < a.target_column;
#pragma unroll
  for (int i = threadIdx.x; i < kSide * kSide; i += kCopyThreads) {
    const Element at(i, source_along_rows);
    const uint32_t row = first_row + at.row, column = first_column + at.column;
    const bool exists = row < a.rows && column < a.columns;
    square[at.row][at.column] = exists ? a.source[row * a.source_row + column * a.source_column] : 0;
  }
  __syncthreads();
#pragma unroll
  for (int i = threadIdx.x; i < kSide * kSide; i += kCopyThreads) {
    const Element at(i, target_along_rows);
    const uint32_t row = first_row + at.row, column = first_column + at.column;
    const bool exists = row < a.padded_rows && column < a.padded_columns;
    if (exists) a.target[row * a.target_row + column * a.target_column] = square[at.row][at.column];
  }
}

}  // namespace

#define ADD_BIAS(name, type)                                     \
  extern "C" __global__ void __launch_bounds__(kThreads)         \
      add_bias_##name(const __grid_constant__ BiasArguments a) { \
    add_bias<type>(a);                                           \
  }

ADD_BIAS(bf16, Bf16)
ADD_BIAS(f16, F16)
ADD_BIAS(f32, F32)

extern "C" __global__ void __launch_bounds__(kCopyThreads) copy_scales(const __grid_constant__ CopyArguments a) {
  const uint32_t squares_of_columns = (a.padded_columns + kSide - 1) / kSide;
  release_consumer();
  wait_for_producer();
  copy_square(a, blockIdx.x / squares_of_columns * kSide, blockIdx.x % squares_of_columns * kSide);
}
