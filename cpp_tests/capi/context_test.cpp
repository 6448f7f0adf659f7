// Contexts: descriptors, devices, threads, fork, lifetime.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <climits>
#include <cstring>
#include <string>
#include <vector>

#include "calls.hpp"
#include "fp8rt.hpp"
#include "linear_problem.hpp"
#include "random.hpp"

namespace fp8rt_test {
namespace {

constexpr const char *kCreate = "fp8rt_context_create";

// A place for a handle that no call may fill if it fails.
fp8rt_context *const kUnset = reinterpret_cast<fp8rt_context *>(std::uintptr_t{0x10});

::testing::AssertionResult refused(const fp8rt_context_desc *desc, fp8rt_status status,
                                   const std::vector<std::string> &texts) {
  fp8rt_context *context = kUnset;
  const fp8rt_status got = fp8rt_context_create(desc, &context);
  if (context != kUnset) {
    return ::testing::AssertionFailure() << "the handle was written";
  }
  return failed_with(got, status, kCreate, texts);
}

TEST(Context, NoDescriptorMeansTheHost) {
  const fp8rt::Context context;
  std::int32_t device = 7;
  std::uint32_t threads = 0;
  ASSERT_OK(fp8rt_context_query(context.get(), &device, &threads));
  EXPECT_EQ(device, -1);
  EXPECT_GE(threads, 1u);
  EXPECT_OK(fp8rt_context_query(context.get(), nullptr, nullptr));
}

TEST(Context, OwnsAsManyThreadsAsAsked) {
  for (const std::uint32_t wanted : {1u, 2u, 3u}) {
    const fp8rt::Context context = context_with_threads(wanted);
    std::uint32_t threads = 0;
    ASSERT_OK(fp8rt_context_query(context.get(), nullptr, &threads));
    EXPECT_EQ(threads, wanted);
  }
}

TEST(Context, NullPointers) {
  EXPECT_TRUE(failed_with(fp8rt_context_create(nullptr, nullptr), FP8RT_STATUS_NULL_POINTER, kCreate, {"context"}));
  std::int32_t device = 7;
  EXPECT_TRUE(failed_with(fp8rt_context_query(nullptr, &device, nullptr), FP8RT_STATUS_NULL_POINTER,
                          "fp8rt_context_query", {"context"}));
  EXPECT_EQ(device, 7);
  EXPECT_TRUE(failed_with(fp8rt_context_prepare(nullptr, nullptr), FP8RT_STATUS_NULL_POINTER, "fp8rt_context_prepare",
                          {"context"}));
  EXPECT_OK(fp8rt_context_destroy(nullptr));
}

// A descriptor with room for what a newer header may add.
struct Longer {
  fp8rt_context_desc desc;
  std::array<std::uint8_t, 64> tail;
};

TEST(Context, AnOlderCallersShorterDescriptorWorks) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.struct_size = offsetof(fp8rt_context_desc, num_threads);
  desc.num_threads = UINT32_MAX;  // not the caller's: it must not be read
  fp8rt_context *context = nullptr;
  ASSERT_OK(fp8rt_context_create(&desc, &context));
  EXPECT_OK(fp8rt_context_destroy(context));
}

TEST(Context, ANewerCallersLongerDescriptorWorksWhileItsTailIsZero) {
  Longer longer{};
  longer.desc = fp8rt::context_desc();
  longer.desc.struct_size = sizeof longer;
  fp8rt_context *context = nullptr;
  ASSERT_OK(fp8rt_context_create(&longer.desc, &context));
  EXPECT_OK(fp8rt_context_destroy(context));
  for (const std::size_t at : {std::size_t{0}, longer.tail.size() - 1}) {
    longer.tail.fill(0);
    longer.tail[at] = 1;
    const std::string position = std::to_string(sizeof longer.desc + at);
    EXPECT_TRUE(refused(&longer.desc, FP8RT_STATUS_STRUCT_SIZE, {position, std::to_string(sizeof longer.desc)}));
  }
}

TEST(Context, ImpossibleSizesOfTheDescriptorAreRefused) {
  for (const std::uint32_t size : {0u, 1u, 3u, 4097u, UINT32_MAX}) {
    fp8rt_context_desc desc = fp8rt::context_desc();
    desc.struct_size = size;
    EXPECT_TRUE(refused(&desc, FP8RT_STATUS_STRUCT_SIZE, {std::to_string(size), std::to_string(sizeof desc)}));
  }
}

TEST(Context, ADeviceIsRefusedByABuildForTheHost) {
  for (const std::int32_t device : {0, 1, INT32_MAX}) {
    fp8rt_context_desc desc = fp8rt::context_desc();
    desc.device = device;
    EXPECT_TRUE(refused(&desc, FP8RT_STATUS_UNSUPPORTED, {"device is " + std::to_string(device), "cuda"}));
  }
}

TEST(Context, ADeviceThatCannotBeIsRefused) {
  for (const std::int32_t device : {-2, INT32_MIN}) {
    fp8rt_context_desc desc = fp8rt::context_desc();
    desc.device = device;
    EXPECT_TRUE(refused(&desc, FP8RT_STATUS_INVALID_ARGUMENT, {std::to_string(device), "-1"}));
  }
}

TEST(Context, FlagsAreReserved) {
  for (const std::uint32_t flags : {1u, 0x80000000u, UINT32_MAX}) {
    fp8rt_context_desc desc = fp8rt::context_desc();
    desc.flags = flags;
    EXPECT_TRUE(refused(&desc, FP8RT_STATUS_INVALID_ARGUMENT, {"flags"}));
  }
}

TEST(Context, AnAbsurdNumberOfThreadsIsRefused) {
  fp8rt_context_desc desc = fp8rt::context_desc();
  desc.num_threads = UINT32_MAX;
  EXPECT_TRUE(refused(&desc, FP8RT_STATUS_INVALID_ARGUMENT, {"num_threads", "4294967295"}));
}

TEST(Context, AMisalignedDescriptorIsRefused) {
  alignas(8) std::array<std::uint8_t, 64> memory{};
  const fp8rt_context_desc desc = fp8rt::context_desc();
  std::memcpy(memory.data() + 1, &desc, sizeof desc);
  const void *odd = memory.data() + 1;
  EXPECT_TRUE(refused(static_cast<const fp8rt_context_desc *>(odd), FP8RT_STATUS_ALIGNMENT, {"desc", "4"}));
}

TEST(Context, AnUnknownInstructionSetIsRefused) {
  const Environment environment("FP8RT_CPU_ISA", "mmx");
  EXPECT_TRUE(refused(nullptr, FP8RT_STATUS_INVALID_ARGUMENT, {"FP8RT_CPU_ISA", "mmx"}));
}

TEST(Context, PrepareStartsTheThreadsAndTakesNoStream) {
  const fp8rt::Context context = context_with_threads(2);
  EXPECT_OK(fp8rt_context_prepare(context.get(), nullptr));
  int stream = 0;
  EXPECT_TRUE(failed_with(fp8rt_context_prepare(context.get(), &stream), FP8RT_STATUS_INVALID_ARGUMENT,
                          "fp8rt_context_prepare", {"stream"}));
}

// True if the context quantizes as it should. Big enough for more than one task.
bool works(const fp8rt::Context &context, std::uint32_t seed) {
  Random random(seed);
  const Rule rule;
  Matrix weight(FP8RT_DTYPE_BF16, {600, 520});
  random.fill_normal(weight, 1.0f);
  Matrix codes(FP8RT_DTYPE_E4M3, weight.extents()), scales = make_scales(rule, weight.extents());
  Matrix want_codes = codes, want_scales = scales;
  oracle_quantize(rule, weight, want_codes, want_scales);
  return quantize(context, rule, weight, codes, scales) == FP8RT_STATUS_OK && same_bytes(codes, want_codes) &&
         same_bytes(scales, want_scales);
}

// Runs `work` in a child and says whether it returned true there.
template <typename Work>
bool in_child(Work work) {
  const pid_t child = fork();
  if (child == 0) {
    _exit(work() ? 0 : 1);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(Fork, AChildGoesOnWithTheContextOfItsParent) {
  const fp8rt::Context context = context_with_threads(3);
  ASSERT_TRUE(works(context, 1));
  EXPECT_TRUE(in_child([&] { return works(context, 2) && works(context, 3); }));
  EXPECT_TRUE(works(context, 4));
}

TEST(Fork, AChildMayDestroyItsCopy) {
  fp8rt_context *context = nullptr;
  ASSERT_OK(fp8rt_context_create(nullptr, &context));
  ASSERT_OK(fp8rt_context_prepare(context, nullptr));
  EXPECT_TRUE(in_child([&] { return fp8rt_context_destroy(context) == FP8RT_STATUS_OK; }));
  EXPECT_OK(fp8rt_context_destroy(context));
}

TEST(Fork, AGrandchildWorksToo) {
  const fp8rt::Context context = context_with_threads(2);
  ASSERT_TRUE(works(context, 5));
  EXPECT_TRUE(in_child([&] { return works(context, 6) && in_child([&] { return works(context, 7); }); }));
}

TEST(Context, MayGoBeforeItsPlans) {
  LinearProblem problem({5, 192, 320});
  auto context = std::make_unique<fp8rt::Context>();
  const fp8rt::LinearPlan plan(*context, problem.desc());
  context.reset();
  EXPECT_EQ(plan.query().max_m, 5);
  EXPECT_NE(plan.describe().find("cpu"), std::string::npos);
  ASSERT_OK(problem.run(plan, problem.x, problem.y));
  EXPECT_TRUE(within_bounds(problem.y, problem.exact()));
}

}  // namespace
}  // namespace fp8rt_test
