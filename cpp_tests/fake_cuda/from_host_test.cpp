// Weights on the host go through a staging buffer of the caller: copies beside the caller's stream, ordered by events.

#include <map>

#include "weights.hpp"

namespace fp8rt_test {
namespace {

// The order that streams and events give to what was enqueued: a happens before b only if b waits for it.
class Timeline {
 public:
  struct Work {
    const void *stream;
    std::size_t place;  // among the work of its stream
    std::map<const void *, std::size_t> seen;
  };

  Work enqueue(const void *stream) {
    auto &clock = clocks_[stream];
    ++clock[stream];
    return {stream, clock[stream], clock};
  }
  void record(const void *event, const void *stream) { events_[event] = clocks_[stream]; }
  void wait(const void *stream, const void *event) {
    for (const auto &[other, place] : events_[event]) {
      std::size_t &seen = clocks_[stream][other];
      seen = std::max(seen, place);
    }
  }

  static bool before(const Work &a, const Work &b) {
    const auto found = b.seen.find(a.stream);
    return found != b.seen.end() && found->second >= a.place;
  }

 private:
  std::map<const void *, std::map<const void *, std::size_t>> clocks_, events_;
};

struct Range {
  std::uint64_t begin, end;
  bool overlaps(const Range &other) const { return begin < other.end && other.begin < end; }
};

// A copy that writes ranges of the staging buffer, or a launch that reads them.
struct Use {
  Timeline::Work work;
  std::vector<Range> ranges;
  std::uint64_t host;  // source of a copy
  bool is_launch;
};

const void *pointer(std::uint64_t bits) { return reinterpret_cast<const void *>(bits); }

std::vector<Range> read_by(const fake_cuda_launch &launch) {
  const std::uint64_t element = std::string(launch.kernel).find("f32") == std::string::npos ? 2 : 4;
  std::vector<Range> ranges;
  for (const kernels::Matrix &m : matrices(launch)) {
    const auto begin = reinterpret_cast<std::uintptr_t>(m.source);
    const auto elements = static_cast<std::uint64_t>(m.rows - 1) * static_cast<std::uint64_t>(m.source_stride);
    ranges.push_back({begin, begin + (elements + m.columns) * element});
  }
  return ranges;
}

// What the recorded calls do to the staging buffer, in the order of the calls.
std::vector<Use> uses_of_staging() {
  Timeline timeline;
  std::vector<Use> uses;
  for (const fake_cuda_call &call : recorded()) {
    const std::string name = call.function;
    const auto &a = call.arguments;
    if (name == "cuEventRecord") timeline.record(pointer(a[0]), pointer(a[1]));
    if (name == "cuStreamWaitEvent") timeline.wait(pointer(a[0]), pointer(a[1]));
    if (name == "cuMemcpyHtoDAsync_v2") {
      uses.push_back({timeline.enqueue(pointer(a[3])), {{a[0], a[0] + a[2]}}, a[1], false});
    }
    if (call.launch.kernel != nullptr) {
      uses.push_back({timeline.enqueue(call.launch.stream), read_by(call.launch), 0, true});
    }
  }
  return uses;
}

bool conflict(const Use &a, const Use &b) {
  if (a.is_launch && b.is_launch) return false;
  for (const Range &first : a.ranges) {
    for (const Range &second : b.ranges) {
      if (first.overlaps(second)) return true;
    }
  }
  return false;
}

// Whether the copies before a launch have written all of a range that it reads.
bool is_written(const Range &range, const std::vector<Use> &uses, std::size_t launch) {
  std::vector<Range> copies;
  for (std::size_t i = 0; i < launch; ++i) {
    if (!uses[i].is_launch) copies.push_back(uses[i].ranges[0]);
  }
  std::sort(copies.begin(), copies.end(), [](const Range &a, const Range &b) { return a.begin < b.begin; });
  std::uint64_t written = range.begin;
  for (const Range &copy : copies) {
    if (copy.begin <= written) written = std::max(written, copy.end);
  }
  return written >= range.end;
}

class FromHost : public Refit {
 protected:
  static constexpr std::uint64_t kStaging = 1 << 20;

