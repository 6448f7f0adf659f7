// Many tensors of mixed sizes and types as one refit, on the GPU and on the host.

#ifndef FP8RT_TEST_REFIT_HPP
#define FP8RT_TEST_REFIT_HPP

#include <memory>
#include <vector>

#include "both.hpp"

namespace fp8rt_test {

struct RefitTensor {
  RefitTensor(const Rule &rule_, Operands operands_) : rule(rule_), operands(std::move(operands_)), device(operands) {}

  Rule rule;
  Operands operands;
  DeviceOperands device;
};

class Refit {
 public:
  Refit(std::uint32_t recipe, std::uint32_t format, int count) : rule_(rule_of(recipe, format, false)) {
    Bits bits(next_seed());
    for (int index = 0; index < count; ++index) {
      add(bits, index);
    }
  }

  std::size_t size() const { return tensors_.size(); }
  RefitTensor &at(std::size_t index) { return *tensors_[index]; }
  fp8rt_quantize_desc desc() const { return rule_.desc(); }

  // Views of device memory.
  std::vector<fp8rt_weight_entry> entries() const {
    std::vector<fp8rt_weight_entry> all;
    for (const auto &tensor : tensors_) {
      const DeviceOperands &device = tensor->device;
      all.push_back(entry(*tensor, device.values.tensor(), device.codes.tensor(), device.scales.tensor()));
    }
    return all;
  }
  // Views of host memory.
  std::vector<fp8rt_weight_entry> host_entries() const {
    std::vector<fp8rt_weight_entry> all;
    for (const auto &tensor : tensors_) {
      const Operands &operands = tensor->operands;
      all.push_back(entry(*tensor, operands.values.tensor(), operands.codes.tensor(), operands.scales.tensor()));
    }
    return all;
  }

  // New sources at the same addresses, and poisoned outputs.
  void change() {
    for (const auto &tensor : tensors_) {
      Operands &operands = tensor->operands;
      fill(operands.values, Fill::kSpreadNonFinite, 128, next_seed());
      tensor->device.values.upload(operands.values);
    }
    poison();
  }
  void poison() {
    for (const auto &tensor : tensors_) {
      Operands &operands = tensor->operands;
      operands.codes = Matrix(FP8RT_DTYPE_E4M3, operands.codes.extents(), operands.codes.strides());
      operands.scales = make_scales(tensor->rule, operands.values.extents());
      tensor->device.codes.upload(operands.codes);
      tensor->device.scales.upload(operands.scales);
    }
  }

  // The host quantizes tensor by tensor; the GPU has the same bytes. Adds to `health`.
  ::testing::AssertionResult is_right(fp8rt_health *health = nullptr) {
    for (std::size_t index = 0; index < size(); ++index) {
      RefitTensor &tensor = at(index);
      const auto done =
          succeeded(call_on_host(function_of(Kind::kQuantize, false), tensor.rule, tensor.operands, health));
      const auto same = tensor.device.same(tensor.operands);
      if (!done || !same) {
        return ::testing::AssertionFailure() << "tensor " << index << ", " << done.message() << same.message() << ", "
                                             << describe(tensor.rule, tensor.operands.values);
      }
    }
    return ::testing::AssertionSuccess();
  }
  // No output was written.
  ::testing::AssertionResult is_untouched() const {
    for (std::size_t index = 0; index < size(); ++index) {
      const auto same = tensors_[index]->device.same(tensors_[index]->operands);
      if (!same) {
        return ::testing::AssertionFailure() << "tensor " << index << ": " << same.message();
      }
    }
    return ::testing::AssertionSuccess();
  }
  // Bytes of the largest source.
  std::size_t largest() const {
    std::size_t most = 0;
    for (const auto &tensor : tensors_) {
      most = std::max(most, tensor->operands.values.bytes());
    }
    return most;
  }
  // The least staging that takes every tensor: two times 128 rows of the widest.
  std::size_t least_staging() const {
    std::size_t most = 256;
    for (const auto &tensor : tensors_) {
      const Matrix &values = tensor->operands.values;
      const std::size_t row = static_cast<std::size_t>(values.columns()) * element_bytes(values.dtype());
      most = std::max(most, (128 * row + 255) / 256 * 256);
    }
    return 2 * most;
  }

