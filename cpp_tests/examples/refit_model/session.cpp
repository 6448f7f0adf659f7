#include "session.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <stdexcept>

namespace {

fp8rt::Context make_context(int device, std::uint32_t threads) {
    fp8rt_context_desc desc = fp8rt::context_desc();
    desc.device = device;
    desc.num_threads = threads;
    return fp8rt::Context(desc);
}

std::size_t bytes_of(const std::vector<Cut> &bucket, const Model &model) {
    const Cut &last = bucket.back();
    return last.offset + static_cast<std::size_t>(2 * last.rows * model.tensors()[last.tensor].columns);
}

std::size_t largest(const std::vector<std::vector<Cut>> &buckets, const Model &model) {
    std::size_t most = 0;
    for (const std::vector<Cut> &bucket : buckets) most = std::max(most, bytes_of(bucket, model));
    return most;
}

// What a model and its buckets take of the device: a bucket, what the trainer makes of a tensor of it, small things.
std::size_t bytes_needed(const Model &model, const Options &options) {
    const std::size_t bucket = std::min(static_cast<std::size_t>(options.bucket_mib) << 20, model.trainer_bytes());
    return model.bytes() + 2 * bucket + (std::size_t{64} << 20);
}

std::string in_mb(std::size_t bytes) { return std::to_string(bytes / 1'000'000) + " MB"; }

// Of the size that was asked for, else of the largest that fits.
Model make_model(Device &device, const Options &options, const fp8rt::Policy &policy) {
    const std::size_t most = options.memory_mib > 0 ? static_cast<std::size_t>(options.memory_mib) << 20
                                                    : device.free_bytes() / 10 * 9;
    for (std::int64_t scale_down = std::max<std::int64_t>(1, options.scale_down);; scale_down *= 2) {
        Model model(options, scale_down, policy);
        const std::size_t needed = bytes_needed(model, options);
        if (needed <= most || options.scale_down > 0) {
            model.allocate(device);
            return model;
        }
        const std::string shortage = "of " + in_mb(needed) + ", " + in_mb(most) + " may be used";
        if (scale_down == 16) {
            throw std::runtime_error("memory is short: scaled down by 16 a model with its buckets needs the last " +
                                     shortage + "; take fewer --layers or a smaller --bucket-mib");
        }
        std::fprintf(stderr, "memory is short %s: scaled down by %lld\n", shortage.c_str(),
                     static_cast<long long>(2 * scale_down));
    }
}

void show_progress(int step, std::size_t bucket, std::size_t buckets) {
    if (isatty(STDERR_FILENO) == 0) return;
    std::fprintf(stderr, "\rrefit %d: bucket %zu of %zu%s", step, bucket, buckets, bucket == buckets ? "\r\033[K" : "");
}

}  // namespace

Session::Session(const Options &options, const fp8rt::Policy &policy)
    : options_(options),
      device_(open_device(options.device)),
      host_(open_device(-1)),
      context_(make_context(options.device, options.threads)),
      host_context_(make_context(-1, options.threads)),
      model_(make_model(*device_, options, policy)),
      plan_(model_.make_plan(context_)),
      buckets_(make_buckets(model_, static_cast<std::size_t>(options.bucket_mib) << 20)),
      values_(options.threads),
      // Tensors that stay on the host are the trainer's there too: both halves of the library must agree.
      expectation_(options.host_sources ? host_context_ : context_, options.host_sources ? *host_ : *device_,
                   options.host_sources ? -1 : options.device, model_, buckets_),
      spot_check_(host_context_, *device_, model_, values_) {
    const std::size_t bytes = largest(buckets_, model_), sources = model_.tensors().size();
    pinned_ = Buffer(*device_, bytes, Buffer::Kind::kPinned);
    if (options.host_sources) {
        const std::size_t least = static_cast<std::size_t>(plan_.query().staging_bytes);
        staging_ = Buffer(*device_, std::max(least, std::size_t{64} << 20));
    } else if (options.device >= 0) {
        bucket_ = Buffer(*device_, bytes);
    }
    health_ = Buffer(*device_, sizeof(fp8rt_health));
    sums_ = Buffer(*device_, sources * sizeof(fp8rt_fingerprint_sum));
    errors_ = Buffer(*device_, sources * sizeof(fp8rt_error_sums));
    fp8rt::check(fp8rt_context_prepare(context_.get(), device_->stream()));
}

fp8rt_tensor Session::place(const Cut &cut, unsigned char *memory, int device) const {
    fp8rt_tensor view =
        fp8rt::tensor(memory + cut.offset, FP8RT_DTYPE_BF16, {cut.rows, model_.tensors()[cut.tensor].columns});
    view.device = device;
    return view;
}

