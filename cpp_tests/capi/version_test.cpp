// Version, names, errors of a thread, and the log.

#include <gtest/gtest.h>

#include <climits>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"

namespace fp8rt_test {
namespace {

TEST(Version, TheLibraryIsTheOneOfTheHeader) { EXPECT_EQ(fp8rt_abi_version(), std::uint32_t{FP8RT_ABI_VERSION}); }

TEST(Version, BuildInfoSaysWhatIsInside) {
  const std::string info = fp8rt_build_info();
  EXPECT_EQ(info.rfind("fp8rt ", 0), 0u) << info;
  for (const char *part : {"abi 0", "features", "cuda", "deepgemm", "cutlass"}) {
    EXPECT_NE(info.find(part), std::string::npos) << info;
  }
  EXPECT_EQ(info.find('\n'), std::string::npos);
  EXPECT_EQ(fp8rt_build_info(), fp8rt_build_info());
}

TEST(Version, EveryStatusHasItsName) {
#define NAMED(status) \
  {                   \
    status, #status   \
  }
  const std::pair<fp8rt_status, const char *> named[] = {
      NAMED(FP8RT_STATUS_OK),          NAMED(FP8RT_STATUS_INVALID_ARGUMENT), NAMED(FP8RT_STATUS_NULL_POINTER),
      NAMED(FP8RT_STATUS_SHAPE),       NAMED(FP8RT_STATUS_STRIDE),           NAMED(FP8RT_STATUS_ALIGNMENT),
      NAMED(FP8RT_STATUS_DTYPE),       NAMED(FP8RT_STATUS_DEVICE),           NAMED(FP8RT_STATUS_BOUNDS),
      NAMED(FP8RT_STATUS_OVERLAP),     NAMED(FP8RT_STATUS_WORKSPACE),        NAMED(FP8RT_STATUS_STRUCT_SIZE),
      NAMED(FP8RT_STATUS_UNSUPPORTED), NAMED(FP8RT_STATUS_NOT_PREPARED),     NAMED(FP8RT_STATUS_NO_DEVICE),
      NAMED(FP8RT_STATUS_FORKED),      NAMED(FP8RT_STATUS_OUT_OF_MEMORY),    NAMED(FP8RT_STATUS_CUDA_ERROR),
      NAMED(FP8RT_STATUS_INTERNAL),    NAMED(FP8RT_STATUS_INCOMPLETE),       NAMED(FP8RT_STATUS_STATE),
  };
#undef NAMED
  int number = 0;
  for (const auto &[status, name] : named) {
    EXPECT_EQ(static_cast<int>(status), number++);
    EXPECT_STREQ(fp8rt_status_name(status), name);
  }
  // A status that the list above lacks has a name.
  EXPECT_STREQ(fp8rt_status_name(number), "unknown");
  for (const int unknown : {-1, INT_MIN, INT_MAX, 1000}) {
    EXPECT_STREQ(fp8rt_status_name(unknown), "unknown");
  }
}

void fail_with_flags(std::uint32_t flags) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.flags = flags;
  fp8rt_context *context = nullptr;
  EXPECT_EQ(fp8rt_context_create(&desc, &context), FP8RT_STATUS_INVALID_ARGUMENT);
}

TEST(LastError, IsEmptyUntilSomethingFailsAndThenStays) {
  std::string before, after, after_success;
  std::thread([&] {
    before = fp8rt_last_error();
    fail_with_flags(0x40);
    after = fp8rt_last_error();
    EXPECT_EQ(fp8rt_context_destroy(nullptr), FP8RT_STATUS_OK);
    after_success = fp8rt_last_error();
  }).join();
  EXPECT_EQ(before, "");
  EXPECT_EQ(after.rfind("fp8rt_context_create: ", 0), 0u) << after;
  EXPECT_NE(after.find("0x40"), std::string::npos) << after;
  EXPECT_EQ(after_success, after);
}

TEST(LastError, BelongsToItsThread) {
  fail_with_flags(0x10);
  const std::string mine = fp8rt_last_error();
  std::string other;
  std::thread([&] {
    fail_with_flags(0x20);
    other = fp8rt_last_error();
  }).join();
  EXPECT_NE(other.find("0x20"), std::string::npos) << other;
  EXPECT_EQ(mine, fp8rt_last_error());
  EXPECT_NE(mine, other);
}

TEST(LastError, IsCutToItsCapacity) {
  const fp8rt::Context context;
  fp8rt_linear_desc desc = fp8rt::linear_desc();
  const Environment environment("FP8RT_BACKEND", std::string(2000, 'x').c_str());
  fp8rt_linear_plan *plan = nullptr;
  ASSERT_EQ(fp8rt_linear_plan_create(context.get(), &desc, &plan), FP8RT_STATUS_INVALID_ARGUMENT);
  EXPECT_EQ(std::strlen(fp8rt_last_error()), 511u);
}

TEST(LastError, NoCudaErrorWithoutCuda) { EXPECT_EQ(fp8rt_last_cuda_error(), 0); }

struct Line {
  std::uint32_t level;
  std::string text;
};

void collect(std::uint32_t level, const char *message, void *user) {
  static_cast<std::vector<Line> *>(user)->push_back({level, message});
}

// Makes a plan, which is a decision and so worth a line.
void decide() {
  const fp8rt::Context context;
  fp8rt_linear_desc desc = fp8rt::linear_desc();
  desc.max_m = 3;
  desc.n = 320;
  desc.k = 448;
  const fp8rt::LinearPlan plan(context, desc);
}

// The callback of the process, back to none at the end.
struct LogTo {
  explicit LogTo(std::vector<Line> &lines) { EXPECT_EQ(fp8rt_set_log(collect, &lines), FP8RT_STATUS_OK); }
  ~LogTo() { EXPECT_EQ(fp8rt_set_log(nullptr, nullptr), FP8RT_STATUS_OK); }
};

TEST(Log, VerboseLinesGoToTheCallback) {
  const Environment environment("FP8RT_VERBOSE", "1");
  std::vector<Line> lines;
  ::testing::internal::CaptureStderr();
  {
    const LogTo log(lines);
    decide();
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0].level, std::uint32_t{FP8RT_LOG_INFO});
  for (const char *part : {"320", "448", "cpu"}) {
    EXPECT_NE(lines[0].text.find(part), std::string::npos) << lines[0].text;
  }
  EXPECT_EQ(lines[0].text.find('\n'), std::string::npos);
}