 private:
  static fp8rt_weight_entry entry(const RefitTensor &tensor, const fp8rt_tensor &weight, const fp8rt_tensor &codes,
                                  const fp8rt_tensor &scales) {
    fp8rt_weight_entry view{};
    view.weight = weight;
    view.codes = codes;
    view.scales = scales;
    view.part_rows = tensor.rule.parts.empty() ? nullptr : tensor.rule.parts.data();
    view.num_parts = static_cast<std::uint32_t>(tensor.rule.parts.size());
    return view;
  }

  // Tiny ones, odd ones, ones of whole blocks, ones with experts or parts, an empty one.
  void add(Bits &bits, int index) {
    Rule rule = rule_;
    Extents extents{bits.between(1, 700), bits.between(1, 1500)};
    if (index % 6 == 0) {
      extents = {bits.between(1, 5), bits.between(1, 9)};
    } else if (index % 6 == 1) {
      extents = {128 * bits.between(1, 12), 128 * bits.between(1, 16)};
    } else if (index % 6 == 2) {
      extents = {bits.between(1, 200), bits.between(1, 300), bits.between(1, 5)};
    } else if (index % 6 == 3) {
      const std::int64_t first = bits.between(0, extents.rows), second = bits.between(0, extents.rows - first);
      rule.parts = {first, second, extents.rows - first - second};
    } else if (index == 4) {
      extents = {0, 300};
    } else if (index == 5) {
      extents = {1500, 2048};
    }
    const std::int64_t gap = index % 4 == 0 ? bits.between(0, 20) : 0;
    const std::uint32_t dtype = kFloats[bits.next() % 3];
    Operands operands =
        make_operands(rule, Matrix(dtype, extents, {extents.columns + gap}), Fill::kSpreadNonFinite);
    operands.codes = make_codes(extents, {extents.columns + index % 3});
    tensors_.push_back(std::make_unique<RefitTensor>(rule, std::move(operands)));
  }

  Rule rule_;
  std::vector<std::unique_ptr<RefitTensor>> tensors_;
};

// Owns a table of weights.
class WeightTable {
 public:
  WeightTable(const fp8rt::Context &context, const fp8rt_quantize_desc &desc,
              const std::vector<fp8rt_weight_entry> &entries) {
    fp8rt::check(fp8rt_weight_table_create(context.get(), &desc, entries.data(),
                                           static_cast<std::uint32_t>(entries.size()), &table_));
  }
  WeightTable(const WeightTable &) = delete;
  WeightTable &operator=(const WeightTable &) = delete;
  ~WeightTable() { fp8rt_weight_table_destroy(table_); }

  fp8rt_status run(fp8rt_health *health, cudaStream_t stream) const {
    return fp8rt_weight_table_run(table_, health, stream);
  }

 private:
  fp8rt_weight_table *table_ = nullptr;
};

inline fp8rt_status quantize_weights(const fp8rt::Context &context, const Refit &refit,
                                     const std::vector<fp8rt_weight_entry> &entries, fp8rt_health *health,
                                     cudaStream_t stream) {
  const fp8rt_quantize_desc desc = refit.desc();
  return fp8rt_quantize_weights(context.get(), &desc, entries.data(), static_cast<std::uint32_t>(entries.size()),
                                health, stream);
}

// The sources of a refit in page-locked memory, as views that stand in for the device's.
class PinnedSources {
 public:
  explicit PinnedSources(Refit &refit) : entries_(refit.entries()) {
    for (std::size_t index = 0; index < refit.size(); ++index) {
      const Matrix &values = refit.at(index).operands.values;
      memory_.push_back(std::make_unique<PinnedBuffer>(values.bytes()));
      std::memcpy(memory_.back()->data(), values.data(), values.bytes());
      entries_[index].weight.data = memory_.back()->data();
      entries_[index].weight.device = -1;
    }
  }

  const std::vector<fp8rt_weight_entry> &entries() const { return entries_; }

 private:
  std::vector<fp8rt_weight_entry> entries_;
  std::vector<std::unique_ptr<PinnedBuffer>> memory_;
};

inline fp8rt_status quantize_from_host(const fp8rt::Context &context, const Refit &refit, const PinnedSources &sources,
                                       const DeviceBuffer &staging, fp8rt_health *health, cudaStream_t stream) {
  const fp8rt_quantize_desc desc = refit.desc();
  return fp8rt_quantize_weights_from_host(context.get(), &desc, sources.entries().data(),
                                          static_cast<std::uint32_t>(sources.entries().size()), staging.data(),
                                          staging.bytes(), health, stream);
}

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_REFIT_HPP
