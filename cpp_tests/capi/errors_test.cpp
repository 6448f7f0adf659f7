// What the eight quantizing functions refuse: the status, a message that names the function, the argument and both
// numbers, and no byte written.

#include <gtest/gtest.h>

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "oracle.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kRows = 200, kColumns = 300;

// A valid call, which a case spoils in one place.
class Call {
 public:
  explicit Call(const Function &function_, std::int64_t rows = kRows, std::int64_t columns = kColumns)
      : function(function_),
        rule(rule_of(function_)),
        values(FP8RT_DTYPE_BF16, {rows, columns}, {columns + 20}),
        codes(FP8RT_DTYPE_E4M3, {rows, columns}, {columns + 20}),
        scales(make_scales(rule, {rows, columns})) {
    Random random(1);
    random.fill_normal(values, 1.0f);
    codes.fill(1.0f);
    scales.fill(1.0f);
    desc = rule.desc();
    views[0] = values.tensor();
    views[1] = codes.tensor();
    views[2] = scales.tensor();
    pointers = {context.get(), &desc, &views[0], &views[1], &views[2], function.has_health() ? &health : nullptr,
                nullptr};
  }
  Call(const Call &) = delete;
  Call &operator=(const Call &) = delete;

  fp8rt_tensor &x() { return views[0]; }
  fp8rt_tensor &c() { return views[1]; }
  fp8rt_tensor &s() { return views[2]; }

  // Runs, and checks status, message, and that no memory changed.
  ::testing::AssertionResult refused(fp8rt_status status, const std::vector<std::string> &texts) {
    const Matrix before[] = {values, codes, scales};
    const fp8rt_health health_before = health;
    const ::testing::AssertionResult failed = failed_with(call(function, pointers), status, function.name, texts);
    if (!failed) {
      return failed;
    }
    const Matrix *after[] = {&values, &codes, &scales};
    for (int index = 0; index < 3; ++index) {
      const ::testing::AssertionResult same = same_bytes(*after[index], before[index]);
      if (!same) {
        return ::testing::AssertionFailure() << "tensor " << index << " was written: " << same.message();
      }
    }
    return health == health_before ? ::testing::AssertionSuccess()
                                   : ::testing::AssertionFailure() << "health was written";
  }

  Function function;
  Rule rule;
  fp8rt::Context context = context_with_threads(1);
  Matrix values, codes, scales;
  fp8rt_health health{1, 2, 3, 4};
  fp8rt_quantize_desc desc{};
  fp8rt_tensor views[3] = {};
  Pointers pointers;

 private:
  static Rule rule_of(const Function &function) {
    Rule rule;
    rule.activation = function.activation;
    rule.recipe = function.default_recipe();
    return rule;
  }
};

struct Case {
  const char *label;
  std::function<void(Call &)> spoil;
  fp8rt_status status;
  std::vector<std::string> texts;
};

class Errors : public ::testing::TestWithParam<Function> {
 protected:
  void expect_all(const std::vector<Case> &cases) {
    for (const Case &one : cases) {
      Call call(GetParam());
      one.spoil(call);
      EXPECT_TRUE(call.refused(one.status, one.texts)) << one.label;
    }
  }
  bool has_codes() const { return GetParam().has_codes(); }
  bool is_activation() const { return GetParam().activation; }
  std::string values_name() const { return GetParam().values_name(); }
};

// The unspoiled call is valid, or no case below would mean anything.
TEST_P(Errors, TheBaseIsValid) {
  Call base(GetParam());
  EXPECT_OK(call(base.function, base.pointers));
}

TEST_P(Errors, NullPointers) {
  expect_all({
      {"context", [](Call &c) { c.pointers.context = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"context"}},
      {"values", [](Call &c) { c.pointers.values = nullptr; }, FP8RT_STATUS_NULL_POINTER, {values_name()}},
      {"scales", [](Call &c) { c.pointers.scales = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"scales"}},
      {"values data", [](Call &c) { c.x().data = nullptr; }, FP8RT_STATUS_NULL_POINTER, {values_name(), "60000"}},
      {"scales data", [](Call &c) { c.s().data = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"scales"}},
  });
  if (has_codes()) {
    expect_all({
        {"codes", [](Call &c) { c.pointers.codes = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"codes"}},
        {"codes data", [](Call &c) { c.c().data = nullptr; }, FP8RT_STATUS_NULL_POINTER, {"codes"}},
    });
  }
}

