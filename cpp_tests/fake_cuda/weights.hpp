// Weights to quantize together, with their outputs on a GPU.

#ifndef FP8RT_TEST_WEIGHTS_HPP
#define FP8RT_TEST_WEIGHTS_HPP

#include "caller.hpp"

namespace fp8rt_test {

struct Shape {
  std::uint32_t dtype;
  std::int64_t rows, columns;
};

// One weight with its outputs on a GPU.
class Weight {
 public:
  Weight(int device, int source_device, const Shape &shape)
      : source_(source_device, static_cast<std::uint64_t>(shape.rows * shape.columns) * element_bytes(shape.dtype)),
        codes_(device, static_cast<std::uint64_t>(shape.rows * shape.columns)),
        scales_(device, static_cast<std::uint64_t>((shape.rows + 127) / 128 * ((shape.columns + 127) / 128)) * 4) {
    entry_.weight = fp8rt::tensor(source_.data(), static_cast<fp8rt_dtype>(shape.dtype), {shape.rows, shape.columns});
    entry_.weight.device = source_device;
    entry_.codes = fp8rt::tensor(codes_.data(), FP8RT_DTYPE_E4M3, {shape.rows, shape.columns});
    fp8rt::check(fp8rt_weight_scales_layout(nullptr, 0, shape.rows, shape.columns, &entry_.scales));
    entry_.scales.data = scales_.data();
    entry_.codes.device = entry_.scales.device = device;
  }

  const fp8rt_weight_entry &entry() const { return entry_; }
  const Memory &source() const { return source_; }

 private:
  Memory source_, codes_, scales_;
  fp8rt_weight_entry entry_{};
};

class Weights {
 public:
  Weights(int device, int source_device, const std::vector<Shape> &shapes) {
    for (const Shape &shape : shapes) weights_.emplace_back(device, source_device, shape);
    for (const Weight &weight : weights_) entries.push_back(weight.entry());
  }

  std::uint32_t count() const { return static_cast<std::uint32_t>(entries.size()); }
  const std::vector<Weight> &all() const { return weights_; }

  std::vector<fp8rt_weight_entry> entries;

 private:
  std::vector<Weight> weights_;
};

// Ten of bf16 and three of float32, none of them empty.
inline std::vector<Shape> mixed() {
  std::vector<Shape> shapes;
  for (std::int64_t i = 0; i < 10; ++i) shapes.push_back({FP8RT_DTYPE_BF16, 100 + 60 * i, 512});
  for (std::int64_t i = 0; i < 3; ++i) shapes.push_back({FP8RT_DTYPE_F32, 256, 128 + 64 * i});
  return shapes;
}

class Table {
 public:
  Table(const fp8rt::Context &context, const Weights &weights) {
    fp8rt::check(fp8rt_weight_table_create(context.get(), nullptr, weights.entries.data(), weights.count(), &handle_));
  }
  Table(const Table &) = delete;
  Table &operator=(const Table &) = delete;
  ~Table() { fp8rt_weight_table_destroy(handle_); }

  fp8rt_weight_table *get() const { return handle_; }

 private:
  fp8rt_weight_table *handle_ = nullptr;
};

class Refit : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(fp8rt_context_prepare(context.get(), stream.get()));
    fake_cuda_reset();
  }

  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_WEIGHTS_HPP