TEST(Log, VerboseLinesGoToStderrWithoutACallback) {
  const Environment environment("FP8RT_VERBOSE", "1");
  ::testing::internal::CaptureStderr();
  decide();
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.rfind("fp8rt: ", 0), 0u) << text;
  EXPECT_NE(text.find("cpu"), std::string::npos) << text;
}

TEST(Log, IsQuietUnlessAsked) {
  for (const char *quiet : {"0", ""}) {
    const Environment environment("FP8RT_VERBOSE", quiet);
    std::vector<Line> lines;
    ::testing::internal::CaptureStderr();
    {
      const LogTo log(lines);
      decide();
    }
    decide();
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
    EXPECT_TRUE(lines.empty());
  }
}

TEST(Log, AReplacedCallbackRunsNoMore) {
  const Environment environment("FP8RT_VERBOSE", "1");
  std::vector<Line> first, second;
  const LogTo log(first);
  ASSERT_EQ(fp8rt_set_log(collect, &second), FP8RT_STATUS_OK);
  decide();
  EXPECT_TRUE(first.empty());
  EXPECT_EQ(second.size(), 1u);
}

TEST(Header, AnErrorCarriesStatusAndMessage) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.flags = 0x80;
  try {
    const fp8rt::Context context(desc);
    FAIL() << "flags 0x80 were taken";
  } catch (const fp8rt::Error &error) {
    EXPECT_EQ(error.status(), FP8RT_STATUS_INVALID_ARGUMENT);
    EXPECT_STREQ(error.what(), fp8rt_last_error());
  }
}

TEST(Header, TensorsAreAsWideAsTheirStrides) {
  std::uint16_t element = 0;
  const fp8rt_tensor packed = fp8rt::tensor(&element, FP8RT_DTYPE_BF16, {2, 3, 5});
  EXPECT_EQ(packed.rank, 3u);
  EXPECT_EQ(packed.device, -1);
  EXPECT_EQ(packed.data, &element);
  EXPECT_EQ(packed.stride[0], 15);
  EXPECT_EQ(packed.bytes, 60u);
  const fp8rt_tensor wide = fp8rt::tensor(&element, FP8RT_DTYPE_E4M3, {3, 5}, 8);
  EXPECT_EQ(wide.stride[0], 8);
  EXPECT_EQ(wide.stride[1], 1);
  EXPECT_EQ(wide.bytes, 21u);
  const fp8rt_tensor columns = fp8rt::strided_tensor(&element, FP8RT_DTYPE_F32, {3, 2}, {1, 4});
  EXPECT_EQ(columns.bytes, 28u);
  EXPECT_EQ(fp8rt::tensor(&element, FP8RT_DTYPE_F32, {0, 7}).bytes, 0u);
  EXPECT_EQ(fp8rt::tensor(&element, FP8RT_DTYPE_F16, {6}).bytes, 12u);
  EXPECT_THROW(fp8rt::strided_tensor(&element, FP8RT_DTYPE_F32, {3, 2}, {1}), std::invalid_argument);
}

TEST(Header, OwnersMoveAndDoNotCopy) {
  static_assert(!std::is_copy_constructible_v<fp8rt::Context> &&
                std::is_nothrow_move_constructible_v<fp8rt::Context>);
  static_assert(!std::is_copy_constructible_v<fp8rt::LinearPlan> &&
                std::is_nothrow_move_assignable_v<fp8rt::LinearPlan>);
  fp8rt::Context first;
  fp8rt_context *handle = first.get();
  const fp8rt::Context second = std::move(first);
  EXPECT_EQ(second.get(), handle);
}

}  // namespace
}  // namespace fp8rt_test