TEST_P(Errors, Ranks) {
  std::vector<Case> cases = {
      {"values rank 0", [](Call &c) { c.x().rank = 0; }, FP8RT_STATUS_SHAPE, {values_name() + " has rank 0"}},
      {"values rank 1", [](Call &c) { c.x().rank = 1; }, FP8RT_STATUS_SHAPE, {"rank"}},
      {"values rank 4", [](Call &c) { c.x().rank = 4; }, FP8RT_STATUS_SHAPE, {values_name() + " has rank 4", "3"}},
      {"values rank huge", [](Call &c) { c.x().rank = UINT32_MAX; }, FP8RT_STATUS_SHAPE, {"4294967295"}},
      {"scales rank 1", [](Call &c) { c.s().rank = 1; }, FP8RT_STATUS_SHAPE, {"scales has rank 1", "2"}},
      {"scales rank 3",
       [](Call &c) {
         c.s().rank = 3;
         c.s().shape[2] = 1;
       },
       FP8RT_STATUS_SHAPE,
       {"scales has rank 3"}},
      {"negative rows", [](Call &c) { c.x().shape[0] = -1; }, FP8RT_STATUS_SHAPE, {"shape[0] = -1"}},
      {"negative columns", [](Call &c) { c.x().shape[1] = INT64_MIN; }, FP8RT_STATUS_SHAPE, {"shape[1]"}},
  };
  expect_all(cases);
  if (is_activation() && has_codes()) {
    const auto both_rank_3 = [](Call &c) {
      for (fp8rt_tensor &view : c.views) {
        const fp8rt_tensor flat = view;
        view.rank = 3;
        for (int axis = 0; axis < 2; ++axis) {
          view.shape[axis + 1] = flat.shape[axis];
          view.stride[axis + 1] = flat.stride[axis];
        }
        view.shape[0] = 1;
      }
    };
    expect_all({{"an activation has no experts", both_rank_3, FP8RT_STATUS_SHAPE, {"rank 3", "2"}}});
  }
}

TEST_P(Errors, Types) {
  std::vector<Case> cases = {
      {"values 0", [](Call &c) { c.x().dtype = 0; }, FP8RT_STATUS_DTYPE, {values_name(), "0"}},
      {"values 6", [](Call &c) { c.x().dtype = 6; }, FP8RT_STATUS_DTYPE, {"6", "5"}},
      {"values huge", [](Call &c) { c.x().dtype = UINT32_MAX; }, FP8RT_STATUS_DTYPE, {"4294967295"}},
      {"values e4m3",
       [](Call &c) { c.x().dtype = FP8RT_DTYPE_E4M3; },
       FP8RT_STATUS_DTYPE,
       {values_name(), "e4m3", "bf16"}},
      {"scales bf16",
       [](Call &c) { c.s().dtype = FP8RT_DTYPE_BF16; },
       FP8RT_STATUS_DTYPE,
       {"scales", "bf16", "fp32"}},
      {"scales int32",
       [](Call &c) { c.s().dtype = FP8RT_DTYPE_INT32; },
       FP8RT_STATUS_DTYPE,
       {"scales", "int32", "fp32"}},
  };
  if (has_codes()) {
    cases.push_back({"codes",
                     [](Call &c) {
                       c.c().dtype = FP8RT_DTYPE_BF16;
                       c.c().bytes *= 2;
                     },
                     FP8RT_STATUS_DTYPE,
                     {"codes", "bf16", "e4m3"}});
  }
  expect_all(cases);
  const auto packed = [](Call &c) { c.desc.scale_format = FP8RT_SCALE_FORMAT_UE8M0_PACKED; };
  expect_all({{"packed in fp32", packed, FP8RT_STATUS_DTYPE, {"scales", "fp32", "int32"}}});
}

