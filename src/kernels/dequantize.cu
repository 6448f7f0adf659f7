// Codes times scales. A thread takes eight codes of a row.

#include "common.cuh"

namespace {

template <class T>
__device__ void dequantize(const DequantizeArguments &a) {
  using Bits = typename T::Bits;
  const Matrix &m = a.matrix;
  const uint32_t chunks = (m.columns + kChunk - 1) / kChunk;
  const uint64_t total = uint64_t(m.experts) * m.rows * chunks;
  release_consumer();
  wait_for_producer();
  for (uint64_t index = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; index < total;
       index += uint64_t(gridDim.x) * blockDim.x) {
    const uint32_t column = uint32_t(index % chunks) * kChunk;
    const uint64_t row_of_all = index / chunks;
    const uint32_t row = row_of_all % m.rows, expert = row_of_all / m.rows;
    const float scale = read_scale(m, a.format, expert, row / a.band, row, column / kBlock);
    const uint8_t *codes = m.codes + expert * m.codes_expert + row * m.codes_stride + column;
    Bits *values = static_cast<Bits *>(const_cast<void *>(m.source)) + expert * m.source_expert +
                   row * m.source_stride + column;
    const int count = min(kChunk, int(m.columns - column));
    for (int i = 0; i < count; ++i) values[i] = T::from_float(__fmul_rn(decode(codes[i]), scale));
  }
}

}  // namespace

#define DEQUANTIZE(name, type)                                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                                            \
      dequantize_##name(const __grid_constant__ DequantizeArguments a) {                                       \
    dequantize<type>(a);                                                                                       \
  }

DEQUANTIZE(bf16, Bf16)
DEQUANTIZE(f16, F16)
DEQUANTIZE(f32, F32)
