// S9: operands and outputs of more than 2^31 elements. Rows repeat a period; the last ones are of their own, and lie
// where 32 bits do not reach.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "linear.hpp"

namespace fp8rt_test {
namespace {

constexpr std::int64_t kPeriod = 8192, kTail = 128;

// A packed matrix in device memory of many rows: those of a matrix of kPeriod + kTail rows, the first kPeriod of them
// again and again, the last kTail at the end.
class ManyRows {
 public:
  ManyRows(const Matrix &matrix, std::int64_t rows)
      : view_(matrix.tensor()),
        row_bytes_(static_cast<std::size_t>(matrix.columns()) * element_bytes(matrix.dtype())),
        buffer_(static_cast<std::size_t>(rows) * row_bytes_) {
    view_.data = buffer_.data();
    view_.device = kDevice;
    view_.shape[0] = rows;
    view_.bytes = buffer_.bytes();
    const std::size_t period = (static_cast<std::size_t>(matrix.rows()) - tail_of(matrix)) * row_bytes_;
    buffer_.upload(matrix.data(), period);
    const std::size_t tail = tail_of(matrix) * row_bytes_, end = buffer_.bytes() - tail;
    for (std::size_t at = period; at < end; at += period) {
      CUDA(cudaMemcpy(buffer_.data() + at, buffer_.data(), std::min(period, end - at), cudaMemcpyDeviceToDevice));
    }
    buffer_.upload(matrix.data() + period, tail, end);
  }

  const fp8rt_tensor &tensor() const { return view_; }

 private:
  // Rows of elements, or of blocks of 128 of them.
  static std::size_t tail_of(const Matrix &matrix) { return matrix.rows() > kPeriod ? kTail : 1; }

  fp8rt_tensor view_;
  std::size_t row_bytes_;
  DeviceBuffer buffer_;
};

// A packed y, poisoned, with guards.
class FarOutput {
 public:
  FarOutput(std::uint32_t dtype, std::int64_t rows, std::int64_t columns)
      : view_(fp8rt::tensor(nullptr, static_cast<fp8rt_dtype>(dtype), {rows, columns})),
        buffer_(static_cast<std::size_t>(view_.bytes) + 2 * kGuardBytes) {
    view_.data = buffer_.data() + kGuardBytes;
    view_.device = kDevice;
    poison();
  }

  const fp8rt_tensor &tensor() const { return view_; }
  // NaN in the elements; the guards keep their own.
  void poison() {
    buffer_.fill(0xFF);
    const std::vector<std::uint8_t> guard(kGuardBytes, kPoison);
    buffer_.upload(guard.data(), guard.size());
    buffer_.upload(guard.data(), guard.size(), buffer_.bytes() - kGuardBytes);
  }
  // A window of it.
  Matrix window(std::int64_t row, std::int64_t column, std::int64_t rows, std::int64_t columns) const {
    Matrix result(view_.dtype, {rows, columns});
    const std::size_t element = element_bytes(view_.dtype), length = static_cast<std::size_t>(columns) * element;
    const auto pitch = static_cast<std::size_t>(view_.shape[1]) * element;
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy2D(result.data(), length,
                      buffer_.data() + kGuardBytes + static_cast<std::size_t>(row) * pitch +
                          static_cast<std::size_t>(column) * element,
                      pitch, length, static_cast<std::size_t>(rows), cudaMemcpyDeviceToHost));
    return result;
  }
  ::testing::AssertionResult guards() const {
    std::vector<std::uint8_t> guard(kGuardBytes);
    for (const std::size_t at : {std::size_t{0}, buffer_.bytes() - kGuardBytes}) {
      buffer_.download(guard.data(), guard.size(), at);
      if (guard != std::vector<std::uint8_t>(kGuardBytes, kPoison)) {
        return ::testing::AssertionFailure() << "a guard of y was written";
      }
    }
    return ::testing::AssertionSuccess();
  }

 private:
  fp8rt_tensor view_;
  DeviceBuffer buffer_;
};

// A far problem: views, and by how much it is larger than the one that it repeats.
struct Far {
  Far(const LinearProblem &problem_, std::int64_t m, std::int64_t n)
      : problem(problem_),
        x(problem_.x, m),
        weight(problem_.weight, n),
        weight_scales(problem_.weight_scales, ceil_div(n, 128)),
        y(problem_.shape.output_dtype, m, n) {}

