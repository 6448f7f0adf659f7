// fp8rt for C++17: ownership and exceptions over fp8rt.h, and nothing else.
//
//   fp8rt::Context context;                                  // host memory, all cores
//   fp8rt_tensor weight = fp8rt::tensor(values, FP8RT_DTYPE_BF16, {n, k});
//   fp8rt_tensor codes = fp8rt::tensor(bytes, FP8RT_DTYPE_E4M3, {n, k});
//   fp8rt_tensor scales{};
//   fp8rt::check(fp8rt_weight_scales_layout(nullptr, 0, n, k, &scales));
//   std::vector<float> storage(scales.bytes / sizeof(float));
//   scales.data = storage.data();
//   fp8rt::check(fp8rt_quantize_weight(context.get(), nullptr, &weight, &codes, &scales, nullptr, nullptr));
//
// The functions of fp8rt.h are called as they are, through `get()`; `check` turns a status into an exception. The
// conventions at the top of fp8rt.h hold unchanged.

#ifndef FP8RT_HPP
#define FP8RT_HPP

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fp8rt.h"

namespace fp8rt {

// A call that failed: its status, and the message that fp8rt_last_error gave.
class Error : public std::runtime_error {
 public:
  Error(fp8rt_status status, const std::string &message) : std::runtime_error(message), status_(status) {}

  fp8rt_status status() const noexcept { return status_; }

 private:
  fp8rt_status status_;
};

// Throws what the last call of this thread said, unless it succeeded.
inline void check(fp8rt_status status) {
  if (status != FP8RT_STATUS_OK) {
    throw Error(status, fp8rt_last_error());
  }
}

// A view with the strides that you give, in elements, outermost first. `bytes` becomes what shape and strides span;
// set it to more where the memory holds padding behind the last element. `data` is const because a tensor may be an
// input. A tensor on a GPU needs its `device` set afterwards.
inline fp8rt_tensor strided_tensor(const void *data, fp8rt_dtype dtype, std::initializer_list<std::int64_t> shape,
                                   std::initializer_list<std::int64_t> strides) {
  if (shape.size() != strides.size() || shape.size() > 3) {
    throw std::invalid_argument("fp8rt::strided_tensor: as many strides as extents are needed, 3 at most");
  }
  fp8rt_tensor view{};
  view.data = const_cast<void *>(data);
  view.dtype = dtype;
  view.device = -1;
  view.rank = static_cast<std::uint32_t>(shape.size());
  const std::uint64_t element = dtype == FP8RT_DTYPE_E4M3                               ? 1
                                : dtype == FP8RT_DTYPE_BF16 || dtype == FP8RT_DTYPE_F16 ? 2
                                                                                        : 4;
  std::uint64_t last = 0;
  bool empty = false;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    view.shape[axis] = shape.begin()[axis];
    view.stride[axis] = strides.begin()[axis];
    empty = empty || view.shape[axis] <= 0;
    last += (static_cast<std::uint64_t>(view.shape[axis]) - 1) * static_cast<std::uint64_t>(view.stride[axis]);
  }
  view.bytes = empty ? 0 : (last + 1) * element;
  return view;
}

// A row-major view: [elements], [rows, columns] or [experts, rows, columns]. `row_stride` is the distance of two rows
// in elements; 0 means that they follow each other closely.
inline fp8rt_tensor tensor(const void *data, fp8rt_dtype dtype, std::initializer_list<std::int64_t> shape,
                           std::int64_t row_stride = 0) {
  const std::size_t rank = shape.size();
  const std::int64_t columns = rank == 0 ? 0 : shape.begin()[rank - 1];
  const std::int64_t row = row_stride == 0 ? columns : row_stride;
  if (rank == 3) {
    const auto rows = static_cast<std::uint64_t>(shape.begin()[1]);
    const auto expert = static_cast<std::int64_t>(rows * static_cast<std::uint64_t>(row));
    return strided_tensor(data, dtype, shape, {expert, row, 1});
  }
  return rank == 2 ? strided_tensor(data, dtype, shape, {row, 1}) : strided_tensor(data, dtype, shape, {1});
}

// Descriptors with `struct_size` set and every field at its default.

// The host, all cores.
inline fp8rt_context_desc context_desc() {
  fp8rt_context_desc desc{};
  desc.struct_size = sizeof desc;
  desc.device = -1;
  return desc;
}

// Recipe DEFAULT, format FP32, one part.
inline fp8rt_quantize_desc quantize_desc() {
  fp8rt_quantize_desc desc{};
  desc.struct_size = sizeof desc;
  return desc;
}

// Bf16 in and out, no bias, FP32 scales, one part, any backend. The shape is yours to set.
inline fp8rt_linear_desc linear_desc() {
  fp8rt_linear_desc desc{};
  desc.struct_size = sizeof desc;
  desc.input_dtype = FP8RT_DTYPE_BF16;
  desc.output_dtype = FP8RT_DTYPE_BF16;
  return desc;
}

// Kind AUTO, no texts: the defaults.
inline fp8rt_policy_desc policy_desc() {
  fp8rt_policy_desc desc{};
  desc.struct_size = sizeof desc;
  return desc;
}

