// cuTensorMapEncodeTiled for the four matrices of a product, with nothing around it.

#ifndef FP8RT_BENCH_BARE_MAPS_HPP
#define FP8RT_BENCH_BARE_MAPS_HPP

#include <cuda.h>

#include <cstdint>
#include <vector>

#include "bare_launch.hpp"

namespace fp8rt_bench {

class BareMaps {
 public:
  BareMaps() : encode_(driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled")) {}

  void add_codes(void *address, std::int64_t rows, std::int64_t columns) {
    add({CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, address, columns, rows, 128, CU_TENSOR_MAP_SWIZZLE_128B});
  }
  void add_output(void *address, std::int64_t rows, std::int64_t columns) {
    add({CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, address, columns, rows, 32, CU_TENSOR_MAP_SWIZZLE_64B});
  }
  // Column-major: groups by rows.
  void add_scales(void *address, std::int64_t rows, std::int64_t groups) {
    add({CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, address, rows, groups, 16, CU_TENSOR_MAP_SWIZZLE_NONE});
  }

  void operator()() const {
    for (const Matrix &matrix : matrices_) {
      encode(matrix);
    }
  }

 private:
  struct Matrix {
    CUtensorMapDataType type;
    std::int64_t element_bytes;
    void *address;
    std::int64_t inner, outer;
    std::uint32_t box;
    CUtensorMapSwizzle swizzle;
  };

  void add(const Matrix &matrix) {
    matrices_.push_back(matrix);
    encode(matrix);
  }
  void encode(const Matrix &matrix) const {
    const cuuint64_t extents[] = {static_cast<cuuint64_t>(matrix.inner), static_cast<cuuint64_t>(matrix.outer)};
    const cuuint64_t stride[] = {static_cast<cuuint64_t>(matrix.inner * matrix.element_bytes)};
    const cuuint32_t boxes[] = {matrix.box, 1}, steps[] = {1, 1};
    CUtensorMap map;
    if (encode_(&map, matrix.type, 2, matrix.address, extents, stride, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                matrix.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
      throw std::runtime_error("cuTensorMapEncodeTiled failed");
    }
  }

  decltype(cuTensorMapEncodeTiled) *encode_;
  std::vector<Matrix> matrices_;
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_BARE_MAPS_HPP
