#include "arguments.hpp"

#include <algorithm>
#include <iterator>

namespace fuzz {

namespace {

size_t item_size(uint32_t dtype) {
  switch (dtype) {
    case FP8RT_DTYPE_BF16:
    case FP8RT_DTYPE_F16:
      return 2;
    case FP8RT_DTYPE_E4M3:
      return 1;
    default:
      return 4;
  }
}

// Bytes from the first element to the last. Shapes here are small: hostile numbers come later, by damage.
size_t span(uint32_t dtype, const Shape &shape) {
  int64_t last = 0;
  for (uint32_t axis = 0; axis < shape.rank; axis++) {
    if (shape.extent[axis] == 0) {
      return 0;
    }
    last += (shape.extent[axis] - 1) * shape.stride[axis];
  }
  return static_cast<size_t>(last + 1) * item_size(dtype);
}

}  // namespace

Shape Arguments::matrix(int64_t rows, int64_t columns) {
  int64_t stride = columns + (reader_.chance(4) ? reader_.byte() % 20 : 0);
  return Shape{2, {rows, columns, 0}, {stride, 1, 0}};
}

Shape Arguments::weight(int64_t experts, int64_t rows, int64_t columns) {
  Shape shape = matrix(rows, columns);
  if (experts == 0) {
    return shape;
  }
  int64_t stride = shape.stride[0];
  return Shape{3, {experts, rows, columns}, {rows * stride, stride, 1}};
}

fp8rt_tensor Arguments::placed(uint32_t dtype, const Shape &shape) {
  size_t shift = reader_.chance(16) ? reader_.byte() % 16 : 0;
  Window window = arena_.place(span(dtype, shape), 16, shift);
  fp8rt_tensor tensor = {arena_.data(window), window.size, dtype, -1, shape.rank, 0, {0, 0, 0}, {0, 0, 0}};
  std::copy_n(shape.extent, 3, tensor.shape);
  std::copy_n(shape.stride, 3, tensor.stride);
  return tensor;
}

// Whatever is damaged, `data` and `bytes` stay a part of the arena's windows.
void Arguments::damage(fp8rt_tensor &tensor) {
  uint8_t choice = reader_.byte() % 10;
  uint32_t axis = reader_.byte() % 3U;
  if (choice == 0) {
    tensor.data = nullptr;
  } else if (choice == 1 && tensor.bytes > 0 && tensor.data != nullptr) {
    uint64_t step = 1 + reader_.byte() % std::min<uint64_t>(tensor.bytes, 16);
    tensor.data = static_cast<uint8_t *>(tensor.data) + step;
    tensor.bytes -= step;
  } else if (choice == 2) {
    tensor.bytes -= std::min<uint64_t>(tensor.bytes, 1 + reader_.byte());
  } else if (choice == 3) {
    tensor.dtype = reader_.chance(2) ? reader_.word() : reader_.byte() % 8U;
  } else if (choice == 4) {
    tensor.device = static_cast<int32_t>(reader_.hostile());
  } else if (choice == 5) {
    tensor.rank = reader_.chance(2) ? reader_.word() : reader_.byte() % 5U;
  } else if (choice == 6) {
    tensor.reserved = reader_.word();
  } else if (choice == 7) {
    tensor.shape[axis] = reader_.hostile();
  } else if (choice == 8) {
    tensor.stride[axis] = reader_.hostile();
  } else if (!tensors_.empty()) {
    const fp8rt_tensor &other = tensors_[reader_.byte() % tensors_.size()];
    tensor.data = other.data;
    tensor.bytes = other.bytes;
  }
}

const fp8rt_tensor *Arguments::finish(fp8rt_tensor tensor, bool is_output) {
  if (reader_.chance(8)) {
    for (int count = 1 + reader_.byte() % 3; count > 0; count--) {
      damage(tensor);
    }
  }
  if (is_output && tensor.data != nullptr) {
    size_t begin = static_cast<size_t>(static_cast<uint8_t *>(tensor.data) - arena_.data(Window{}));
    arena_.mark_output(Window{begin, tensor.bytes});
  }
  tensors_.push_back(tensor);
  return reader_.chance(64) ? nullptr : &tensors_.back();
}

const fp8rt_tensor *Arguments::input(uint32_t dtype, const Shape &shape) { return finish(placed(dtype, shape), false); }

const fp8rt_tensor *Arguments::output(uint32_t dtype, const Shape &shape) { return finish(placed(dtype, shape), true); }

const fp8rt_tensor *Arguments::scales(const fp8rt_tensor &layout, bool is_output) {
  fp8rt_tensor tensor = layout;
  Window window = arena_.place(layout.bytes, 16, reader_.chance(32) ? reader_.byte() % 16 : 0);
  tensor.data = arena_.data(window);
  tensor.bytes = window.size;
  return finish(tensor, is_output);
}

void *Arguments::raw_output(size_t size, size_t alignment) {
  if (reader_.chance(32)) {
    return nullptr;
  }
  Window window = arena_.place(size, alignment, reader_.chance(32) ? reader_.byte() % 8 : 0);
  if (window.size < size) {
    return nullptr;
  }
  arena_.mark_output(window);
  return arena_.data(window);
}

const int64_t *Arguments::parts(int64_t rows, uint32_t *count) {
  *count = 0;
  if (!reader_.chance(4)) {
    return nullptr;
  }
  std::vector<int64_t> &parts = parts_.emplace_back();
  int64_t first = rows / 3;
  parts = {first, rows - first};
  if (reader_.chance(4)) {
    parts[reader_.byte() % 2] = reader_.hostile();
  }
  *count = static_cast<uint32_t>(reader_.chance(8) ? reader_.byte() % 3 : 2);
  return reader_.chance(16) ? nullptr : parts.data();
}

fp8rt_quantize_desc Arguments::quantization(int64_t rows) {
  fp8rt_quantize_desc desc = {};
  desc.recipe = reader_.byte() % 5U;
  desc.scale_format = reader_.byte() % 3U;
  desc.part_rows = parts(rows, &desc.num_parts);
  if (reader_.chance(4)) {
    desc.flags = FP8RT_QUANTIZE_FLOOR;
    uint32_t bits = reader_.word();
    std::memcpy(&desc.floor, &bits, sizeof bits);
  }
  if (reader_.chance(16)) {
    desc.flags = reader_.word();
    desc.recipe = reader_.word();
    desc.scale_format = reader_.word();
  }
  return desc;
}

fp8rt_linear_desc Arguments::linear(int64_t m, int64_t n, int64_t k) {
  fp8rt_linear_desc desc = {};
  desc.max_m = m;
  desc.n = n;
  desc.k = k;
  desc.input_dtype = float_dtype();
  desc.output_dtype = float_dtype();
  desc.bias_dtype = reader_.byte() % 4U;
  desc.activation_recipe = reader_.byte() % 5U;
  desc.activation_scale_format = reader_.byte() % 2U;
  desc.activation_scale_layout = reader_.byte() % 2U;
  desc.weight_scale_format = reader_.byte() % 2U;
  desc.flags = reader_.byte() % 4U;
  desc.part_rows = parts(n, &desc.num_parts);
  for (int count = reader_.chance(6) ? 1 + reader_.byte() % 2 : 0; count > 0; count--) {
    // A 64-bit field or two of 32 bits, but never num_parts and part_rows, which must stay honest.
    static const size_t places[] = {8, 16, 24, 32, 40, 48, 56, 80, 88, 96};
    int64_t number = reader_.hostile();
    size_t place = places[reader_.byte() % std::size(places)];
    std::memcpy(reinterpret_cast<uint8_t *>(&desc) + place, &number, sizeof number);
  }
  return desc;
}

}  // namespace fuzz
