// Tensor maps, in a form that tests can read back out of the parameters of a launch.

#include <cstring>

#include "recording.hpp"

using namespace fake_cuda;

namespace {

static_assert(sizeof(fake_cuda_tensor_map) == sizeof(CUtensorMap), "a tensor map has 128 bytes");

bool valid(const fake_cuda_tensor_map &map) {
  if (map.rank < 1 || map.rank > 5 || map.address % 16 != 0) return false;
  for (int axis = 0; axis < map.rank; ++axis) {
    if (map.extent[axis] == 0 || map.extent[axis] > std::uint64_t{1} << 32) return false;
    if (map.box[axis] == 0 || map.box[axis] > 256) return false;
    if (axis + 1 < map.rank && (map.stride[axis] % 16 != 0 || map.stride[axis] >= std::uint64_t{1} << 40)) return false;
  }
  return true;
}

}  // namespace

CUresult cuTensorMapEncodeTiled(CUtensorMap *to, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                const cuuint64_t *extents, const cuuint64_t *strides, const cuuint32_t *box,
                                const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                                CUtensorMapFloatOOBfill fill) {
  return record(__func__, Needs::kNothing, {to, rank, address}, [&](fake_cuda_call &) {
    if (to == nullptr || reinterpret_cast<std::uintptr_t>(to) % 64 != 0 || rank < 1 || rank > 5) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    fake_cuda_tensor_map map{};
    map.address = reinterpret_cast<std::uintptr_t>(address);
    for (cuuint32_t axis = 0; axis < rank; ++axis) {
      map.extent[axis] = extents[axis];
      map.box[axis] = box[axis];
      if (axis + 1 < rank) map.stride[axis] = strides[axis];
      if (element_strides[axis] == 0) return CUDA_ERROR_INVALID_VALUE;
    }
    map.data_type = static_cast<std::uint8_t>(type);
    map.rank = static_cast<std::uint8_t>(rank);
    map.interleave = static_cast<std::uint8_t>(interleave);
    map.swizzle = static_cast<std::uint8_t>(swizzle);
    map.promotion = static_cast<std::uint8_t>(promotion);
    map.fill = static_cast<std::uint8_t>(fill);
    if (!valid(map)) return CUDA_ERROR_INVALID_VALUE;
    std::memcpy(to, &map, sizeof map);
    return CUDA_SUCCESS;
  });
}