Step Session::refit(int step) {
    Step result;
    device_->zero(health_.data(), health_.bytes());
    device_->zero(errors_.data(), errors_.bytes());
    expectation_.clear();
    plan_.begin();
    for (std::size_t index = 0; index < buckets_.size(); ++index) {
        run(buckets_[index], step, result);
        show_progress(step, index + 1, buckets_.size());
    }
    result.receipt = plan_.finish();
    device_->download(&result.health, health_.data(), sizeof result.health);
    compare(step, result);
    return result;
}

void Session::run(const std::vector<Cut> &bucket, int step, Step &result) {
    for (const Cut &cut : bucket) values_.fill(pinned_.data() + cut.offset, model_.tensors()[cut.tensor], cut, step);
    const bool sent = options_.device >= 0 && !options_.host_sources;
    if (sent) device_->upload(bucket_.data(), pinned_.data(), bytes_of(bucket, model_));
    unsigned char *const memory = sent ? bucket_.data() : pinned_.data();
    const int place_of_sources = options_.host_sources ? -1 : options_.device;
    std::vector<fp8rt_refit_item> items;
    for (const Cut &cut : bucket) {
        items.push_back(
            fp8rt::refit_item(model_.tensors()[cut.tensor].name.c_str(), place(cut, memory, place_of_sources)));
        items.back().first_row = cut.row;
    }
    const std::size_t used = device_->used_bytes();
    device_->start();
    plan_.run(items, reinterpret_cast<fp8rt_health *>(health_.data()), device_->stream(), staging_.data(),
              staging_.bytes());
    result.milliseconds += device_->stop();
    result.grown += std::max(device_->used_bytes(), used) - used;
    for (std::size_t index = 0; index < bucket.size(); ++index) expectation_.add(bucket[index], items[index].weight);
    if (!options_.report.empty()) {
        fp8rt::check(fp8rt_refit_measure(plan_.get(), items.data(), static_cast<std::uint32_t>(items.size()),
                                         reinterpret_cast<fp8rt_error_sums *>(errors_.data()), device_->stream()));
    }
    // The bucket's memory is used again: wait until it was read.
    device_->start();
    device_->stop();
}

void Session::compare(int step, Step &result) const {
    const auto count = static_cast<std::uint32_t>(model_.tensors().size());
    const auto sums = reinterpret_cast<fp8rt_fingerprint_sum *>(sums_.data());
    std::vector<fp8rt_fingerprint> engine(count);
    device_->zero(sums_.data(), sums_.bytes());
    fp8rt::check(fp8rt_refit_fingerprint(plan_.get(), sums, device_->stream()));
    fp8rt::check(fp8rt_refit_fingerprint_read(plan_.get(), sums, count, engine.data(), &result.fingerprint,
                                              device_->stream()));
    std::map<std::string, fp8rt_fingerprint> by_name;
    for (std::uint32_t index = 0; index < count; ++index) by_name[plan_.source_name(index)] = engine[index];
    const std::vector<fp8rt_fingerprint> expected = expectation_.read();
    result.different.clear();
    for (std::size_t index = 0; index < count; ++index) {
        const fp8rt_fingerprint &got = by_name.at(model_.tensors()[index].name), &want = expected[index];
        if (got.low != want.low || got.high != want.high) result.different.push_back(model_.tensors()[index].name);
    }
    result.spots = spot_check_.run(step);
}

void Session::corrupt(const std::string &name) {
    const TrainerTensor &tensor = model_.tensors()[model_.find(name)];
    const Parameter &parameter = model_.parameter_of(tensor);
    const std::int64_t row_bytes = tensor.columns * (tensor.fp8 ? 1 : 2);
    unsigned char *const at = parameter.codes.data() + tensor.first_row * row_bytes;
    unsigned char flipped = 0;
    device_->download(&flipped, at, 1);
    flipped ^= 1;
    device_->upload(at, &flipped, 1);
}

std::string Session::report(std::uint32_t format) const {
    std::vector<fp8rt_error_sums> sums(model_.tensors().size());
    const auto count = static_cast<std::uint32_t>(sums.size());
    fp8rt::check(fp8rt_error_sums_read(context_.get(), reinterpret_cast<const fp8rt_error_sums *>(errors_.data()),
                                       count, sums.data(), device_->stream()));
    return fp8rt::text_of([&](char *text, std::uint64_t capacity, std::uint64_t *length) {
        return fp8rt_refit_report(plan_.get(), sums.data(), count, format, text, capacity, length);
    });
}
