// Tensor parallelism over two GPUs: what each rank quantizes of a layer, by itself, adds up to the whole layer.

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "both.hpp"
#include "fingerprints.hpp"
#include "linear.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kHidden = 1024, kHeads = 1024, kGroups = 256, kIntermediate = 1536;
constexpr const char *kDown = "mlp.down_proj.weight";

// A linear of the trainer, and whether ranks hold rows or columns of it.
struct Source {
  std::string name;
  Matrix values;
  bool by_rows;
};

std::vector<Source> make_layer() {
  std::vector<Source> layer;
  const auto add = [&](const char *name, std::int64_t rows, std::int64_t columns, bool by_rows) {
    Matrix values(FP8RT_DTYPE_BF16, {rows, columns});
    fill(values, Fill::kPlain, 128, next_seed());
    layer.push_back({name, values, by_rows});
  };
  add("self_attn.q_proj.weight", kHeads, kHidden, true);
  add("self_attn.k_proj.weight", kGroups, kHidden, true);
  add("self_attn.v_proj.weight", kGroups, kHidden, true);
  add("self_attn.o_proj.weight", kHidden, kHeads, false);
  add("mlp.gate_proj.weight", kIntermediate, kHidden, true);
  add("mlp.up_proj.weight", kIntermediate, kHidden, true);
  add(kDown, kHidden, kIntermediate, false);
  return layer;
}

// What one rank of `ranks` holds of the layer, on its device: merged weights, and a plan that fills them.
class Rank {
 public:
  Rank(const std::vector<Source> &layer, int device, int rank, int ranks)
      : device_(device), rank_(rank), ranks_(ranks), current_(device), context_(gpu_context(device)) {
    add("self_attn.qkv_proj.weight", {&layer[0], &layer[1], &layer[2]});
    add("self_attn.o_proj.weight", {&layer[3]});
    add("mlp.gate_up_proj.weight", {&layer[4], &layer[5]});
    add(kDown, {&layer[6]});
    plan_ = std::make_unique<fp8rt::Refit>(context_, destinations_, regions_);
    stream_ = std::make_unique<Stream>();
    fp8rt::check(fp8rt_context_prepare(context_.get(), stream_->get()));
  }

  // The whole tensors come to every rank, which takes its own.
  void refit(const std::vector<Source> &layer) {
    const CurrentDevice current(device_);
    std::vector<std::unique_ptr<DeviceMatrix>> sent;
    std::vector<fp8rt_refit_item> items;
    for (const Source &source : layer) {
      sent.push_back(std::make_unique<DeviceMatrix>(source.values));
      items.push_back(fp8rt::refit_item(source.name.c_str(), sent.back()->tensor(device_)));
    }
    plan_->begin();
    plan_->run(items, nullptr, stream_->get());
    plan_->finish();
    stream_->synchronize();
  }

  // By source, and the sum of all under "".
  std::map<std::string, fp8rt_fingerprint> fingerprints() const {
    const CurrentDevice current(device_);
    const std::uint32_t count = plan_->query().num_sources;
    DeviceBuffer memory(count * sizeof(fp8rt_fingerprint_sum));
    memory.fill(0);
    const auto sums = reinterpret_cast<fp8rt_fingerprint_sum *>(memory.data());
    std::vector<fp8rt_fingerprint> values(count);
    std::map<std::string, fp8rt_fingerprint> all;
    fp8rt::check(fp8rt_refit_fingerprint(plan_->get(), sums, stream_->get()));
    fp8rt::check(fp8rt_refit_fingerprint_read(plan_->get(), sums, count, values.data(), &all[""], stream_->get()));
    for (std::uint32_t i = 0; i < count; ++i) {
      all[plan_->source_name(i)] = values[i];
    }
    return all;
  }

  bool cut_on_blocks() const { return plan_->query().cut_on_blocks != 0; }

  // x . down^T over this rank's columns of both.
  Matrix down(const Matrix &x) const {
    const CurrentDevice current(device_);
    const DeviceMatrix &codes = *codes_.back(), &scales = *scales_.back();
    const std::int64_t columns = kIntermediate / ranks_;
    const DeviceMatrix input(box(x, rank_ * columns, columns));
    const DeviceMatrix output(Matrix(FP8RT_DTYPE_BF16, {x.rows(), kHidden}));
    fp8rt_linear_desc desc = fp8rt::linear_desc();
    desc.max_m = x.rows(), desc.n = kHidden, desc.k = columns;
    desc.input_dtype = desc.output_dtype = FP8RT_DTYPE_BF16;
    const fp8rt::LinearPlan plan(context_, desc);
    const DeviceWorkspace workspace(plan.workspace(x.rows()));
    const fp8rt_tensor views[] = {input.tensor(device_), codes.tensor(device_), scales.tensor(device_),
                                  output.tensor(device_)};
    fp8rt::check(fp8rt_linear(plan.get(), &views[0], &views[1], &views[2], nullptr, &views[3], workspace.data(),
                              workspace.bytes(), stream_->get()));
    stream_->synchronize();
    return output.download();
  }

