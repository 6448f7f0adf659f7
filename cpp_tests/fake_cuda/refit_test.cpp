// Many weights in one launch: per-call entries that travel with the launch, tables in device memory, and sources on the
// host that go through a staging buffer.

#include <map>
#include <memory>

#include "caller.hpp"

namespace fp8rt_test {
namespace {

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
std::vector<Shape> mixed() {
  std::vector<Shape> shapes;
  for (std::int64_t i = 0; i < 10; ++i) shapes.push_back({FP8RT_DTYPE_BF16, 100 + 60 * i, 512});
  for (std::int64_t i = 0; i < 3; ++i) shapes.push_back({FP8RT_DTYPE_F32, 256, 128 + 64 * i});
  return shapes;
}

// All the matrices that were launched are the entries, each once and where it is.
void check_covers(const std::vector<kernels::Matrix> &launched, const Weights &weights) {
  std::map<const void *, kernels::Matrix> by_source;
  for (const kernels::Matrix &m : launched) by_source[m.source] = m;
  EXPECT_EQ(launched.size(), weights.entries.size());
  ASSERT_EQ(by_source.size(), weights.entries.size());
  for (const fp8rt_weight_entry &entry : weights.entries) {
    ASSERT_EQ(by_source.count(entry.weight.data), 1u);
    const kernels::Matrix &m = by_source[entry.weight.data];
    EXPECT_EQ(m.codes, entry.codes.data);
    EXPECT_EQ(m.scales, entry.scales.data);
    EXPECT_EQ(m.rows, entry.weight.shape[0]);
    EXPECT_EQ(m.columns, entry.weight.shape[1]);
  }
}

// Tiles are numbered through, so that a thread block finds its matrix.
void check_tiles(const kernels::Header &header, const std::vector<kernels::Matrix> &matrices) {
  std::uint32_t tile = 0;
  for (const kernels::Matrix &m : matrices) {
    EXPECT_EQ(m.first_tile, tile);
    tile += m.experts * ((m.rows + 127) / 128) * ((m.columns + 127) / 128);
  }
  EXPECT_EQ(header.tiles, tile);
  EXPECT_EQ(header.count, matrices.size());
}

class Refit : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(fp8rt_context_prepare(context.get(), stream.get()));
    fake_cuda_reset();
  }

  fp8rt::Context context = gpu_context(0);
  Stream stream{0};
};

TEST_F(Refit, EntriesTravelWithTheLaunch) {
  const Weights weights(0, 0, mixed());
  fake_cuda_reset();
  ASSERT_OK(fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), weights.count(), nullptr,
                                   stream.get()));
  EXPECT_TRUE(only_light_calls());
  ASSERT_EQ(launches().size(), 2u);
  std::vector<kernels::Matrix> all;
  for (const fake_cuda_launch &launch : launches()) {
    const auto header = parameters<kernels::Header>(launch);
    EXPECT_EQ(header.table, nullptr);
    EXPECT_EQ(launch.stream, stream.get());
    check_tiles(header, matrices(launch));
    for (const kernels::Matrix &m : matrices(launch)) all.push_back(m);
  }
  check_covers(all, weights);
}

TEST_F(Refit, MoreEntriesThanALaunchHolds) {
  const Weights weights(0, 0, std::vector<Shape>(300, {FP8RT_DTYPE_BF16, 128, 256}));
  fake_cuda_reset();
  ASSERT_OK(fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), weights.count(), nullptr,
                                   stream.get()));
  EXPECT_TRUE(only_light_calls());
  EXPECT_EQ(launches().size(), 2u);
  std::vector<kernels::Matrix> all;
  for (const fake_cuda_launch &launch : launches()) {
    check_tiles(parameters<kernels::Header>(launch), matrices(launch));
    for (const kernels::Matrix &m : matrices(launch)) all.push_back(m);
  }
  check_covers(all, weights);
}

// The last entry is wrong: the launch of those before it must not have gone out.
TEST_F(Refit, NothingIsEnqueuedIfOneEntryIsWrong) {
  Weights weights(0, 0, mixed());
  weights.entries.back().codes.device = 1;
  fake_cuda_reset();
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights(context.get(), nullptr, weights.entries.data(), weights.count(),
                                                 nullptr, stream.get()),
                          FP8RT_STATUS_DEVICE, "fp8rt_quantize_weights", {"12"}));
  EXPECT_EQ(launches().size(), 0u);
}

