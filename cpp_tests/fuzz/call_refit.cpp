// Refit plans: destinations, regions and items that mostly fit one another.
#include "calls.hpp"

namespace fuzz {

namespace {

const char *name_of(Reader &reader) {
  static const char *const names[] = {"a", "b", "c", "model.layers.0.weight", "", "\xFF\xFE", "a\"\\\n"};
  if (reader.chance(64)) {
    return nullptr;
  }
  return names[reader.chance(8) ? reader.byte() % 7 : reader.byte() % 3];
}

fp8rt_tensor value_of(const fp8rt_tensor *tensor) { return tensor == nullptr ? fp8rt_tensor{} : *tensor; }

int64_t place_of(Reader &reader) {
  if (reader.chance(16)) {
    return reader.hostile();
  }
  static const int64_t usual[] = {0, 0, 0, 128, 256, 1, 64, 3};
  return usual[reader.byte() % 8];
}

struct Extents {
  int64_t experts, rows, columns;
};

// The layout of the scales of a weight, where there is one.
fp8rt_tensor layout_of(const Extents &extents, uint32_t format, const int64_t *part_rows, uint32_t num_parts) {
  fp8rt_quantize_desc desc = {};
  desc.struct_size = sizeof desc;
  desc.scale_format = format, desc.part_rows = part_rows, desc.num_parts = num_parts;
  fp8rt_tensor layout = {nullptr, 16, FP8RT_DTYPE_F32, -1, 2, 0, {1, 1, 0}, {1, 1, 0}};
  fp8rt_weight_scales_layout(&desc, extents.experts, extents.rows, extents.columns, &layout);
  return layout;
}

class Plan {
 public:
  Plan(Arguments &arguments, fp8rt_context *context) : arguments_(arguments), reader_(arguments.reader()) {
    for (int count = reader_.byte() % 4; count > 0; --count) {
      add_destination();
    }
    for (int count = reader_.chance(2) ? reader_.byte() % 4 : 0; count > 0; --count) {
      add_region();
    }
    fp8rt_refit_desc desc = {};
    desc.num_destinations = static_cast<uint32_t>(destinations_.size()), desc.destinations = destinations_.data();
    desc.num_regions = static_cast<uint32_t>(regions_.size()), desc.regions = regions_.data();
    desc.flags = reader_.chance(32) ? reader_.word() : 0;
    const fp8rt_refit_desc *given = arguments_.descriptor(desc);
    run(arguments_, [&] { return fp8rt_refit_create(reader_.chance(64) ? nullptr : context, given, &refit_); });
  }
  Plan(const Plan &) = delete;
  Plan &operator=(const Plan &) = delete;
  ~Plan() { check_status(fp8rt_refit_destroy(refit_)); }

  void call() {
    switch (reader_.byte() % 8) {
      case 0:
        check_status(fp8rt_refit_begin(refit_));
        break;
      case 1:
      case 2:
      case 3:
        return run_items();
      case 4: {
        fp8rt_refit_receipt *receipt = arguments_.descriptor(fp8rt_refit_receipt{});
        const uint32_t flags = reader_.chance(16) ? reader_.word() : reader_.byte() % 2U;
        run(arguments_, [&] { return fp8rt_refit_finish(refit_, flags, receipt); });
        break;
      }
      case 5:
        return ask();
      case 6:
        return bind();
      default:
        return quantize_into();
    }
  }

 private:
  void add_destination() {
    const Extents extents{reader_.chance(4) ? 1 + reader_.byte() % 3 : 0, reader_.extent(), reader_.extent()};
    const Shape shape = arguments_.weight(extents.experts, extents.rows, extents.columns);
    fp8rt_refit_destination made = {};
    made.name = name_of(reader_);
    if (reader_.chance(4)) {
      made.part_rows = arguments_.parts(extents.rows, &made.num_parts);
    }
    made.recipe = reader_.chance(32) ? reader_.word() : reader_.byte() % 5U;
    made.scale_format = reader_.chance(32) ? reader_.word() : reader_.byte() % 3U;
    made.flags = reader_.chance(16) ? reader_.word() : reader_.byte() % 4U & 2U;
    made.reserved = reader_.chance(64) ? reader_.word() : 0;
    if (reader_.chance(4)) {
      made.codes = value_of(arguments_.output(arguments_.float_dtype(), shape));
    } else {
      const fp8rt_tensor layout = layout_of(extents, made.scale_format, made.part_rows, made.num_parts);
      made.codes = value_of(arguments_.output(FP8RT_DTYPE_E4M3, shape));
      made.scales = value_of(arguments_.scales(layout, true));
    }
    destinations_.push_back(made);
    extents_.push_back(extents);
  }

  void add_region() {
    fp8rt_refit_region made = {};
    made.source = name_of(reader_);
    made.destination = reader_.chance(16) ? reader_.word() : reader_.byte() % 4U;
    const Extents whole = made.destination < extents_.size() ? extents_[made.destination] : Extents{1, 128, 128};
    const int64_t all[] = {whole.experts == 0 ? 1 : whole.experts, whole.rows, whole.columns};
    for (int axis = 0; axis < 3; ++axis) {
      made.source_first[axis] = place_of(reader_);
      made.destination_first[axis] = reader_.chance(4) ? place_of(reader_) : 0;
      made.extent[axis] = reader_.chance(4) ? place_of(reader_) : all[axis];
    }
    regions_.push_back(made);
  }