  fp8rt_status run(const Weights &weights) {
    return fp8rt_quantize_weights_from_host(context.get(), nullptr, weights.entries.data(), weights.count(),
                                            staging.data(), kStaging, nullptr, stream.get());
  }

  void expect_within_staging(const std::vector<Use> &uses) {
    for (const Use &use : uses) {
      for (const Range &range : use.ranges) {
        EXPECT_GE(range.begin, staging.address());
        EXPECT_LE(range.end, staging.address() + kStaging);
      }
    }
  }

  // Exactly as large as the staging buffer: what goes beyond it is no memory.
  Memory staging{0, kStaging};
};

std::vector<Shape> large() {
  return {{FP8RT_DTYPE_BF16, 3000, 1024}, {FP8RT_DTYPE_BF16, 100, 256}, {FP8RT_DTYPE_F32, 700, 512},
          {FP8RT_DTYPE_F16, 129, 640},    {FP8RT_DTYPE_BF16, 1, 128},   {FP8RT_DTYPE_BF16, 2048, 512}};
}

// Twice, so that the second call must also wait for the launches of the first.
TEST_F(FromHost, CopiesAndLaunchesAreOrdered) {
  const Weights weights(0, -1, large());
  fake_cuda_reset();
  ASSERT_OK(run(weights));
  ASSERT_OK(run(weights));
  const std::vector<Use> uses = uses_of_staging();
  ASSERT_GT(uses.size(), 0u);
  expect_within_staging(uses);
  EXPECT_TRUE(no_violations());
  std::size_t conflicts = 0;
  for (std::size_t i = 0; i < uses.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (!conflict(uses[j], uses[i])) continue;
      ++conflicts;
      EXPECT_TRUE(Timeline::before(uses[j].work, uses[i].work)) << "use " << j << " and use " << i << " race";
    }
  }
  EXPECT_GT(conflicts, 0u);
}

TEST_F(FromHost, EveryByteGoesThroughStagingOnce) {
  const Weights weights(0, -1, large());
  fake_cuda_reset();
  ASSERT_OK(run(weights));
  const std::vector<Use> uses = uses_of_staging();
  std::map<std::uint64_t, std::uint64_t> copied;
  for (std::size_t i = 0; i < uses.size(); ++i) {
    if (!uses[i].is_launch) {
      copied[uses[i].host] += uses[i].ranges[0].end - uses[i].ranges[0].begin;
      continue;
    }
    for (const Range &range : uses[i].ranges) {
      EXPECT_TRUE(is_written(range, uses, i)) << "launch " << i;
    }
  }
  for (const Weight &weight : weights.all()) {
    const std::uint64_t begin = weight.source().address(), end = begin + weight.source().bytes();
    std::uint64_t next = begin;
    // Not beyond the end: another source may lie right behind this one.
    for (auto at = copied.find(next); next < end && at != copied.end(); at = copied.find(next)) next += at->second;
    EXPECT_EQ(next - begin, end - begin);
  }
}

// All codes and scales come from launches on the caller's stream, so that what the caller enqueues next sees them.
TEST_F(FromHost, LaunchesAreOnTheCallersStream) {
  const Weights weights(0, -1, large());
  fake_cuda_reset();
  ASSERT_OK(run(weights));
  ASSERT_GT(launches().size(), 0u);
  std::map<void *, std::uint64_t> rows;
  for (const fake_cuda_launch &launch : launches()) {
    EXPECT_EQ(launch.stream, stream.get());
    for (const kernels::Matrix &m : matrices(launch)) {
      for (const fp8rt_weight_entry &entry : weights.entries) {
        const auto begin = reinterpret_cast<std::uintptr_t>(entry.codes.data);
        const auto codes = reinterpret_cast<std::uintptr_t>(m.codes);
        if (codes >= begin && codes < begin + entry.codes.bytes) rows[entry.codes.data] += m.rows;
      }
    }
  }
  for (const fp8rt_weight_entry &entry : weights.entries) {
    EXPECT_EQ(rows[entry.codes.data], static_cast<std::uint64_t>(entry.codes.shape[0]));
  }
}

// The sources may be changed when the caller's stream has passed the call: it waits for every copy.
TEST_F(FromHost, TheStreamWaitsForEveryCopy) {
  const Weights weights(0, -1, large());
  fake_cuda_reset();
  ASSERT_OK(run(weights));
  const std::vector<Use> uses = uses_of_staging();
  const auto last = std::find_if(uses.rbegin(), uses.rend(), [](const Use &use) { return use.is_launch; });
  ASSERT_NE(last, uses.rend());
  for (const Use &use : uses) {
    EXPECT_TRUE(use.is_launch || Timeline::before(use.work, last->work));
  }
}

TEST_F(FromHost, NeedsNoAllocationOfDeviceMemory) {
  const Weights weights(0, -1, large());
  const std::size_t before = fake_cuda_live_allocations();
  fake_cuda_reset();
  ASSERT_OK(run(weights));
  EXPECT_EQ(fake_cuda_count("cuMemAlloc") + fake_cuda_count("cuMemAllocAsync"), 0u);
  EXPECT_EQ(fake_cuda_count("cuStreamSynchronize") + fake_cuda_count("cuCtxSynchronize"), 0u);
  EXPECT_EQ(fake_cuda_live_allocations(), before);
}

// Streams and events are made once, not for every call, and go with the context.
TEST_F(FromHost, LeavesNoStreamsOrEvents) {
  const std::size_t streams = fake_cuda_live_streams(), events = fake_cuda_live_events();
  const Weights weights(0, -1, large());
  {
    const fp8rt::Context own = gpu_context(0);
    for (int i = 0; i < 3; ++i) {
      EXPECT_OK(fp8rt_quantize_weights_from_host(own.get(), nullptr, weights.entries.data(), weights.count(),
                                                 staging.data(), kStaging, nullptr, stream.get()));
    }
    EXPECT_LE(fake_cuda_live_streams(), streams + 1);
  }
  EXPECT_EQ(fake_cuda_live_streams(), streams);
  EXPECT_EQ(fake_cuda_live_events(), events);
}

TEST_F(FromHost, AStagingBufferThatIsTooSmallIsRefused) {
  const Weights weights(0, -1, large());
  fake_cuda_reset();
  EXPECT_NE(fp8rt_quantize_weights_from_host(context.get(), nullptr, weights.entries.data(), weights.count(),
                                             staging.data(), 1024, nullptr, stream.get()),
            FP8RT_STATUS_OK);
  EXPECT_EQ(uses_of_staging().size(), 0u);
}

TEST_F(FromHost, IsRefusedDuringCapture) {
  const Weights weights(0, -1, large());
  ASSERT_OK(run(weights));
  fake_cuda_reset();
  const Capture capture(stream);
  EXPECT_NE(run(weights), FP8RT_STATUS_OK);
  EXPECT_EQ(uses_of_staging().size(), 0u);
  EXPECT_TRUE(no_violations());
}

TEST_F(FromHost, FailuresRestoreTheCurrentContext) {
  const Weights weights(0, -1, large());
  const Current other(1);
  const CUcontext before = current_context();
  for (const char *function : {"cuMemcpyHtoDAsync", "cuEventRecord", "cuStreamWaitEvent", "cuLaunchKernelEx"}) {
    fake_cuda_reset();
    fake_cuda_fail(function, CUDA_ERROR_UNKNOWN, 1);
    EXPECT_TRUE(failed_with(run(weights), FP8RT_STATUS_CUDA_ERROR, "fp8rt_quantize_weights_from_host", {function}));
    EXPECT_EQ(fp8rt_last_cuda_error(), CUDA_ERROR_UNKNOWN);
    EXPECT_EQ(current_context(), before);
  }
  fake_cuda_reset();
  EXPECT_OK(run(weights));
}

TEST_F(FromHost, CheckAsksForTheStagingBuffer) {
  const Environment check("FP8RT_CHECK", "1");
  const fp8rt::Context checking = gpu_context(0);
  const Weights weights(0, -1, large());
  const Memory pinned(-1, kStaging);
  fake_cuda_reset();
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights_from_host(checking.get(), nullptr, weights.entries.data(),
                                                           weights.count(), pinned.data(), kStaging, nullptr,
                                                           stream.get()),
                          FP8RT_STATUS_DEVICE, "fp8rt_quantize_weights_from_host", {"staging"}));
  EXPECT_EQ(uses_of_staging().size(), 0u);
}

}  // namespace
}  // namespace fp8rt_test
