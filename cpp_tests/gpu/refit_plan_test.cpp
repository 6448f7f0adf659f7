// One model twice: a refit plan on the GPU and one on the host get the same tensors, and every byte of the
// destinations, their gaps and their surroundings is the same afterwards.

#include <gtest/gtest.h>

#include <deque>
#include <memory>

#include "both.hpp"
#include "parameter.hpp"

namespace fp8rt_test {
namespace {

enum class Where { kDevice, kPinned, kPageable };

// A tensor that is sent, on the host, on the device and in pinned memory. Quantized ones have scales.
class Sent {
 public:
  Sent(fp8rt_refit_item its_item, Matrix its_values, std::unique_ptr<Matrix> its_scales = nullptr)
      : item_(its_item),
        values_(std::move(its_values)),
        scales_(std::move(its_scales)),
        device_(values_),
        pinned_(values_.storage().size()) {
    if (scales_ != nullptr) device_scales_ = std::make_unique<DeviceMatrix>(*scales_);
    change();
  }

  // New values, but for what is quantized already.
  void change() {
    if (scales_ == nullptr) fill(values_, Fill::kSpreadNonFinite, 128, next_seed());
    device_.upload(values_);
    std::memcpy(pinned_.data(), values_.data(), values_.bytes());
  }

  fp8rt_refit_item on_host() const {
    fp8rt_refit_item made = item_;
    made.weight = values_.tensor();
    if (scales_ != nullptr) made.scales = scales_->tensor();
    return made;
  }

  fp8rt_refit_item on_gpu(Where where) const {
    fp8rt_refit_item made = on_host();
    if (where == Where::kPinned) made.weight.data = pinned_.data();
    if (where == Where::kDevice) {
      made.weight = device_.tensor();
      if (scales_ != nullptr) made.scales = device_scales_->tensor();
    }
    return made;
  }

 private:
  fp8rt_refit_item item_;
  Matrix values_;
  std::unique_ptr<Matrix> scales_;
  DeviceMatrix device_;
  std::unique_ptr<DeviceMatrix> device_scales_;
  PinnedBuffer pinned_;
};

fp8rt_refit_item named(const char *name, std::int64_t row = 0, std::int64_t column = 0) {
  fp8rt_refit_item made{};
  made.name = name, made.first_row = row, made.first_column = column;
  return made;
}

fp8rt_refit_item part_of(const char *name, std::uint32_t part, std::int64_t row = 0) {
  fp8rt_refit_item made = named(name, row);
  made.flags = FP8RT_REFIT_ITEM_PART, made.part = part;
  return made;
}

fp8rt_refit_item expert_of(const char *name, std::int64_t expert) {
  fp8rt_refit_item made = named(name);
  made.flags = FP8RT_REFIT_ITEM_EXPERT, made.expert = expert;
  return made;
}

class BothPlans : public ::testing::TestWithParam<std::uint32_t> {
 protected:
  BothPlans() {
    const std::uint32_t format = GetParam();
    const auto rule = [&](std::vector<std::int64_t> parts, std::uint32_t recipe = FP8RT_RECIPE_NEMO_RL) {
      Rule made = rule_of(recipe, format, false);
      made.parts = std::move(parts);
      return made;
    };
    parameters_.emplace_back("plain", rule({}), Extents{1100, 2048});
    parameters_.emplace_back("merged", rule({192, 66, 256, 131}), Extents{645, 700}, 5);
    parameters_.emplace_back("slab", rule({128, 72}, FP8RT_RECIPE_VLLM), Extents{200, 1030, 3});
    parameters_.emplace_back("shard", rule({192, 192}), Extents{384, 1024});
    parameters_.emplace_back("column", rule({}), Extents{512, 192});
    parameters_.emplace_back("quantized", rule({192, 129}), Extents{321, 1100}, 4);
    parameters_.emplace_back("norm", FP8RT_DTYPE_BF16, Extents{1, 4096});
    parameters_.emplace_back("embedding", FP8RT_DTYPE_F32, Extents{300, 70}, 3);
    const std::vector<fp8rt_refit_region> regions = {
        region("gate", 3, {0, 192, 0}, {192, 1024}, {}), region("up", 3, {0, 192, 0}, {192, 1024}, {0, 192, 0}),
        region("down", 4, {0, 0, 192}, {512, 192}, {}), region("embed", 7, {0, 300, 0}, {300, 70}, {})};
    std::vector<fp8rt_refit_destination> on_host, on_gpu;
    for (const Parameter &parameter : parameters_) {
      codes_.emplace_back(parameter.codes), scales_.emplace_back(parameter.scales);
      on_host.push_back(parameter.destination());
      fp8rt_refit_destination there = parameter.destination();
      there.codes = codes_.back().tensor();
      if (!parameter.kept) there.scales = scales_.back().tensor();
      on_gpu.push_back(there);
    }
    host_plan_ = std::make_unique<fp8rt::Refit>(host(), on_host, regions);
    gpu_plan_ = std::make_unique<fp8rt::Refit>(gpu(), on_gpu, regions);
    send(format);
  }