// One rank, no split. The parts and K are yours to set.
inline fp8rt_shard_desc shard_desc() {
  fp8rt_shard_desc desc{};
  desc.struct_size = sizeof desc;
  desc.ranks = 1;
  return desc;
}

// What `call(text, capacity, length)` writes, whole.
template <class Call>
std::string text_of(const Call &call) {
  std::uint64_t length = 0;
  check(call(nullptr, std::uint64_t{0}, &length));
  std::string text(static_cast<std::size_t>(length) + 1, '\0');
  check(call(&text[0], std::uint64_t{text.size()}, nullptr));
  text.resize(static_cast<std::size_t>(length));
  return text;
}

// A quantized parameter of a refit plan: recipe DEFAULT, format FP32, one part. `name` must live until the plan is
// made.
inline fp8rt_refit_destination refit_destination(const char *name, const fp8rt_tensor &codes,
                                                 const fp8rt_tensor &scales) {
  fp8rt_refit_destination destination{};
  destination.name = name;
  destination.codes = codes;
  destination.scales = scales;
  return destination;
}

// A parameter that is kept as it is.
inline fp8rt_refit_destination refit_destination(const char *name, const fp8rt_tensor &values) {
  return refit_destination(name, values, fp8rt_tensor{});
}

// A whole tensor under its name, values to be quantized or kept.
inline fp8rt_refit_item refit_item(const char *name, const fp8rt_tensor &weight) {
  fp8rt_refit_item item{};
  item.name = name;
  item.weight = weight;
  return item;
}

// Owns a context. Share it by reference between threads; a moved-from one holds nothing.
class Context {
 public:
  Context() : Context(nullptr) {}
  explicit Context(const fp8rt_context_desc &desc) : Context(&desc) {}

  fp8rt_context *get() const noexcept { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(fp8rt_context *handle) const noexcept { fp8rt_context_destroy(handle); }
  };

  explicit Context(const fp8rt_context_desc *desc) {
    fp8rt_context *handle = nullptr;
    check(fp8rt_context_create(desc, &handle));
    handle_.reset(handle);
  }

  std::unique_ptr<fp8rt_context, Destroy> handle_;
};

// Owns the plan of a linear. It may outlive its context.
class LinearPlan {
 public:
  LinearPlan(const Context &context, const fp8rt_linear_desc &desc) {
    fp8rt_linear_plan *handle = nullptr;
    check(fp8rt_linear_plan_create(context.get(), &desc, &handle));
    handle_.reset(handle);
  }

  fp8rt_linear_plan *get() const noexcept { return handle_.get(); }

  fp8rt_linear_plan_info query() const {
    fp8rt_linear_plan_info info{};
    info.struct_size = sizeof info;
    check(fp8rt_linear_plan_query(get(), &info));
    return info;
  }

  // Bytes of workspace for a run of `m` rows.
  std::uint64_t workspace(std::int64_t m) const {
    std::uint64_t bytes = 0;
    check(fp8rt_linear_plan_workspace(get(), m, &bytes));
    return bytes;
  }

  // One line for a person: the shape, the backend, and why those before it refused.
  std::string describe() const {
    return text_of([this](char *text, std::uint64_t capacity, std::uint64_t *length) {
      return fp8rt_linear_plan_describe(get(), text, capacity, length);
    });
  }

 private:
  struct Destroy {
    void operator()(fp8rt_linear_plan *handle) const noexcept { fp8rt_linear_plan_destroy(handle); }
  };

  std::unique_ptr<fp8rt_linear_plan, Destroy> handle_;
};

// Owns a policy. Any number of threads may ask it.
class Policy {
 public:
  // A decision and why.
  struct Decision {
    bool fp8;
    fp8rt_policy_decision values;
    std::string reason;
  };

  explicit Policy(const fp8rt_policy_desc &desc) {
    fp8rt_policy *handle = nullptr;
    check(fp8rt_policy_create(&desc, &handle));
    handle_.reset(handle);
  }

  fp8rt_policy *get() const noexcept { return handle_.get(); }

  fp8rt_policy_info query() const {
    fp8rt_policy_info info{};
    info.struct_size = sizeof info;
    check(fp8rt_policy_query(get(), &info));
    return info;
  }

  std::string warning(std::uint32_t index) const {
    return text_of([&](char *text, std::uint64_t capacity, std::uint64_t *length) {
      return fp8rt_policy_warning(get(), index, text, capacity, length);
    });
  }

  // For a parameter; without a shape by its name alone.
  Decision decide(const std::string &name, std::initializer_list<std::int64_t> shape = {}) const {
    return decision([&](fp8rt_policy_decision *values, char *text, std::uint64_t capacity, std::uint64_t *length) {
      return fp8rt_policy_decide(get(), name.c_str(), static_cast<std::uint32_t>(shape.size()), shape.begin(), values,
                                 text, capacity, length);
    });
  }