 private:
  void add(const char *name, const std::vector<const Source *> &parts) {
    std::int64_t rows = 0, columns = 0;
    for (const Source *part : parts) {
      const std::int64_t own_rows = part->values.rows() / (part->by_rows ? ranks_ : 1);
      columns = part->values.columns() / (part->by_rows ? 1 : ranks_);
      fp8rt_refit_region region{};
      region.source = part->name.c_str();
      region.destination = static_cast<std::uint32_t>(destinations_.size());
      region.source_first[1] = part->by_rows ? rank_ * own_rows : 0;
      region.source_first[2] = part->by_rows ? 0 : rank_ * columns;
      region.extent[0] = 1, region.extent[1] = own_rows, region.extent[2] = columns;
      region.destination_first[1] = rows;
      regions_.push_back(region);
      rows += own_rows;
    }
    const Rule rule;
    codes_.push_back(std::make_unique<DeviceMatrix>(Matrix(FP8RT_DTYPE_E4M3, {rows, columns})));
    scales_.push_back(std::make_unique<DeviceMatrix>(make_scales(rule, {rows, columns})));
    destinations_.push_back(
        fp8rt::refit_destination(name, codes_.back()->tensor(device_), scales_.back()->tensor(device_)));
  }
  static Matrix box(const Matrix &x, std::int64_t first, std::int64_t columns) {
    Matrix part(x.dtype(), {x.rows(), columns});
    part.each([&](auto, auto row, auto column) { part.set(0, row, column, x.get(row, first + column)); });
    return part;
  }

  int device_;
  std::int64_t rank_, ranks_;
  CurrentDevice current_;
  fp8rt::Context context_;
  std::vector<std::unique_ptr<DeviceMatrix>> codes_, scales_;
  std::vector<fp8rt_refit_destination> destinations_;
  std::vector<fp8rt_refit_region> regions_;
  std::unique_ptr<fp8rt::Refit> plan_;
  std::unique_ptr<Stream> stream_;
};

TEST(RefitOnTwoDevices, ShardsAddUpToTheWhole) {
  const std::vector<Source> layer = make_layer();
  std::map<std::string, fp8rt_fingerprint> whole, first, second;
  {
    Rank all(layer, 0, 0, 1);
    all.refit(layer);
    whole = all.fingerprints();
  }
  for (const int rank : {0, 1}) {
    Rank own(layer, rank, rank, 2);
    EXPECT_TRUE(own.cut_on_blocks());
    own.refit(layer);
    (rank == 0 ? first : second) = own.fingerprints();
  }
  ASSERT_EQ(whole.size(), layer.size() + 1);
  for (const auto &[name, value] : whole) {
    EXPECT_EQ(first.at(name) + second.at(name), value) << name;
    EXPECT_NE(first.at(name), second.at(name)) << name;
  }
}

// One rank has other values of one tensor: its name says so.
TEST(RefitOnTwoDevices, ARankWithOtherValuesIsFound) {
  const std::vector<Source> layer = make_layer();
  std::vector<Source> other = layer;
  Matrix &damaged = other[5].values;
  damaged.set(0, kIntermediate - 1, 7, -3.5f * damaged.get(kIntermediate - 1, 7) + 1.0f);
  Rank all(layer, 0, 0, 1), zero(layer, 0, 0, 2), one(layer, 1, 1, 2);
  all.refit(layer), zero.refit(layer), one.refit(other);
  const auto whole = all.fingerprints(), first = zero.fingerprints(), second = one.fingerprints();
  for (const auto &[name, value] : whole) {
    const bool same = first.at(name) + second.at(name) == value;
    EXPECT_EQ(same, !name.empty() && name != other[5].name) << name;
  }
}

TEST(RefitOnTwoDevices, AllReducedOutputIsTheWholes) {
  const std::vector<Source> layer = make_layer();
  Matrix x(FP8RT_DTYPE_BF16, {37, kIntermediate});
  fill(x, Fill::kPlain, 1, next_seed());
  Rank all(layer, 0, 0, 1), zero(layer, 0, 0, 2), one(layer, 1, 1, 2);
  all.refit(layer), zero.refit(layer), one.refit(layer);
  const Matrix want = all.down(x), first = zero.down(x), second = one.down(x);
  double gap = 0, size = 0;
  want.each([&](auto, auto row, auto column) {
    const double y = want.get(row, column), sum = first.get(row, column) + second.get(row, column);
    gap += (sum - y) * (sum - y);
    size += y * y;
  });
  // Each of the three outputs was rounded to bf16.
  EXPECT_LT(std::sqrt(gap / size), 4e-3);
  EXPECT_GT(size, 0);
}

}  // namespace
}  // namespace fp8rt_test