TEST_P(Errors, Shapes) {
  const std::string rows = is_activation() ? "200" : "2", letter = is_activation() ? "M = 200" : "N = 200";
  std::vector<Case> cases = {
      {"one column of scales too few",
       [](Call &c) { c.s().shape[1] = 2; },
       FP8RT_STATUS_SHAPE,
       {"scales has 2 columns", "K = 300 needs 3"}},
      {"one column of scales too many",
       [](Call &c) {
         c.s().shape[1] = 4;
         c.s().stride[0] = 4;
         c.s().bytes = 1 << 20;
       },
       FP8RT_STATUS_SHAPE,
       {"scales has 4 columns", "K = 300 needs 3"}},
      {"one row of scales too few",
       [](Call &c) { c.s().shape[0] -= 1; },
       FP8RT_STATUS_SHAPE,
       {"scales has ", " rows", letter, "needs " + rows}},
      {"one row of scales too many",
       [](Call &c) {
         c.s().shape[0] += 1;
         c.s().bytes += 64;
       },
       FP8RT_STATUS_SHAPE,
       {"scales has ", letter, "needs " + rows}},
  };
  if (has_codes()) {
    cases.push_back(
        {"codes one row short", [](Call &c) { c.c().shape[0] = 199; }, FP8RT_STATUS_SHAPE, {"199", "200"}});
    cases.push_back(
        {"codes one column short", [](Call &c) { c.c().shape[1] = 299; }, FP8RT_STATUS_SHAPE, {"299", "300"}});
  }
  expect_all(cases);
}

TEST_P(Errors, Strides) {
  std::vector<Case> cases = {
      {"rows closer than they are long",
       [](Call &c) { c.x().stride[0] = 299; },
       FP8RT_STATUS_STRIDE,
       {values_name(), "299", "300"}},
      {"rows at one place", [](Call &c) { c.x().stride[0] = 0; }, FP8RT_STATUS_STRIDE, {values_name(), "0"}},
      {"columns apart",
       [](Call &c) {
         c.x().stride[1] = 2;
         c.x().stride[0] = 600;
         c.x().bytes *= 2;
       },
       FP8RT_STATUS_STRIDE,
       {values_name() + " has stride[1] = 2", "1"}},
      {"negative", [](Call &c) { c.x().stride[0] = -320; }, FP8RT_STATUS_STRIDE, {values_name(), "-320"}},
      {"scales at one place", [](Call &c) { c.s().stride[0] = 0; }, FP8RT_STATUS_STRIDE, {"scales", "0"}},
  };
  if (has_codes()) {
    cases.push_back(
        {"codes too close", [](Call &c) { c.c().stride[0] = 299; }, FP8RT_STATUS_STRIDE, {"codes", "299", "300"}});
    cases.push_back({"codes apart",
                     [](Call &c) {
                       c.c().stride[1] = 2;
                       c.c().stride[0] = 600;
                       c.c().bytes *= 2;
                     },
                     FP8RT_STATUS_STRIDE,
                     {"codes has stride[1] = 2", "1"}});
  }
  if (is_activation()) {
    const auto column_stride = [](std::int64_t stride) {
      return [stride](Call &c) {
        c.s().stride[0] = 1;
        c.s().stride[1] = stride;
        c.s().bytes = 1 << 20;
      };
    };
    cases.push_back({"columns not a multiple of 4", column_stride(202), FP8RT_STATUS_STRIDE, {"202", "4", "200"}});
    cases.push_back({"columns closer than M", column_stride(196), FP8RT_STATUS_STRIDE, {"196", "200"}});
    cases.push_back({"neither major",
                     [](Call &c) {
                       c.s().stride[0] = 8;
                       c.s().stride[1] = 2;
                       c.s().bytes = 1 << 20;
                     },
                     FP8RT_STATUS_STRIDE,
                     {"scales", "8", "2"}});
  }
  expect_all(cases);
}

TEST_P(Errors, Alignment) {
  const auto odd = [](void *&data, std::uint64_t &bytes, int by) {
    data = static_cast<std::uint8_t *>(data) + by;
    bytes += 64;
  };
  expect_all({
      {"values", [&](Call &c) { odd(c.x().data, c.x().bytes, 1); }, FP8RT_STATUS_ALIGNMENT, {values_name(), "2"}},
      {"scales by 1", [&](Call &c) { odd(c.s().data, c.s().bytes, 1); }, FP8RT_STATUS_ALIGNMENT, {"scales", "4"}},
      {"scales by 2", [&](Call &c) { odd(c.s().data, c.s().bytes, 2); }, FP8RT_STATUS_ALIGNMENT, {"scales", "4"}},
  });
  Call misplaced(GetParam());
  alignas(8) std::uint8_t memory[2 * sizeof(fp8rt_tensor)];
  std::memcpy(memory + 4, &misplaced.views[0], sizeof(fp8rt_tensor));
  const void *place = memory + 4;
  misplaced.pointers.values = static_cast<const fp8rt_tensor *>(place);
  EXPECT_TRUE(misplaced.refused(FP8RT_STATUS_ALIGNMENT, {values_name(), "8"}));
}