  fp8rt_linear_desc desc() const {
    fp8rt_linear_desc desc = problem.desc();
    desc.max_m = x.tensor().shape[0];
    desc.n = weight.tensor().shape[0];
    desc.output_stride = 0;
    return desc;
  }
  fp8rt_status run(const fp8rt::LinearPlan &plan) const {
    const DeviceBuffer workspace(static_cast<std::size_t>(plan.workspace(x.tensor().shape[0])));
    const Stream stream;
    const fp8rt_status status = fp8rt_linear(plan.get(), &x.tensor(), &weight.tensor(), &weight_scales.tensor(),
                                             nullptr, &y.tensor(), workspace.data(), workspace.bytes(), stream.get());
    stream.synchronize();
    return status;
  }

  const LinearProblem &problem;
  ManyRows x, weight, weight_scales;
  FarOutput y;
};

// Runs each backend that takes it; `check(y)` looks at windows of y.
template <typename Check>
void by_all(Far &far, Check check) {
  for (const Backend &backend : kBackends) {
    fp8rt_linear_desc desc = far.desc();
    desc.backends = backend.bit;
    fp8rt_linear_plan *handle = nullptr;
    const fp8rt_status status = fp8rt_linear_plan_create(gpu().get(), &desc, &handle);
    fp8rt_linear_plan_destroy(handle);
    if (status != FP8RT_STATUS_OK) {
      const std::string reason = reason_of(backend, fp8rt_last_error());
      EXPECT_TRUE(status == FP8RT_STATUS_UNSUPPORTED && !must_take(backend, far.problem.shape)) << fp8rt_last_error();
      answers_of_program.refused(backend, reason);
      continue;
    }
    const fp8rt::LinearPlan plan(gpu(), desc);
    answers_of_program.took(backend);
    SCOPED_TRACE(plan.describe());
    far.y.poison();
    ASSERT_OK(far.run(plan));
    EXPECT_TRUE(far.y.guards());
    check(far.y);
  }
}

TEST(Far, S9ManyRowsOfX) {
  constexpr std::int64_t kRows = 524416, kN = 128, kK = 4096;
  static_assert(kRows * kK > std::int64_t{1} << 31 && kRows % kPeriod == kTail, "the far end lies beyond 32 bits");
  const LinearProblem problem = make_problem({kPeriod + kTail, kN, kK});
  const Reference want = reference_of(problem);
  Far far(problem, kRows, kN);
  by_all(far, [&](const FarOutput &y) {
    EXPECT_TRUE(is_close(y.window(0, 0, kPeriod, kN), want, kPeriod));
    EXPECT_TRUE(is_close(y.window(kRows - kTail - kPeriod, 0, kPeriod + kTail, kN), want, kPeriod + kTail));
  });
}

TEST(Far, ManyElementsOfY) {
  constexpr std::int64_t kRows = 262272, kN = kPeriod + kTail, kK = 128;
  static_assert(kRows * kN > std::int64_t{1} << 31 && kRows % kPeriod == kTail, "the far end lies beyond 32 bits");
  const LinearProblem problem = make_problem({kPeriod + kTail, kN, kK});
  const Reference want = reference_of(problem);
  Far far(problem, kRows, kN);
  by_all(far, [&](const FarOutput &y) {
    EXPECT_TRUE(is_close(y.window(0, 0, 512, kN), want, 512));
    EXPECT_TRUE(is_close(y.window(kRows - 512, 0, 512, kN), want, 512, kPeriod + kTail - 512));
  });
}

TEST(Far, S9ManyRowsOfTheWeight) {
  constexpr std::int64_t kRows = 8, kN = 524416, kK = 4096;
  static_assert(kN * kK > std::int64_t{1} << 31 && kN % kPeriod == kTail, "the far end lies beyond 32 bits");
  const LinearProblem problem = make_problem({kRows, kPeriod + kTail, kK});
  const Reference want = reference_of(problem);
  Far far(problem, kRows, kN);
  by_all(far, [&](const FarOutput &y) {
    EXPECT_TRUE(is_close(y.window(0, 0, kRows, kPeriod), want, kRows));
    EXPECT_TRUE(is_close(y.window(0, kN - kTail - kPeriod, kRows, kPeriod + kTail), want, kRows));
  });
}

}  // namespace
}  // namespace fp8rt_test
