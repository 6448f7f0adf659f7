// A small model on a GPU, and tensors for it.

#ifndef FP8RT_TEST_PLAN_HPP
#define FP8RT_TEST_PLAN_HPP

#include <deque>
#include <map>

#include "weights.hpp"

namespace fp8rt_test {

// Names and tensors that refit a model: quantized ones of some shapes, and kept ones.
class Model {
 public:
  Model(const fp8rt::Context &context, int source_device, const std::vector<Shape> &quantized,
        const std::vector<std::int64_t> &kept)
      : weights(0, source_device, quantized) {
    for (const fp8rt_weight_entry &entry : weights.entries) {
      const char *name = add_name();
      destinations.push_back(fp8rt::refit_destination(name, entry.codes, entry.scales));
      items.push_back(fp8rt::refit_item(name, entry.weight));
    }
    for (const std::int64_t columns : kept) {
      const auto bytes = static_cast<std::uint64_t>(2 * columns);
      const char *name = add_name();
      destinations.push_back(fp8rt::refit_destination(name, add_norm(0, bytes, columns)));
      items.push_back(fp8rt::refit_item(name, add_norm(source_device, bytes, columns)));
    }
    refit.emplace_back(context, destinations);
    refit[0].begin();
  }

  fp8rt_status run(const Stream &stream, fp8rt_health *health = nullptr) {
    return run(items, stream, nullptr, 0, health);
  }

  fp8rt_status run(const std::vector<fp8rt_refit_item> &some, const Stream &stream, const Memory *staging,
                   std::uint64_t staging_bytes, fp8rt_health *health = nullptr) {
    return fp8rt_refit_run(refit[0].get(), some.data(), static_cast<std::uint32_t>(some.size()),
                           staging == nullptr ? nullptr : staging->data(), staging_bytes, health, &written,
                           stream.get());
  }

  Weights weights;
  std::vector<fp8rt_refit_destination> destinations;
  std::vector<fp8rt_refit_item> items;
  std::vector<fp8rt::Refit> refit;
  std::uint64_t written = 0;

 private:
  const char *add_name() {
    return names_.emplace_back("model.layers." + std::to_string(names_.size()) + ".weight").c_str();
  }

  fp8rt_tensor add_norm(int device, std::uint64_t bytes, std::int64_t columns) {
    norms_.emplace_back(device, bytes);
    fp8rt_tensor made = fp8rt::tensor(norms_.back().data(), FP8RT_DTYPE_BF16, {columns});
    made.device = device;
    return made;
  }

  std::deque<std::string> names_;
  std::deque<Memory> norms_;
};

}  // namespace fp8rt_test

#endif  // FP8RT_TEST_PLAN_HPP
