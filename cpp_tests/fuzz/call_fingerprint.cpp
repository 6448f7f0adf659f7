// Fingerprints of weights, plans over a few of them, and reports.
#include "calls.hpp"

namespace fuzz {

namespace {

fp8rt_tensor value_of(const fp8rt_tensor *tensor) { return tensor == nullptr ? fp8rt_tensor{} : *tensor; }

template <class T>
T *sums_of(Arguments &arguments, size_t count) {
  return static_cast<T *>(arguments.raw_output(count * sizeof(T), alignof(T)));
}

const char *name_of(Reader &reader) {
  static const char *const names[] = {"model.layers.3.mlp.down_proj.weight", "w", "", "\xC3\xA4", "\xFF", nullptr};
  return names[reader.chance(16) ? reader.byte() % 6U : reader.byte() % 2U];
}

// Codes and scales that fit each other, or something that is kept.
struct Weight {
  fp8rt_tensor codes = {}, scales = {};
  bool kept = false;
  const int64_t *part_rows = nullptr;
  uint32_t num_parts = 0, format = 0;
};

Weight make_weight(Arguments &arguments, bool is_output) {
  Reader &reader = arguments.reader();
  const int64_t experts = reader.chance(4) ? 1 + reader.byte() % 3 : 0;
  const int64_t rows = reader.extent(), columns = reader.extent();
  const Shape shape = arguments.weight(experts, rows, columns);
  Weight weight;
  weight.kept = reader.chance(4);
  weight.format = reader.byte() % 3U;
  weight.part_rows = arguments.parts(rows, &weight.num_parts);
  const uint32_t dtype = weight.kept ? arguments.float_dtype() : uint32_t{FP8RT_DTYPE_E4M3};
  weight.codes = value_of(is_output ? arguments.output(dtype, shape) : arguments.input(dtype, shape));
  if (weight.kept && !reader.chance(16)) {
    return weight;
  }
  fp8rt_quantize_desc desc = {};
  desc.struct_size = sizeof desc, desc.scale_format = weight.format;
  desc.part_rows = weight.part_rows, desc.num_parts = weight.num_parts;
  fp8rt_tensor layout = {nullptr, 16, FP8RT_DTYPE_F32, -1, 2, 0, {1, 1, 0}, {1, 1, 0}};
  fp8rt_weight_scales_layout(&desc, experts, rows, columns, &layout);
  weight.scales = value_of(arguments.scales(layout, is_output));
  return weight;
}

}  // namespace

void call_fingerprint(Arguments &arguments, fp8rt_context *context) {
  Reader &reader = arguments.reader();
  const Weight weight = make_weight(arguments, false);
  fp8rt_fingerprint_desc settings = {};
  settings.name = name_of(reader);
  settings.part_rows = weight.part_rows, settings.num_parts = weight.num_parts;
  settings.scale_format = weight.format;
  settings.part = reader.byte();
  if (reader.chance(4)) {
    settings.expert = reader.hostile(), settings.first_block_row = reader.hostile();
    settings.first_block_column = reader.hostile(), settings.part = reader.word();
  }
  if (reader.chance(16)) {
    settings.flags = reader.word(), settings.scale_format = reader.word(), settings.reserved = reader.word();
  }
  const fp8rt_fingerprint_desc *desc = arguments.descriptor(settings);
  auto *sum = sums_of<fp8rt_fingerprint_sum>(arguments, 1);
  const fp8rt_tensor *scales = weight.scales.rank == 0 ? nullptr : &weight.scales;
  run(arguments, [&] { return fp8rt_fingerprint_weight(context, desc, &weight.codes, scales, sum, nullptr); });
  fp8rt_fingerprint value = {}, total = {};
  const auto status = fp8rt_fingerprint_read(context, sum, sum == nullptr ? reader.byte() : 1, &value,
                                             reader.chance(4) ? nullptr : &total, nullptr);
  check_status(status);
}

void call_report(Arguments &arguments, fp8rt_context *context) {
  Reader &reader = arguments.reader();
  constexpr size_t kMost = 3;
  fp8rt_refit_destination destinations[kMost] = {};
  fp8rt_refit_item items[kMost] = {};
  const uint32_t count = reader.byte() % (kMost + 1);
  for (uint32_t i = 0; i < count; ++i) {
    static const char *const names[] = {"model.layers.0.up.weight", "model.layers.1.up.weight", "h.9999.<b>"};
    const Weight weight = make_weight(arguments, true);
    destinations[i].name = items[i].name = names[i];
    destinations[i].codes = weight.codes, destinations[i].scales = weight.scales;
    destinations[i].part_rows = weight.part_rows, destinations[i].num_parts = weight.num_parts;
    destinations[i].scale_format = weight.format;
    const int64_t experts = weight.codes.rank == 3 ? weight.codes.shape[0] : 0;
    const uint32_t lead = weight.codes.rank == 3 ? 1 : 0;
    const int64_t rows = weight.codes.shape[lead], columns = weight.codes.shape[lead + 1];
    const bool small = rows >= 0 && rows <= 300 && columns >= 0 && columns <= 300 && experts >= 0 && experts <= 3;
    const uint32_t dtype = weight.kept ? weight.codes.dtype : arguments.float_dtype();
    // A damaged shape is for the plan to refuse; no memory of that extent could be placed.
    const Shape shape = small ? arguments.weight(experts, rows, columns) : arguments.weight(0, 1, 1);
    items[i].weight = value_of(arguments.input(dtype, shape));
  }
  fp8rt_refit_desc desc = {};
  desc.struct_size = sizeof desc;
  desc.num_destinations = count, desc.destinations = destinations;
  fp8rt_refit *refit = nullptr;
  check_status(fp8rt_refit_create(context, &desc, &refit));
  auto *fingerprints = sums_of<fp8rt_fingerprint_sum>(arguments, kMost);
  auto *errors = sums_of<fp8rt_error_sums>(arguments, kMost);
  check_status(fp8rt_refit_begin(refit));
  check_status(fp8rt_refit_run(refit, items, count, nullptr, 0, nullptr, nullptr, nullptr));
  run(arguments, [&] {
    return reader.chance(2) ? fp8rt_refit_fingerprint(refit, fingerprints, nullptr)
                            : fp8rt_refit_measure(refit, items, count, errors, nullptr);
  });
  fp8rt_error_sums given[kMost] = {};
  for (fp8rt_error_sums &sums : given) {
    // Anything, NaN too: a report is text.
    const uint64_t words[] = {reader.word() * 0x100000001ull, reader.word(), reader.word(), reader.word()};
    std::memcpy(&sums, words, sizeof words);
    sums.blocks = reader.byte() % 3;
  }
  char text[256];
  uint64_t length = 0;
  const uint32_t named = reader.chance(16) ? reader.word() : count;
  check_status(fp8rt_refit_report(refit, given, named, reader.byte() % 4U, text, reader.byte(), &length));
  const uint32_t read = fingerprints == nullptr ? 0 : named;
  check_status(fp8rt_refit_fingerprint_read(refit, fingerprints, read, nullptr, nullptr, nullptr));
  check_status(fp8rt_refit_destroy(refit));
}

}  // namespace fuzz
