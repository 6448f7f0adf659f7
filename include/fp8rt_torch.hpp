// fp8rt for people's own torch extensions, C++17: at::Tensor to fp8rt_tensor, torch's current stream, a status to
// torch's exception, and workspace of torch's allocator. Nothing else: the functions of fp8rt.h are called as they are.
//
//   const fp8rt_tensor x = fp8rt::tensor(input), y = fp8rt::tensor(output);
//   const fp8rt_tensor w = fp8rt::tensor(codes), s = fp8rt::tensor(scales);
//   const fp8rt::Workspace space(input, plan.workspace(input.size(0)));
//   fp8rt::torch_check(fp8rt_linear(plan.get(), &x, &w, &s, nullptr, &y, space.address(), space.bytes(),
//                                   fp8rt::current_stream(input)));
//
// This is for an extension that links libfp8rt.so and is built for one torch. The ops that the library registers by
// itself, torch.ops.fp8rt, need no extension and serve every torch.

#ifndef FP8RT_TORCH_HPP
#define FP8RT_TORCH_HPP

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "fp8rt.hpp"

namespace fp8rt {

// Throws torch's exception with what the last call of this thread said, unless it succeeded.
inline void torch_check(fp8rt_status status) { TORCH_CHECK(status == FP8RT_STATUS_OK, fp8rt_last_error()); }

// The device as fp8rt numbers it: -1 for the host, or the CUDA ordinal. For fp8rt_context_desc.device.
inline std::int32_t device_number(const at::Tensor &tensor) {
  TORCH_CHECK(tensor.is_cpu() || tensor.is_cuda(), "fp8rt takes tensors on the CPU or a CUDA device, this one is on ",
              tensor.device());
  return tensor.is_cpu() ? -1 : tensor.get_device();
}

// The dtype as fp8rt numbers it.
inline fp8rt_dtype dtype_number(const at::Tensor &tensor) {
  switch (tensor.scalar_type()) {
    case at::kBFloat16:
      return FP8RT_DTYPE_BF16;
    case at::kHalf:
      return FP8RT_DTYPE_F16;
    case at::kFloat:
      return FP8RT_DTYPE_F32;
    case at::kFloat8_e4m3fn:
      return FP8RT_DTYPE_E4M3;
    case at::kInt:
      return FP8RT_DTYPE_INT32;
    default:
      TORCH_CHECK(false, "fp8rt takes bfloat16, float16, float32, float8_e4m3fn and int32, this tensor is ",
                  tensor.scalar_type());
  }
}

// A view of a tensor of 1 to 3 dimensions, valid while the tensor lives. Its bytes reach to the end of the storage.
inline fp8rt_tensor tensor(const at::Tensor &tensor) {
  TORCH_CHECK(tensor.layout() == at::kStrided, "fp8rt takes strided tensors, this one is ", tensor.layout());
  TORCH_CHECK(tensor.dim() >= 1 && tensor.dim() <= 3, "fp8rt takes tensors of 1 to 3 dimensions, this one has ",
              tensor.dim());
  fp8rt_tensor view{};
  view.dtype = dtype_number(tensor);
  view.device = device_number(tensor);
  view.data = tensor.data_ptr();
  view.rank = static_cast<std::uint32_t>(tensor.dim());
  const auto offset = static_cast<std::size_t>(tensor.storage_offset()) * tensor.element_size();
  view.bytes = tensor.storage().nbytes() - offset;
  for (std::int64_t axis = 0; axis < tensor.dim(); ++axis) {
    view.shape[axis] = tensor.size(axis);
    view.stride[axis] = tensor.stride(axis);
  }
  return view;
}

// Torch's current stream on the tensor's device, as fp8rt takes it: NULL on the host.
inline void *current_stream(const at::Tensor &tensor) {
  if (device_number(tensor) < 0) {
    return nullptr;
  }
  const c10::impl::VirtualGuardImpl device(tensor.device().type());
  return device.getStreamNativeHandle(device.getStream(tensor.device()));
}

// Workspace for one run, aligned, of torch's allocator on the tensor's device. It may be destroyed as soon as the run
// is enqueued on torch's current stream.
class Workspace {
 public:
  Workspace(const at::Tensor &beside, std::uint64_t bytes) : bytes_(bytes) {
    if (bytes == 0) {
      return;
    }
    const auto room = static_cast<std::int64_t>(bytes) + FP8RT_WORKSPACE_ALIGNMENT;
    memory_ = at::empty({room}, beside.options().dtype(at::kByte));
    address_ = memory_.data_ptr();
    auto space = static_cast<std::size_t>(room);
    std::align(FP8RT_WORKSPACE_ALIGNMENT, static_cast<std::size_t>(bytes), address_, space);
  }

  void *address() const noexcept { return address_; }
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  at::Tensor memory_;
  void *address_ = nullptr;
  std::uint64_t bytes_;
};

}  // namespace fp8rt

#endif  // FP8RT_TORCH_HPP
