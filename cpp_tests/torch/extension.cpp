// Somebody's own torch extension that links libfp8rt.so, through fp8rt_torch.hpp.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <map>
#include <memory>
#include <mutex>

#include "fp8rt_torch.hpp"
#include "fp8rt_torch.hpp"  // may come twice

namespace {

// One context a device.
const fp8rt::Context &context(const at::Tensor &tensor) {
  static std::mutex mutex;
  static std::map<std::int32_t, std::unique_ptr<fp8rt::Context>> contexts;
  const std::lock_guard<std::mutex> lock(mutex);
  auto &context = contexts[fp8rt::device_number(tensor)];
  if (context == nullptr) {
    fp8rt_context_desc desc = fp8rt::context_desc();
    desc.device = fp8rt::device_number(tensor);
    context = std::make_unique<fp8rt::Context>(desc);
  }
  return *context;
}

at::Tensor linear(const at::Tensor &x, const at::Tensor &codes, const at::Tensor &scales) {
  fp8rt_linear_desc desc = fp8rt::linear_desc();
  desc.max_m = x.size(0), desc.n = codes.size(0), desc.k = codes.size(1);
  desc.input_dtype = desc.output_dtype = fp8rt::dtype_number(x);
  const fp8rt::LinearPlan plan(context(x), desc);

  at::Tensor y = at::empty({x.size(0), codes.size(0)}, x.options());
  const fp8rt::Workspace space(x, plan.workspace(x.size(0)));
  const fp8rt_tensor input = fp8rt::tensor(x), weight = fp8rt::tensor(codes), factors = fp8rt::tensor(scales),
                     output = fp8rt::tensor(y);
  fp8rt::torch_check(fp8rt_linear(plan.get(), &input, &weight, &factors, nullptr, &output, space.address(),
                                  space.bytes(), fp8rt::current_stream(x)));
  return y;
}

void quantize_weight(const at::Tensor &weight, const at::Tensor &codes, const at::Tensor &scales) {
  const fp8rt_tensor source = fp8rt::tensor(weight), bytes = fp8rt::tensor(codes), factors = fp8rt::tensor(scales);
  fp8rt::torch_check(fp8rt_quantize_weight(context(weight).get(), nullptr, &source, &bytes, &factors, nullptr,
                                           fp8rt::current_stream(weight)));
}

}  // namespace

TORCH_LIBRARY(fp8rt_extension, library) {
  library.def("linear(Tensor x, Tensor codes, Tensor scales) -> Tensor", &linear);
  library.def("quantize_weight(Tensor weight, Tensor(a!) codes, Tensor(b!) scales) -> ()", &quantize_weight);
}
