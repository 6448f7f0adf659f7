// Times refits of a model of the shape of Llama-3.1-8B on a GPU: bench_refit [copy] [gib] [mib64] [linears] [lookups]
// [policy]
//
// The trainer's tensors come as bf16 in device memory, in buckets whose memory is used again. One line a measurement.
// ms: events around a whole refit, begin to last run, median; host_us: what it costs to enqueue that. bytes: those read
// and written, which "copy", a copy from device to device of 4 GiB, needs so long for: ratio is ours over that.

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "llama.hpp"
#include "sections.hpp"
#include "tensors.hpp"
#include "timers.hpp"

namespace fp8rt_bench {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::size_t kCopied = std::size_t{4} << 30;

class Bench {
 public:
  Bench() : context_(gpu_context()), timer_(stream_) {
    fp8rt::check(fp8rt_context_prepare(context_.get(), stream_.get()));
    const DeviceBuffer from(kCopied), to(kCopied);
    fill_normal(from, kCopied);
    copy_us_ = timer_.us([&] {
      CUDA(cudaMemcpyAsync(to.data(), from.data(), kCopied, cudaMemcpyDeviceToDevice, stream_.get()));
    });
  }

  void copy() { std::printf("copy bytes=%zu us=%.1f tbs=%.3f\n", kCopied, copy_us_, rate(kCopied, 2, copy_us_)); }
  void gib() { refit("all parameters, 1 GiB buckets", LlamaModel(context_), 1024 * kMiB); }
  void mib64() { refit("all parameters, 64 MiB buckets, cut on blocks", LlamaModel(context_), 64 * kMiB); }
  void linears() {
    refit("linear weights, 1 GiB buckets", LlamaModel(context_, LlamaModel::Parameters::kLinears), 1024 * kMiB);
  }

  // What the host does for each tensor beside the launch: all of them in one run, less one run of the table that they
  // are bound to. Both are one launch. The tensors share their memory: nobody looks at the values.
  void lookups() {
    LlamaModel model(context_, LlamaModel::Parameters::kLinears);
    const DeviceBuffer memory(static_cast<std::size_t>(2 * LlamaModel::kIntermediate * LlamaModel::kHidden));
    fill_normal(memory, memory.bytes());
    std::vector<fp8rt_refit_item> items;
    for (const TrainerTensor &tensor : model.tensors()) {
      fp8rt_tensor view = fp8rt::tensor(memory.data(), FP8RT_DTYPE_BF16, {tensor.rows, tensor.columns});
      view.device = kDevice;
      items.push_back(fp8rt::refit_item(tensor.name.c_str(), view));
    }
    const fp8rt::WeightTable table = model.refit().bind(items);
    const double planned = host_us(
        stream_,
        [&] {
          model.refit().begin();
          model.refit().run(items, nullptr, stream_.get());
        },
        3);
    const double launched = host_us(
        stream_, [&] { fp8rt::check(fp8rt_weight_table_run(table.get(), nullptr, stream_.get())); }, 3);
    std::printf("lookups items=%zu run_us=%.1f launch_us=%.1f us_item=%.3f\n", items.size(), planned, launched,
                (planned - launched) / static_cast<double>(items.size()));
  }

  // What deciding costs for each tensor.
  void policy() {
    fp8rt_policy_desc desc = fp8rt::policy_desc();
    desc.settings = R"({"precision": "fp8", "num_first_layers_in_bf16": 1, "num_last_layers_in_bf16": 1})";
    desc.config = R"({"model_type": "llama", "num_hidden_layers": 32})";
    const fp8rt::Policy policy(desc);
    const LlamaModel model(context_);
    fp8rt_policy_decision decision{};
    decision.struct_size = sizeof decision;
    const double us = host_us(
        stream_,
        [&] {
          for (const TrainerTensor &tensor : model.tensors()) {
            const std::int64_t shape[] = {tensor.rows, tensor.columns};
            fp8rt::check(fp8rt_policy_decide(policy.get(), tensor.name.c_str(), 2, shape, &decision, nullptr, 0,
                                             nullptr));
          }
        },
        20);
    const auto count = model.tensors().size();
    std::printf("policy tensors=%zu us_each=%.3f\n", count, us / static_cast<double>(count));
  }

 private:
  void refit(const char *what, LlamaModel model, std::int64_t bucket_bytes) {
    const DeviceBuffer memory(static_cast<std::size_t>(bucket_bytes));
    fill_normal(memory, memory.bytes());
    const std::vector<std::vector<fp8rt_refit_item>> buckets = model.buckets(memory, bucket_bytes);
    std::size_t items = 0;
    for (const auto &bucket : buckets) {
      items += bucket.size();
    }
    const Call call = [&] {
      model.refit().begin();
      for (const auto &bucket : buckets) {
        model.refit().run(bucket, nullptr, stream_.get());
      }
    };
    const double us = timer_.us(call);
    const fp8rt_refit_receipt receipt = model.refit().finish();
    const double bytes = static_cast<double>(receipt.bytes_read + receipt.bytes_written);
    const double yardstick = copy_us_ * bytes / (2.0 * static_cast<double>(kCopied));
    const double host = host_us(stream_, call, 3);
    std::printf("refit %s: buckets=%zu items=%zu gb=%.2f ms=%.3f tbs=%.3f copy_ms=%.3f ratio=%.3f host_us=%.1f "
                "host_us_item=%.2f\n",
                what, buckets.size(), items, bytes / 1e9, us / 1e3, bytes / us / 1e6, yardstick / 1e3, us / yardstick,
                host, host / static_cast<double>(items));
  }

  fp8rt::Context context_;
  Stream stream_;
  StreamTimer timer_;
  double copy_us_ = 0;
};

constexpr Section<Bench> kSections[] = {{"copy", &Bench::copy},
                                        {"gib", &Bench::gib},
                                        {"mib64", &Bench::mib64},
                                        {"linears", &Bench::linears},
                                        {"lookups", &Bench::lookups},
                                        {"policy", &Bench::policy}};

}  // namespace
}  // namespace fp8rt_bench

int main(int argc, char **argv) {
  using namespace fp8rt_bench;
  return run_sections<Bench>(kSections, sizeof kSections / sizeof *kSections, {argv + 1, argv + argc});
}