  void send(std::uint32_t format) {
    const auto add = [&](fp8rt_refit_item made, std::uint32_t dtype, Extents extents, std::int64_t gap = 0) {
      sent_.push_back(std::make_unique<Sent>(made, Matrix(dtype, extents, {extents.columns + gap})));
    };
    add(named("plain", 256, 1024), FP8RT_DTYPE_BF16, {844, 1024});
    add(part_of("merged", 3, 128), FP8RT_DTYPE_F16, {3, 700});
    add(named("up"), FP8RT_DTYPE_BF16, {384, 1024});
    add(expert_of("slab", 1), FP8RT_DTYPE_F32, {200, 1030, 2});
    add(named("norm", 0, 64), FP8RT_DTYPE_BF16, {1, 4032});
    add(part_of("merged", 0), FP8RT_DTYPE_BF16, {192, 700}, 4);
    add(named("plain"), FP8RT_DTYPE_BF16, {256, 2048}, 8);
    add(named("down"), FP8RT_DTYPE_BF16, {512, 384});
    add(part_of("merged", 1), FP8RT_DTYPE_BF16, {66, 700});
    add(named("embed", 290), FP8RT_DTYPE_F32, {410, 70}, 1);
    add(named("plain", 256), FP8RT_DTYPE_F32, {844, 1024});
    add(expert_of("slab", 0), FP8RT_DTYPE_BF16, {200, 1030});
    add(named("gate"), FP8RT_DTYPE_F16, {384, 1024});
    add(part_of("merged", 3), FP8RT_DTYPE_BF16, {128, 700});
    add(part_of("merged", 2), FP8RT_DTYPE_BF16, {256, 700}, 1);
    add(named("norm"), FP8RT_DTYPE_BF16, {1, 64});
    Rule rule = rule_of(FP8RT_RECIPE_NEMO_RL, format, false);
    rule.parts = {192, 129};
    Operands made = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {321, 1100}), Fill::kSpread, true);
    call_on_host(function_of(Kind::kQuantize, false), rule, made, nullptr);
    sent_.push_back(std::make_unique<Sent>(named("quantized"), made.codes, std::make_unique<Matrix>(made.scales)));
  }