TEST_F(Refit, UnpreparedDuringCaptureIsRefused) {
  const fp8rt::Context unprepared = gpu_context(0);
  const Weights weights(0, 0, mixed());
  fake_cuda_reset();
  const Capture capture(stream);
  EXPECT_TRUE(failed_with(fp8rt_quantize_weights(unprepared.get(), nullptr, weights.entries.data(), weights.count(),
                                                 nullptr, stream.get()),
                          FP8RT_STATUS_NOT_PREPARED, "fp8rt_quantize_weights", {"prepare"}));
  EXPECT_EQ(fake_cuda_count("cuModuleLoadData"), 0u);
  EXPECT_TRUE(no_violations());
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

// The matrices of a launch, which lie in the device memory that `header.table` names.
std::vector<kernels::Matrix> matrices_of_table(const fake_cuda_launch &launch) {
  const auto header = parameters<kernels::Header>(launch);
  const auto address = reinterpret_cast<std::uintptr_t>(header.table);
  std::vector<kernels::Matrix> found(header.count);
  const void *last = fake_cuda_host_view(address + found.size() * sizeof(kernels::Matrix) - 1);
  if (fake_cuda_host_view(address) == nullptr || last == nullptr) return {};
  std::memcpy(found.data(), fake_cuda_host_view(address), found.size() * sizeof(kernels::Matrix));
  return found;
}

TEST_F(Refit, ATableRunsWithOneLaunchForEachDtype) {
  std::vector<Shape> shapes = mixed();
  for (int i = 0; i < 300; ++i) shapes.push_back({FP8RT_DTYPE_BF16, 128, 128});
  const Weights weights(0, 0, shapes);
  const Table table(context, weights);
  for (const bool captured : {false, true}) {
    fake_cuda_reset();
    fake_cuda_set_capturing(stream.get(), captured);
    ASSERT_OK(fp8rt_weight_table_run(table.get(), nullptr, stream.get()));
    EXPECT_TRUE(only_light_calls());
    EXPECT_TRUE(no_violations());
    ASSERT_EQ(launches().size(), 2u);
    std::vector<kernels::Matrix> all;
    for (const fake_cuda_launch &launch : launches()) {
      const auto found = matrices_of_table(launch);
      check_tiles(parameters<kernels::Header>(launch), found);
      all.insert(all.end(), found.begin(), found.end());
    }
    check_covers(all, weights);
  }
  fake_cuda_reset();
}

TEST_F(Refit, ATableIsNotMadeDuringCapture) {
  const Weights weights(0, 0, mixed());
  fp8rt_weight_table *table = nullptr;
  fake_cuda_reset();
  const Capture capture(stream);
  EXPECT_NE(fp8rt_weight_table_create(context.get(), nullptr, weights.entries.data(), weights.count(), &table),
            FP8RT_STATUS_OK);
  EXPECT_EQ(table, nullptr);
}

TEST_F(Refit, ATableFreesWhatItAllocated) {
  const Weights weights(0, 0, mixed());
  const std::size_t before = fake_cuda_live_allocations();
  {
    const Current other(1);
    const CUcontext current = current_context();
    const Table table(context, weights);
    EXPECT_GT(fake_cuda_live_allocations(), before);
    EXPECT_EQ(current_context(), current);
  }
  EXPECT_EQ(fake_cuda_live_allocations(), before);
}

TEST_F(Refit, ATableMayOutliveItsContext) {
  const Weights weights(0, 0, mixed());
  const std::size_t before = fake_cuda_live_allocations();
  {
    auto own = std::make_unique<fp8rt::Context>(gpu_context(0));
    ASSERT_OK(fp8rt_context_prepare(own->get(), stream.get()));
    const Table table(*own, weights);
    own.reset();
    EXPECT_OK(fp8rt_weight_table_run(table.get(), nullptr, stream.get()));
  }
  EXPECT_EQ(fake_cuda_live_allocations(), before);
}

// Each driver function that making a table may call, failing at its first, second or third call.
TEST_F(Refit, AFailedTableLeavesNothing) {
  const Weights weights(0, 0, mixed());
  const std::size_t before = fake_cuda_live_allocations();
  for (const char *function : {"cuMemAlloc", "cuMemcpyHtoD", "cuMemcpyHtoDAsync", "cuStreamSynchronize"}) {
    for (std::uint32_t calls = 0; calls < 3; ++calls) {
      fp8rt_weight_table *table = nullptr;
      fake_cuda_reset();
      fake_cuda_fail(function, CUDA_ERROR_OUT_OF_MEMORY, calls);
      const fp8rt_status status =
          fp8rt_weight_table_create(context.get(), nullptr, weights.entries.data(), weights.count(), &table);
      if (status == FP8RT_STATUS_OK) {
        EXPECT_LE(fake_cuda_count(function), calls);
        EXPECT_OK(fp8rt_weight_table_destroy(table));
      } else {
        EXPECT_TRUE(status == FP8RT_STATUS_OUT_OF_MEMORY || status == FP8RT_STATUS_CUDA_ERROR) << status;
        EXPECT_NE(std::string(fp8rt_last_error()).find(function), std::string::npos) << fp8rt_last_error();
        EXPECT_EQ(fp8rt_last_cuda_error(), CUDA_ERROR_OUT_OF_MEMORY);
        EXPECT_EQ(table, nullptr);
      }
      EXPECT_EQ(fake_cuda_live_allocations(), before) << function << " after " << calls;
      EXPECT_EQ(current_context(), nullptr);
    }
  }
  fake_cuda_reset();
}

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
    std::uint64_t next = weight.source().address();
    for (auto at = copied.find(next); at != copied.end(); at = copied.find(next)) next += at->second;
    EXPECT_EQ(next - weight.source().address(), weight.source().bytes());
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

}  // namespace
}  // namespace fp8rt_test