TEST_P(Errors, Bounds) {
  const auto number = [](std::uint64_t value) { return std::to_string(value); };
  const Call base(GetParam());
  const std::uint64_t x = base.values.bytes(), c = base.codes.bytes(), s = base.scales.bytes();
  std::vector<Case> cases = {
      {"values one byte short",
       [](Call &k) { k.x().bytes -= 1; },
       FP8RT_STATUS_BOUNDS,
       {values_name(), number(x - 1), number(x)}},
      {"scales one byte short",
       [](Call &k) { k.s().bytes -= 1; },
       FP8RT_STATUS_BOUNDS,
       {"scales", number(s - 1), number(s)}},
      {"values of no bytes", [](Call &k) { k.x().bytes = 0; }, FP8RT_STATUS_BOUNDS, {values_name(), number(x)}},
      {"bytes that wrap around", [](Call &k) { k.x().bytes = UINT64_MAX; }, FP8RT_STATUS_BOUNDS, {values_name()}},
  };
  if (has_codes()) {
    cases.push_back({"codes one byte short",
                     [](Call &k) { k.c().bytes -= 1; },
                     FP8RT_STATUS_BOUNDS,
                     {"codes", number(c - 1), number(c)}});
  }
  expect_all(cases);
}

TEST_P(Errors, HugeNumbersAreRefusedWithoutACrash) {
  const std::int64_t huge[] = {INT64_MAX, INT64_MAX - 1, INT64_MAX / 2, INT64_MAX / 4 + 1, std::int64_t{1} << 32};
  for (const std::int64_t value : huge) {
    for (int tensor = 0; tensor < 3; ++tensor) {
      if (tensor == 1 && !has_codes()) {
        continue;
      }
      for (int field = 0; field < 4; ++field) {
        Call call(GetParam());
        fp8rt_tensor &view = call.views[tensor];
        (field < 2 ? view.shape[field] : view.stride[field - 2]) = value;
        const Matrix before[] = {call.values, call.codes, call.scales};
        const fp8rt_status status = fp8rt_test::call(call.function, call.pointers);
        EXPECT_TRUE(status == FP8RT_STATUS_BOUNDS || status == FP8RT_STATUS_SHAPE || status == FP8RT_STATUS_STRIDE)
            << "tensor " << tensor << ", field " << field << ", " << value << ": " << fp8rt_status_name(status);
        EXPECT_TRUE(same_bytes(call.values, before[0]) && same_bytes(call.codes, before[1]) &&
                    same_bytes(call.scales, before[2]));
      }
    }
  }
}