  // A refit in buckets of `bucket` tensors on both sides.
  void refit(Where where, std::size_t bucket, std::uint64_t staging_bytes) {
    const DeviceHealth health;
    const DeviceBuffer staging(staging_bytes);
    fp8rt_health want{}, read{};
    host_plan_->begin(), gpu_plan_->begin();
    for (std::size_t first = 0; first < sent_.size(); first += bucket) {
      std::vector<fp8rt_refit_item> here, there;
      for (std::size_t i = first; i < std::min(first + bucket, sent_.size()); ++i) {
        here.push_back(sent_[i]->on_host());
        // Column-major scales on the host do not fit row-major ones on the device.
        there.push_back(sent_[i]->on_gpu(sent_[i]->on_host().scales.data == nullptr ? where : Where::kDevice));
      }
      EXPECT_EQ(gpu_plan_->run(there, health.get(), stream_.get(), staging.data(), staging.bytes()),
                host_plan_->run(here, &want));
    }
    const fp8rt_refit_receipt receipt = gpu_plan_->finish(), expected = host_plan_->finish();
    EXPECT_EQ(receipt.bytes_read, expected.bytes_read);
    EXPECT_EQ(receipt.blocks_filled, expected.blocks_filled);
    ASSERT_OK(fp8rt_health_read(gpu().get(), health.get(), &read, stream_.get()));
    EXPECT_TRUE(same_health(read, want));
    EXPECT_TRUE(is_same());
  }

  ::testing::AssertionResult is_same() const {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const auto codes = same_bytes(codes_[i].download(), parameters_[i].codes);
      const auto scales = same_bytes(scales_[i].download(), parameters_[i].scales);
      if (!codes || !scales) {
        return ::testing::AssertionFailure() << parameters_[i].name << ": " << codes.message() << scales.message();
      }
    }
    return ::testing::AssertionSuccess();
  }

  void change() {
    for (const auto &sent : sent_) sent->change();
  }

  std::vector<fp8rt_refit_item> all(Where where) const {
    std::vector<fp8rt_refit_item> made;
    for (const auto &sent : sent_) made.push_back(sent->on_gpu(where));
    return made;
  }

  void refit_host() {
    std::vector<fp8rt_refit_item> here;
    for (const auto &sent : sent_) here.push_back(sent->on_host());
    host_plan_->begin();
    host_plan_->run(here);
    host_plan_->finish();
  }

  std::deque<Parameter> parameters_;
  std::deque<DeviceMatrix> codes_, scales_;
  std::vector<std::unique_ptr<Sent>> sent_;
  std::unique_ptr<fp8rt::Refit> host_plan_, gpu_plan_;
  Stream stream_;
};

// R1: three times at the same addresses.
TEST_P(BothPlans, R1FromTheDevice) {
  for (const std::size_t bucket : {std::size_t{100}, std::size_t{5}, std::size_t{1}}) {
    refit(Where::kDevice, bucket, 0);
    change();
  }
}

TEST_P(BothPlans, FromTheHostThroughStaging) {
  const std::uint64_t least = gpu_plan_->query().staging_bytes;
  EXPECT_GT(least, 0u);
  for (const Where where : {Where::kPinned, Where::kPageable}) {
    for (const std::uint64_t bytes : {least, 3 * least + 1000}) {
      refit(where, 4, bytes);
      change();
    }
  }
}

// R2: a replay reads what the sources hold then; after tensors moved, a new table does.
TEST_P(BothPlans, R2ABoundTableInAGraph) {
  ASSERT_OK(fp8rt_context_prepare(gpu().get(), stream_.get()));
  for (int binding = 0; binding < 2; ++binding) {
    const fp8rt::WeightTable table = gpu_plan_->bind(all(Where::kDevice));
    const Graph graph(stream_, [&] { EXPECT_OK(fp8rt_weight_table_run(table.get(), nullptr, stream_.get())); });
    EXPECT_GT(graph.nodes(), 0u);
    for (int replay = 0; replay < 3; ++replay) {
      change();
      refit_host();
      graph.launch(stream_);
      stream_.synchronize();
      ASSERT_TRUE(is_same()) << "binding " << binding << ", replay " << replay;
    }
    sent_.clear();
    send(GetParam());
  }
}

TEST_P(BothPlans, ACapturedRun) {
  ASSERT_OK(fp8rt_context_prepare(gpu().get(), stream_.get()));
  gpu_plan_->begin();
  const Graph graph(stream_, [&] { EXPECT_GT(gpu_plan_->run(all(Where::kDevice), nullptr, stream_.get()), 0u); });
  gpu_plan_->finish();
  change();
  refit_host();
  graph.launch(stream_);
  stream_.synchronize();
  EXPECT_TRUE(is_same());
}