  // For a module of an engine.
  Decision decide_module(const std::string &prefix) const {
    return decision([&](fp8rt_policy_decision *values, char *text, std::uint64_t capacity, std::uint64_t *length) {
      return fp8rt_policy_decide_module(get(), prefix.c_str(), values, text, capacity, length);
    });
  }

  // The canonical text.
  std::string text() const {
    return text_of([this](char *text, std::uint64_t capacity, std::uint64_t *length) {
      return fp8rt_policy_text(get(), text, capacity, length);
    });
  }

  fp8rt_fingerprint fingerprint() const {
    fp8rt_fingerprint fingerprint{};
    check(fp8rt_policy_fingerprint(get(), &fingerprint));
    return fingerprint;
  }

  // A line for each setting that another policy's canonical text has otherwise; empty if none.
  std::string difference(const std::string &other) const {
    return text_of([&](char *text, std::uint64_t capacity, std::uint64_t *length) {
      std::uint32_t count = 0;
      return fp8rt_policy_difference(get(), other.c_str(), &count, text, capacity, length);
    });
  }

 private:
  struct Destroy {
    void operator()(fp8rt_policy *handle) const noexcept { fp8rt_policy_destroy(handle); }
  };

  template <class Call>
  static Decision decision(const Call &call) {
    fp8rt_policy_decision values{};
    values.struct_size = sizeof values;
    const std::string reason = text_of([&](char *text, std::uint64_t capacity, std::uint64_t *length) {
      return call(&values, text, capacity, length);
    });
    return {values.action == FP8RT_POLICY_ACTION_FP8, values, reason};
  }

  std::unique_ptr<fp8rt_policy, Destroy> handle_;
};

// Owns a table of weights. It may outlive what it was made from.
class WeightTable {
 public:
  explicit WeightTable(fp8rt_weight_table *handle) : handle_(handle) {}

  fp8rt_weight_table *get() const noexcept { return handle_.get(); }

 private:
  struct Destroy {
    void operator()(fp8rt_weight_table *handle) const noexcept { fp8rt_weight_table_destroy(handle); }
  };

  std::unique_ptr<fp8rt_weight_table, Destroy> handle_;
};

// Owns a refit plan. One thread at a time uses it; it may outlive its context.
class Refit {
 public:
  Refit(const Context &context, const std::vector<fp8rt_refit_destination> &destinations,
        const std::vector<fp8rt_refit_region> &regions = {}) {
    fp8rt_refit_desc desc{};
    desc.struct_size = sizeof desc;
    desc.num_destinations = static_cast<std::uint32_t>(destinations.size());
    desc.num_regions = static_cast<std::uint32_t>(regions.size());
    desc.destinations = destinations.data();
    desc.regions = regions.data();
    fp8rt_refit *handle = nullptr;
    check(fp8rt_refit_create(context.get(), &desc, &handle));
    handle_.reset(handle);
  }

  fp8rt_refit *get() const noexcept { return handle_.get(); }

  void begin() { check(fp8rt_refit_begin(get())); }

  // Brings items; the number of boxes written. `staging`: for items on the host, on a GPU.
  std::uint64_t run(const std::vector<fp8rt_refit_item> &items, fp8rt_health *health = nullptr, void *stream = nullptr,
                    void *staging = nullptr, std::uint64_t staging_bytes = 0) {
    std::uint64_t written = 0;
    check(fp8rt_refit_run(get(), items.data(), static_cast<std::uint32_t>(items.size()), staging, staging_bytes, health,
                          &written, stream));
    return written;
  }

  // Throws INCOMPLETE, with the first that is missing, unless everything is filled.
  fp8rt_refit_receipt finish(std::uint32_t flags = 0) {
    fp8rt_refit_receipt receipt{};
    receipt.struct_size = sizeof receipt;
    check(fp8rt_refit_finish(get(), flags, &receipt));
    return receipt;
  }

  fp8rt_refit_info query() const {
    fp8rt_refit_info info{};
    info.struct_size = sizeof info;
    check(fp8rt_refit_query(get(), &info));
    return info;
  }

  // What is not filled, as JSON.
  std::string missing() const {
    return text_of([this](char *text, std::uint64_t capacity, std::uint64_t *length) {
      return fp8rt_refit_missing(get(), text, capacity, length);
    });
  }

  std::string source_name(std::uint32_t index) const {
    return text_of([&](char *text, std::uint64_t capacity, std::uint64_t *length) {
      return fp8rt_refit_source_name(get(), index, text, capacity, length);
    });
  }

  // A table of items at fixed addresses, which may be captured and replayed.
  WeightTable bind(const std::vector<fp8rt_refit_item> &items) const {
    fp8rt_weight_table *table = nullptr;
    check(fp8rt_refit_bind(get(), items.data(), static_cast<std::uint32_t>(items.size()), &table));
    return WeightTable(table);
  }

 private:
  struct Destroy {
    void operator()(fp8rt_refit *handle) const noexcept { fp8rt_refit_destroy(handle); }
  };

  std::unique_ptr<fp8rt_refit, Destroy> handle_;
};

}  // namespace fp8rt

#endif  // FP8RT_HPP