  // The extents of a destination, or some others.
  fp8rt_refit_item make_item(Extents &extents) {
    fp8rt_refit_item made = {};
    const size_t like = reader_.byte() % (destinations_.size() + 1);
    extents = {0, reader_.extent(), reader_.extent()};
    uint32_t format = 0;
    made.name = name_of(reader_);
    if (like < destinations_.size()) {
      made.name = destinations_[like].name;
      extents = extents_[like];
      format = destinations_[like].scale_format;
    }
    made.flags = reader_.chance(16) ? reader_.word() : reader_.chance(4) ? reader_.byte() % 4U : 0;
    made.part = reader_.chance(16) ? reader_.word() : reader_.byte() % 3U;
    made.expert = reader_.chance(16) ? reader_.hostile() : reader_.byte() % 3;
    made.first_row = reader_.chance(4) ? place_of(reader_) : 0;
    made.first_column = reader_.chance(8) ? place_of(reader_) : 0;
    const Shape shape = arguments_.weight(extents.experts, extents.rows, extents.columns);
    if (reader_.chance(4)) {
      made.weight = value_of(arguments_.input(FP8RT_DTYPE_E4M3, shape));
      made.scales = value_of(arguments_.scales(layout_of(extents, format, nullptr, 0), false));
    } else {
      made.weight = value_of(arguments_.input(arguments_.float_dtype(), shape));
    }
    return made;
  }

  std::vector<fp8rt_refit_item> make_items() {
    std::vector<fp8rt_refit_item> items;
    Extents extents{};
    for (int count = reader_.byte() % 4; count > 0; --count) {
      items.push_back(make_item(extents));
    }
    return items;
  }

  fp8rt_health *make_health() {
    return static_cast<fp8rt_health *>(arguments_.raw_output(sizeof(fp8rt_health), alignof(fp8rt_health)));
  }

  void run_items() {
    const std::vector<fp8rt_refit_item> items = make_items();
    fp8rt_health *health = make_health();
    auto *written = static_cast<uint64_t *>(arguments_.raw_output(sizeof(uint64_t), alignof(uint64_t)));
    void *stream = reader_.chance(64) ? &arguments_ : nullptr;
    run(arguments_, [&] {
      return fp8rt_refit_run(refit_, items.data(), static_cast<uint32_t>(items.size()), nullptr, reader_.word(), health,
                             written, stream);
    });
  }

  void ask() {
    fp8rt_refit_info *info = arguments_.descriptor(fp8rt_refit_info{}, false);
    run(arguments_, [&] { return fp8rt_refit_query(refit_, info); });
    const uint64_t capacity = reader_.byte();
    auto *text = static_cast<char *>(arguments_.raw_output(capacity, 1));
    auto *length = static_cast<uint64_t *>(arguments_.raw_output(sizeof(uint64_t), alignof(uint64_t)));
    const uint32_t index = reader_.chance(4) ? reader_.word() : reader_.byte() % 3U;
    run(arguments_, [&] {
      return reader_.chance(2) ? fp8rt_refit_missing(refit_, text, capacity, length)
                               : fp8rt_refit_source_name(refit_, index, text, capacity, length);
    });
  }

  void bind() {
    const std::vector<fp8rt_refit_item> items = make_items();
    fp8rt_health *health = make_health();
    fp8rt_weight_table *table = nullptr;
    check_status(fp8rt_refit_bind(refit_, items.data(), static_cast<uint32_t>(items.size()), &table));
    run(arguments_, [&] { return fp8rt_weight_table_run(table, health, nullptr); });
    check_status(fp8rt_weight_table_destroy(table));
  }

  void quantize_into() {
    Extents extents{};
    const fp8rt_refit_item item = make_item(extents);
    const Shape shape = arguments_.weight(extents.experts, extents.rows, extents.columns);
    const fp8rt_tensor codes = value_of(arguments_.output(FP8RT_DTYPE_E4M3, shape));
    const fp8rt_tensor scales = value_of(arguments_.scales(layout_of(extents, reader_.byte() % 3U, nullptr, 0), true));
    fp8rt_health *health = make_health();
    run(arguments_, [&] { return fp8rt_refit_quantize_into(refit_, &item, &codes, &scales, 1, health, nullptr); });
  }

  Arguments &arguments_;
  Reader &reader_;
  std::vector<fp8rt_refit_destination> destinations_;
  std::vector<fp8rt_refit_region> regions_;
  std::vector<Extents> extents_;
  fp8rt_refit *refit_ = nullptr;
};

}  // namespace

void call_refit(Arguments &arguments, fp8rt_context *context) {
  Plan plan(arguments, context);
  for (int count = arguments.reader().byte() % 8; count > 0; --count) {
    plan.call();
  }
  fp8rt_health host = {};
  auto *device = static_cast<fp8rt_health *>(arguments.raw_output(sizeof(fp8rt_health), alignof(fp8rt_health)));
  run(arguments, [&] { return fp8rt_health_read(context, device, &host, nullptr); });
}

}  // namespace fuzz