TEST_P(BothPlans, ARunTakesNoMemoryOfTheDevice) {
  std::size_t before = 0, after = 0, total = 0;
  for (int round = 0; round < 10; ++round) {
    gpu_plan_->begin();
    gpu_plan_->run(all(Where::kDevice), nullptr, stream_.get());
    stream_.synchronize();
    CUDA(cudaMemGetInfo(round == 0 ? &before : &after, &total));
  }
  EXPECT_EQ(before, after);
}

// Items may go as soon as the call returns, though the work has not begun.
TEST_P(BothPlans, ItemsAreReadDuringTheCallOnly) {
  DeviceBuffer busy(std::size_t{1} << 30);
  std::vector<fp8rt_refit_item> items = all(Where::kDevice);
  for (int round = 0; round < 4; ++round) CUDA(cudaMemsetAsync(busy.data(), round, busy.bytes(), stream_.get()));
  gpu_plan_->begin();
  gpu_plan_->run(items, nullptr, stream_.get());
  std::memset(static_cast<void *>(items.data()), 0xFF, items.size() * sizeof items[0]);
  refit_host();
  stream_.synchronize();
  EXPECT_TRUE(is_same());
}

TEST_P(BothPlans, IntoViewsOfTheCaller) {
  const Rule rule = parameters_[1].rule;
  Operands here = make_operands(rule, Matrix(FP8RT_DTYPE_BF16, {645, 700}, {707}), Fill::kSpreadNonFinite);
  const DeviceOperands there(here);
  fp8rt_refit_item made = named("merged");
  made.weight = there.values.tensor();
  const fp8rt_tensor codes = there.codes.tensor(), scales = there.scales.tensor();
  ASSERT_OK(fp8rt_refit_quantize_into(gpu_plan_->get(), &made, &codes, &scales, 1, nullptr, stream_.get()));
  stream_.synchronize();
  ASSERT_OK(call_on_host(function_of(Kind::kQuantize, false), rule, here, nullptr));
  EXPECT_TRUE(there.same(here));
}

std::string format_name(const ::testing::TestParamInfo<std::uint32_t> &info) {
  const char *const names[] = {"Fp32", "Pow2", "Packed"};
  return names[info.param];
}

INSTANTIATE_TEST_SUITE_P(Formats, BothPlans, ::testing::ValuesIn(kFormats), format_name);

// A plan whose sources lie in pinned memory waits for nothing but its stream; a wrong item leaves all as it was.
TEST(RefitPlan, AWrongItemEnqueuesNothing) {
  const Rule rule = rule_of(FP8RT_RECIPE_NEMO_RL, FP8RT_SCALE_FORMAT_FP32, false);
  Parameter parameter("weight", rule, {256, 256});
  const DeviceMatrix codes(parameter.codes), scales(parameter.scales);
  const DeviceMatrix source(Matrix(FP8RT_DTYPE_BF16, {256, 256}));
  fp8rt::Refit refit(gpu(), {fp8rt::refit_destination("weight", codes.tensor(), scales.tensor())});
  refit.begin();
  const Stream stream;
  const fp8rt_refit_item items[] = {fp8rt::refit_item("weight", source.tensor()),
                                    fp8rt::refit_item("other", source.tensor())};
  EXPECT_TRUE(failed_with(fp8rt_refit_run(refit.get(), items, 2, nullptr, 0, nullptr, nullptr, stream.get()),
                          FP8RT_STATUS_INVALID_ARGUMENT, "fp8rt_refit_run", {"items[1] (other)"}));
  stream.synchronize();
  EXPECT_TRUE(same_bytes(codes.download(), parameter.codes));
  EXPECT_TRUE(same_bytes(scales.download(), parameter.scales));
  EXPECT_EQ(refit.query().blocks_filled, 0u);
}

}  // namespace
}  // namespace fp8rt_test
