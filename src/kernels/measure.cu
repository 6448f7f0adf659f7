// What quantization did to weights: sums over blocks, in float64. A thread block takes a block of 128x128. For reports: it
// reads everything once, and is not made to be fast.

#include "measure_arguments.cuh"
#include "tiles.cuh"

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// As in src/measure.rs.
constexpr double kOutlier = 6.0;

namespace {

__device__ const MeasuredMatrix &find(const MeasureArguments &a, uint32_t tile) {
  uint32_t low = 0, high = a.count;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (a.matrices[middle].matrix.first_tile <= tile ? low : high) = middle;
  }
  return a.matrices[low];
}

// What one thread or one thread block saw.
struct Seen {
  double squares, errors;
  uint32_t elements, zero, subnormal, non_finite, amax;

  __device__ void count(float x, uint32_t code, float scale) {
    const uint32_t magnitude = to_bits(x) & 0x7FFFFFFFu;
    if (magnitude >= kInfinity) {
      non_finite += 1;
      return;
    }
    const double value = x, error = value - double(__fmul_rn(decode(code), scale));
    squares += value * value;
    errors += error * error;
    elements += 1;
    zero += magnitude != 0 && (code & 0x7Fu) == 0;
    subnormal += (code & 0x7Fu) - 1 < 7u;
    amax = max(amax, magnitude);
  }

  __device__ void sum_up_warp() {
    for (int step = 16; step > 0; step /= 2) {
      squares += __shfl_xor_sync(0xFFFFFFFFu, squares, step);
      errors += __shfl_xor_sync(0xFFFFFFFFu, errors, step);
    }
    elements = __reduce_add_sync(0xFFFFFFFFu, elements);
    zero = __reduce_add_sync(0xFFFFFFFFu, zero);
    subnormal = __reduce_add_sync(0xFFFFFFFFu, subnormal);
    non_finite = __reduce_add_sync(0xFFFFFFFFu, non_finite);
    amax = __reduce_max_sync(0xFFFFFFFFu, amax);
  }

  __device__ void add(const Seen &other) {
    squares += other.squares, errors += other.errors, elements += other.elements, zero += other.zero;
    subnormal += other.subnormal, non_finite += other.non_finite, amax = max(amax, other.amax);
  }

  __device__ void add_to(ErrorSums *sums) const {
    const double largest = from_bits(amax);
    atomicAdd(&sums->squares, squares);
    atomicAdd(&sums->errors, errors);
    atomicAdd(&sums->elements, static_cast<unsigned long long>(elements));
    atomicAdd(&sums->became_zero, static_cast<unsigned long long>(zero));
    atomicAdd(&sums->became_subnormal, static_cast<unsigned long long>(subnormal));
    atomicAdd(&sums->non_finite, static_cast<unsigned long long>(non_finite));
    atomicAdd(&sums->blocks, 1ull);
    if (largest * largest * elements > kOutlier * kOutlier * squares) atomicAdd(&sums->outlier_blocks, 1ull);
  }
};

template <class T>
__device__ void measure(const MeasureArguments &a) {
  __shared__ Seen shared[kWarps];
  release_consumer();
  wait_for_producer();
  const MeasuredMatrix &measured = find(a, blockIdx.x);
  const Matrix &m = measured.matrix;
  const Tile t = place(m, blockIdx.x);
  const float scale = read_scale(m, a.format, t.expert, t.band, t.first_row, t.group);
  const uint32_t column = threadIdx.x % kBlock;
  Seen seen = {};
  if (column < t.columns) {
    for (uint32_t row = threadIdx.x / kBlock; row < t.rows; row += kThreads / kBlock) {
      const int64_t at = t.first_row + row, offset = t.group * kBlock + column;
      const auto *source = static_cast<const typename T::Bits *>(m.source);
      const float x = T::to_float(source[t.expert * m.source_expert + at * m.source_stride + offset]);
      seen.count(x, m.codes[t.expert * m.codes_expert + at * m.codes_stride + offset], scale);
    }
  }
  seen.sum_up_warp();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = seen;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kWarps; ++warp) seen.add(shared[warp]);
  seen.add_to(measured.sums);
}

}  // namespace

#define MEASURE(name, type)                                                                                           \
  extern "C" __global__ void __launch_bounds__(kThreads) measure_##name(const __grid_constant__ MeasureArguments a) { \
    measure<type>(a);                                                                                                 \
  }

MEASURE(bf16, Bf16)
MEASURE(f16, F16)
MEASURE(f32, F32)
