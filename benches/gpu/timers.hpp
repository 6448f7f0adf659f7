// Three ways to time a call: as a decoding step sees it, as a prefill sees it, and as the host sees it.

#ifndef FP8RT_BENCH_TIMERS_HPP
#define FP8RT_BENCH_TIMERS_HPP

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "cuda.hpp"

namespace fp8rt_bench {

using fp8rt_test::DeviceBuffer;
using fp8rt_test::Event;
using fp8rt_test::Graph;
using fp8rt_test::Stream;
using Call = std::function<void()>;

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// All calls back to back in a captured graph: the median replay after `warm` ones, divided by the calls.
inline double graph_us(const Stream &stream, const std::vector<Call> &calls, int repeats = 15, int warm = 3) {
  for (const Call &call : calls) {
    call();
  }
  stream.synchronize();
  const Graph graph(stream, [&] { std::for_each(calls.begin(), calls.end(), [](const Call &call) { call(); }); });
  const Event begin, end;
  std::vector<double> times;
  for (int repeat = -warm; repeat < repeats; ++repeat) {
    begin.record(stream);
    graph.launch(stream);
    end.record(stream);
    stream.synchronize();
    if (repeat >= 0) {
      times.push_back(end.microseconds_since(begin) / static_cast<double>(calls.size()));
    }
  }
  return median(times);
}

// Writes over L2 before each call: the median of as many calls as fit into 60 ms, flushes included.
class StreamTimer {
 public:
  explicit StreamTimer(const Stream &stream) : stream_(stream), cache_(std::size_t{256} << 20) {}

  double us(const Call &call) {
    call();
    stream_.synchronize();
    const double estimate = estimate_us(call);
    for (int warm = repeats_in(10e3, estimate); warm > 0; --warm) {
      flush();
      call();
    }
    return median(times(call, repeats_in(60e3, estimate)));
  }

  // The median of so many calls after one that is not timed.
  double us_of(const Call &call, int repeats) {
    call();
    return median(times(call, repeats));
  }

 private:
  static int repeats_in(double microseconds, double estimate) {
    return std::max(1, static_cast<int>(microseconds / estimate));
  }
  void flush() { CUDA(cudaMemsetAsync(cache_.data(), 0, cache_.bytes(), stream_.get())); }
  double estimate_us(const Call &call) {
    const Event begin, end;
    begin.record(stream_);
    for (int repeat = 0; repeat < 5; ++repeat) {
      flush();
      call();
    }
    end.record(stream_);
    stream_.synchronize();
    return end.microseconds_since(begin) / 5;
  }
  std::vector<double> times(const Call &call, int repeats) {
    std::vector<std::unique_ptr<Event>> events;
    for (int index = 0; index < 2 * repeats; ++index) {
      events.push_back(std::make_unique<Event>());
    }
    for (int repeat = 0; repeat < repeats; ++repeat) {
      flush();
      events[2 * static_cast<std::size_t>(repeat)]->record(stream_);
      call();
      events[2 * static_cast<std::size_t>(repeat) + 1]->record(stream_);
    }
    stream_.synchronize();
    std::vector<double> all;
    for (std::size_t index = 0; index < events.size(); index += 2) {
      all.push_back(events[index + 1]->microseconds_since(*events[index]));
    }
    return all;
  }

  const Stream &stream_;
  DeviceBuffer cache_;
};

// What it costs to enqueue, without waiting: the best of five rounds.
inline double host_us(const Stream &stream, const Call &call, int calls = 200) {
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 5; ++round) {
    stream.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    for (int index = 0; index < calls; ++index) {
      call();
    }
    const std::chrono::duration<double, std::micro> elapsed = std::chrono::steady_clock::now() - begin;
    best = std::min(best, elapsed.count() / calls);
  }
  stream.synchronize();
  return best;
}

}  // namespace fp8rt_bench

#endif  // FP8RT_BENCH_TIMERS_HPP
