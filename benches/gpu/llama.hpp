// The parameters of Llama-3.1-8B as a trainer names them and as an engine holds them: q, k, v and gate, up merged.

#ifndef FP8RT_BENCH_LLAMA_HPP
#define FP8RT_BENCH_LLAMA_HPP

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "tensors.hpp"

namespace fp8rt_bench {

struct TrainerTensor {
  std::string name;
  std::int64_t rows, columns;
};

class LlamaModel {
 public:
  enum class Parameters { kAll, kLinears };

  static constexpr int kLayers = 32;
  static constexpr std::int64_t kHidden = 4096, kKeyValue = 1024, kIntermediate = 14336, kVocabulary = 128256;

  explicit LlamaModel(const fp8rt::Context &context, Parameters parameters = Parameters::kAll) {
    const bool all = parameters == Parameters::kAll;
    if (all) {
      keep("model.embed_tokens.weight", kVocabulary);
    }
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      quantize(prefix + "self_attn.", "qkv_proj", {{"q_proj", kHidden}, {"k_proj", kKeyValue}, {"v_proj", kKeyValue}},
               kHidden);
      quantize(prefix + "self_attn.", "o_proj", {{"o_proj", kHidden}}, kHidden);
      quantize(prefix + "mlp.", "gate_up_proj", {{"gate_proj", kIntermediate}, {"up_proj", kIntermediate}}, kHidden);
      quantize(prefix + "mlp.", "down_proj", {{"down_proj", kHidden}}, kIntermediate);
      if (all) {
        keep(prefix + "input_layernorm.weight", 1);
        keep(prefix + "post_attention_layernorm.weight", 1);
      }
    }
    if (all) {
      keep("model.norm.weight", 1);
      keep("lm_head.weight", kVocabulary);
    }
    refit_ = std::make_unique<fp8rt::Refit>(context, destinations_, regions_);
  }

  fp8rt::Refit &refit() { return *refit_; }
  // In the order in which a trainer sends them.
  const std::deque<TrainerTensor> &tensors() const { return tensors_; }

  // Items that fill buckets of so many bytes, all of them in the same memory; tensors are cut on blocks.
  std::vector<std::vector<fp8rt_refit_item>> buckets(const DeviceBuffer &memory, std::int64_t bytes) const {
    std::vector<std::vector<fp8rt_refit_item>> all(1);
    std::int64_t used = 0;
    for (const TrainerTensor &tensor : tensors_) {
      const std::int64_t row_bytes = 2 * tensor.columns;
      for (std::int64_t row = 0; row < tensor.rows;) {
        std::int64_t count = std::min(tensor.rows - row, (bytes - used) / row_bytes);
        if (row + count < tensor.rows) {
          count -= count % 128;
        }
        if (count == 0) {
          all.emplace_back();
          used = 0;
          continue;
        }
        fp8rt_tensor cut = fp8rt::tensor(memory.data() + used, FP8RT_DTYPE_BF16, {count, tensor.columns});
        cut.device = kDevice;
        fp8rt_refit_item item = fp8rt::refit_item(tensor.name.c_str(), cut);
        item.first_row = row;
        all.back().push_back(item);
        used += (count * row_bytes + 255) / 256 * 256;
        row += count;
      }
    }
    return all;
  }

 private:
  struct Part {
    const char *name;
    std::int64_t rows;
  };

  void keep(const std::string &name, std::int64_t rows) {
    tensors_.push_back({name, rows, kHidden});
    memory_.push_back(std::make_unique<Tensor>(FP8RT_DTYPE_BF16, rows, kHidden));
    destinations_.push_back(fp8rt::refit_destination(tensors_.back().name.c_str(), memory_.back()->view));
  }

  void quantize(const std::string &prefix, const char *name, const std::vector<Part> &parts, std::int64_t columns) {
    std::int64_t rows = 0;
    const auto destination = static_cast<std::uint32_t>(destinations_.size());
    for (const Part &part : parts) {
      tensors_.push_back({prefix + part.name + ".weight", part.rows, columns});
      regions_.push_back(
          {tensors_.back().name.c_str(), destination, 0, {0, 0, 0}, {1, part.rows, columns}, {0, rows, 0}});
      rows += part.rows;
    }
    names_.push_back(prefix + name + ".weight");
    memory_.push_back(std::make_unique<Tensor>(FP8RT_DTYPE_E4M3, rows, columns));
    const fp8rt_tensor codes = memory_.back()->view;
    memory_.push_back(std::make_unique<Tensor>(weight_scales(rows, columns)));
    // Every part is a multiple of 128 rows: one grid.
    destinations_.push_back(fp8rt::refit_destination(names_.back().c_str(), codes, memory_.back()->view));
  }

  // Names stay where they are.
  std::deque<TrainerTensor> tensors_;
  std::deque<std::string> names_;
  std::vector<std::unique_ptr<Tensor>> memory_;
  std::vector<fp8rt_refit_destination> destinations_;
  std::vector<fp8rt_refit_region> regions_;
  std::unique_ptr<fp8rt::Refit> refit_;
};

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_LLAMA_HPP