TEST_P(Errors, ReservedFieldsAndDevices) {
  expect_all({
      {"reserved of values",
       [](Call &c) { c.x().reserved = 1; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {values_name(), "reserved", "1"}},
      {"reserved of scales",
       [](Call &c) { c.s().reserved = UINT32_MAX; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"scales", "reserved"}},
      {"values on a device",
       [](Call &c) { c.x().device = 0; },
       FP8RT_STATUS_DEVICE,
       {values_name() + " is on device 0", "-1"}},
      {"scales on a device", [](Call &c) { c.s().device = 3; }, FP8RT_STATUS_DEVICE, {"scales is on device 3", "-1"}},
      {"stream on the host", [](Call &c) { c.pointers.stream = &c; }, FP8RT_STATUS_INVALID_ARGUMENT, {"stream"}},
  });
  if (has_codes()) {
    expect_all(
        {{"codes on a device",
          [](Call &c) { c.c().device = 0; },
          FP8RT_STATUS_DEVICE,
          {"codes is on device 0", "-1"}},
         {"reserved of codes", [](Call &c) { c.c().reserved = 7; }, FP8RT_STATUS_INVALID_ARGUMENT, {"codes", "7"}}});
  }
}

TEST_P(Errors, Descriptors) {
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  const auto floor = [](float value) {
    return [value](Call &c) {
      c.desc.flags = FP8RT_QUANTIZE_FLOOR;
      c.desc.floor = value;
    };
  };
  expect_all({
      {"flags", [](Call &c) { c.desc.flags = 2; }, FP8RT_STATUS_INVALID_ARGUMENT, {"flags", "0x2"}},
      {"all flags", [](Call &c) { c.desc.flags = UINT32_MAX; }, FP8RT_STATUS_INVALID_ARGUMENT, {"flags"}},
      {"recipe", [](Call &c) { c.desc.recipe = 5; }, FP8RT_STATUS_INVALID_ARGUMENT, {"recipe is 5", "4"}},
      {"recipe far off",
       [](Call &c) { c.desc.recipe = UINT32_MAX; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"4294967295", "4"}},
      {"format", [](Call &c) { c.desc.scale_format = 3; }, FP8RT_STATUS_INVALID_ARGUMENT, {"scale_format is 3", "2"}},
      {"format far off",
       [](Call &c) { c.desc.scale_format = UINT32_MAX; },
       FP8RT_STATUS_INVALID_ARGUMENT,
       {"4294967295"}},
      {"floor NaN", floor(nan), FP8RT_STATUS_INVALID_ARGUMENT, {"floor"}},
      {"floor infinite", floor(infinity), FP8RT_STATUS_INVALID_ARGUMENT, {"floor"}},
      {"floor negative", floor(-1.0f), FP8RT_STATUS_INVALID_ARGUMENT, {"floor is -1", "0"}},
      {"size 0", [](Call &c) { c.desc.struct_size = 0; }, FP8RT_STATUS_STRUCT_SIZE, {"struct_size 0", "32"}},
      {"size 3", [](Call &c) { c.desc.struct_size = 3; }, FP8RT_STATUS_STRUCT_SIZE, {"struct_size 3"}},
      {"size huge", [](Call &c) { c.desc.struct_size = UINT32_MAX; }, FP8RT_STATUS_STRUCT_SIZE, {"4294967295"}},
  });
}

TEST_P(Errors, Parts) {
  static const std::int64_t kShort[] = {100, 99}, kLong[] = {100, 101}, kNegative[] = {201, -1}, kWhole[] = {200};
  const auto parts = [](const std::int64_t *rows, std::uint32_t count) {
    return [rows, count](Call &c) {
      c.desc.part_rows = rows;
      c.desc.num_parts = count;
    };
  };
  if (is_activation()) {
    expect_all({{"an activation has none", parts(kWhole, 1), FP8RT_STATUS_INVALID_ARGUMENT, {"num_parts is 1"}}});
    return;
  }
  expect_all({
      {"too few rows", parts(kShort, 2), FP8RT_STATUS_SHAPE, {"199", "200"}},
      {"too many rows", parts(kLong, 2), FP8RT_STATUS_SHAPE, {"201", "200"}},
      {"a negative part", parts(kNegative, 2), FP8RT_STATUS_INVALID_ARGUMENT, {"part_rows[1]", "-1"}},
      {"no array", parts(nullptr, 2), FP8RT_STATUS_NULL_POINTER, {"part_rows", "2"}},
      {"absurdly many", parts(kWhole, UINT32_MAX), FP8RT_STATUS_INVALID_ARGUMENT, {"num_parts", "4294967295"}},
  });
}

TEST_P(Errors, Overlaps) {
  const auto at = [](fp8rt_tensor &view, const void *place, std::uint64_t bytes) {
    view.data = const_cast<void *>(place);
    view.bytes = bytes;
  };
  const auto last_element = [](const Matrix &m) {
    return const_cast<std::uint8_t *>(m.data()) + (m.bytes() - 1) / 4 * 4;
  };
  std::vector<Case> cases;
  if (has_codes()) {
    const auto codes_in_values = [&](Call &c) { at(c.c(), c.values.data(), c.values.bytes()); };
    cases.push_back(
        {"codes in the place of values", codes_in_values, FP8RT_STATUS_OVERLAP, {"codes", values_name()}});
  }
  if (GetParam().writes_codes()) {
    const auto scales_in_codes = [&](Call &c) { at(c.s(), c.codes.data() + 4, c.codes.bytes() - 4); };
    cases.push_back({"scales within codes", scales_in_codes, FP8RT_STATUS_OVERLAP, {"scales"}});
  }
  if (GetParam().writes_scales()) {
    const auto scales_in_values = [&](Call &c) { at(c.s(), c.values.data() + 8, c.values.bytes() - 8); };
    cases.push_back({"scales within values", scales_in_values, FP8RT_STATUS_OVERLAP, {"scales", values_name()}});
    const auto in_the_end = [&](Call &c) { at(c.s(), last_element(c.values), 8192); };
    cases.push_back({"scales from the last value on", in_the_end, FP8RT_STATUS_OVERLAP, {"scales", values_name()}});
  }
  if (GetParam().kind == Kind::kDequantize) {
    const auto values_in_scales = [&](Call &c) { at(c.x(), c.scales.data(), 1 << 20); };
    cases.push_back(
        {"values in the place of scales", values_in_scales, FP8RT_STATUS_OVERLAP, {values_name(), "scales"}});
  }
  if (GetParam().has_health()) {
    const auto health_at = [](Call &c, void *place) { c.pointers.health = static_cast<fp8rt_health *>(place); };
    cases.push_back({"health within codes",
                     [=](Call &c) { health_at(c, c.codes.data()); },
                     FP8RT_STATUS_OVERLAP,
                     {"health", "codes"}});
    cases.push_back({"health within values",
                     [=](Call &c) { health_at(c, c.values.data() + 64); },
                     FP8RT_STATUS_OVERLAP,
                     {"health", values_name()}});
    cases.push_back({"health within scales",
                     [=](Call &c) { health_at(c, c.scales.data()); },
                     FP8RT_STATUS_OVERLAP,
                     {"health", "scales"}});
    cases.push_back({"health misaligned",
                     [=](Call &c) { health_at(c, reinterpret_cast<std::uint8_t *>(&c.health) + 4); },
                     FP8RT_STATUS_ALIGNMENT,
                     {"health", "8"}});
  }
  expect_all(cases);
}

std::string function_name(const ::testing::TestParamInfo<Function> &info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(EveryFunction, Errors, ::testing::ValuesIn(kFunctions), function_name);

// Windows of one wider matrix do not overlap: values in its left columns, codes in its right ones.
TEST(Windows, OfOneWiderMatrixAreAccepted) {
  const fp8rt::Context context;
  for (const bool activation : {false, true}) {
    Rule rule;
    rule.activation = activation;
    constexpr std::int64_t kPitch = 1024;  // bytes
    Matrix wide(FP8RT_DTYPE_E4M3, {50, kPitch});
    Matrix values(FP8RT_DTYPE_BF16, {50, 200}), codes(FP8RT_DTYPE_E4M3, {50, 200}),
        scales = make_scales(rule, {50, 200});
    Random(5).fill_normal(values, 1.0f);
    for (std::int64_t row = 0; row < 50; ++row) {
      std::memcpy(wide.data() + row * kPitch, values.data() + values.offset_of(0, row, 0), 400);
    }
    Matrix want = wide;
    oracle_quantize(rule, values, codes, scales);
    for (std::int64_t row = 0; row < 50; ++row) {
      std::memcpy(want.data() + row * kPitch + 400, codes.data() + codes.offset_of(0, row, 0), 200);
    }
    Matrix got_scales = make_scales(rule, {50, 200});
    const fp8rt_tensor left = fp8rt::tensor(wide.data(), FP8RT_DTYPE_BF16, {50, 200}, kPitch / 2);
    const fp8rt_tensor right = fp8rt::tensor(wide.data() + 400, FP8RT_DTYPE_E4M3, {50, 200}, kPitch);
    const fp8rt_tensor scales_view = got_scales.tensor();
    const fp8rt_quantize_desc desc = rule.desc();
    const auto quantize = activation ? fp8rt_quantize_activation : fp8rt_quantize_weight;
    const char *name = activation ? "fp8rt_quantize_activation" : "fp8rt_quantize_weight";
    const fp8rt_tensor touching = fp8rt::tensor(wide.data() + 399, FP8RT_DTYPE_E4M3, {50, 200}, kPitch);
    const Matrix before = wide;
    EXPECT_TRUE(failed_with(quantize(context.get(), &desc, &left, &touching, &scales_view, nullptr, nullptr),
                            FP8RT_STATUS_OVERLAP, name, {"codes"}));
    EXPECT_TRUE(same_bytes(wide, before));
    ASSERT_OK(quantize(context.get(), &desc, &left, &right, &scales_view, nullptr, nullptr));
    EXPECT_TRUE(same_bytes(wide, want));
    EXPECT_TRUE(same_bytes(got_scales, scales));
  }
}

// The padding of column-major scales is written, so it counts as part of the output.
TEST(Windows, CodesInThePaddingOfScalesAreRefused) {
  const fp8rt::Context context;
  Matrix values(FP8RT_DTYPE_BF16, {5, 12}, {}), memory(FP8RT_DTYPE_E4M3, {1, 256});
  Random(6).fill_normal(values, 1.0f);
  const fp8rt_tensor values_view = values.tensor();
  fp8rt_tensor scales = fp8rt::strided_tensor(memory.data(), FP8RT_DTYPE_F32, {5, 1}, {1, 8});
  scales.bytes = memory.bytes();
  const fp8rt_tensor codes = fp8rt::tensor(memory.data() + 20, FP8RT_DTYPE_E4M3, {5, 12});
  const Matrix before = memory;
  EXPECT_TRUE(
      failed_with(fp8rt_quantize_activation(context.get(), nullptr, &values_view, &codes, &scales, nullptr, nullptr),
                  FP8RT_STATUS_OVERLAP, "fp8rt_quantize_activation", {"scales", "codes"}));
  EXPECT_TRUE(same_bytes(memory, before));
}

TEST(Messages, AreAsTheDesignPromises) {
  const fp8rt::Context context;
  const Matrix weight(FP8RT_DTYPE_BF16, {128, 4096}), codes(FP8RT_DTYPE_E4M3, {128, 4096}),
      scales(FP8RT_DTYPE_F32, {1, 31});
  ASSERT_EQ(quantize(context, Rule{}, weight, codes, scales), FP8RT_STATUS_SHAPE);
  EXPECT_STREQ(fp8rt_last_error(), "fp8rt_quantize_weight: scales has 31 columns, weight with K = 4096 needs 32");
}

TEST(Experts, TheirNumberMustAgree) {
  const fp8rt::Context context;
  const Matrix weight(FP8RT_DTYPE_BF16, {128, 128, 3}), codes(FP8RT_DTYPE_E4M3, {128, 128, 3});
  const Matrix fewer_scales(FP8RT_DTYPE_F32, {1, 1, 2}), scales(FP8RT_DTYPE_F32, {1, 1, 3});
  const Matrix fewer_codes(FP8RT_DTYPE_E4M3, {128, 128, 2});
  EXPECT_TRUE(failed_with(quantize(context, Rule{}, weight, codes, fewer_scales), FP8RT_STATUS_SHAPE,
                          "fp8rt_quantize_weight", {"scales has 2 experts", "3"}));
  EXPECT_TRUE(failed_with(quantize(context, Rule{}, weight, fewer_codes, scales), FP8RT_STATUS_SHAPE,
                          "fp8rt_quantize_weight", {"codes", "2", "3"}));
}

TEST(Empty, TensorsSucceedWithoutData) {
  const fp8rt::Context context;
  for (const Function &function : kFunctions) {
    for (const Extents extents : {Extents{0, 300}, {300, 0}, {0, 0}}) {
      Rule rule;
      rule.activation = function.activation;
      const Extents scales_shape = scales_extents(rule, extents);
      const fp8rt_tensor values = fp8rt::tensor(nullptr, FP8RT_DTYPE_BF16, {extents.rows, extents.columns});
      const fp8rt_tensor codes = fp8rt::tensor(nullptr, FP8RT_DTYPE_E4M3, {extents.rows, extents.columns});
      const fp8rt_tensor scales = fp8rt::tensor(nullptr, FP8RT_DTYPE_F32, {scales_shape.rows, scales_shape.columns});
      fp8rt_health health{};
      EXPECT_OK(call(function, {context.get(), nullptr, &values, &codes, &scales,
                                function.has_health() ? &health : nullptr, nullptr}))
          << function.name << " " << extents.rows << "x" << extents.columns;
      EXPECT_EQ(health, fp8rt_health{});
    }
  }
}

}  // namespace
}  // namespace fp8rt_test
