// The fake driver itself: that it refuses what a real one refuses, so that the other tests mean something.

#include "caller.hpp"

namespace fp8rt_test {
namespace {

TEST(FakeDriver, NeedsACurrentContext) {
  primary(0);
  CUdeviceptr pointer = 0;
  CUstream stream = nullptr;
  EXPECT_EQ(cuMemAlloc(&pointer, 16), CUDA_ERROR_INVALID_CONTEXT);
  EXPECT_EQ(cuStreamCreate(&stream, 0), CUDA_ERROR_INVALID_CONTEXT);
  EXPECT_EQ(cuCtxPopCurrent(nullptr), CUDA_ERROR_INVALID_CONTEXT);
  const Current current(1);
  CUdevice device = -1;
  EXPECT_EQ(cuCtxGetDevice(&device), CUDA_SUCCESS);
  EXPECT_EQ(device, 1);
}

TEST(FakeDriver, KnowsItsMemory) {
  const Memory memory(1, 1000), pinned(-1, 100);
  int ordinal = -1;
  unsigned int type = 0;
  EXPECT_EQ(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, memory.address() + 999), CUDA_SUCCESS);
  EXPECT_EQ(ordinal, 1);
  EXPECT_EQ(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pinned.address()), CUDA_SUCCESS);
  EXPECT_EQ(type, static_cast<unsigned int>(CU_MEMORYTYPE_HOST));
  EXPECT_EQ(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, memory.address() + 1000),
            CUDA_ERROR_INVALID_VALUE);
}

TEST(FakeDriver, CopiesWithinBounds) {
  const Memory memory(0, 8);
  const Current current(0);
  const std::uint64_t sent = 0x0123456789ABCDEF;
  std::uint64_t received = 0;
  EXPECT_EQ(cuMemcpyHtoD(memory.address(), &sent, 8), CUDA_SUCCESS);
  EXPECT_EQ(cuMemcpyDtoH(&received, memory.address(), 8), CUDA_SUCCESS);
  EXPECT_EQ(received, sent);
  EXPECT_EQ(cuMemcpyHtoD(memory.address() + 1, &sent, 8), CUDA_ERROR_INVALID_VALUE);
}

TEST(FakeDriver, DeviceMemoryFaultsOnTheHost) {
  const Memory memory(0, 64);
  EXPECT_DEATH(*static_cast<volatile char *>(memory.data()) = 1, "");
}

TEST(FakeDriver, RefusesDuringCapture) {
  const Stream stream(0);
  const Current current(0);
  CUdeviceptr pointer = 0;
  fake_cuda_reset();
  {
    const Capture capture(stream);
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    EXPECT_EQ(cuStreamIsCapturing(stream.get(), &status), CUDA_SUCCESS);
    EXPECT_EQ(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
    EXPECT_EQ(cuMemAlloc(&pointer, 16), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    EXPECT_EQ(cuStreamSynchronize(stream.get()), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    EXPECT_EQ(cuStreamIsCapturing(nullptr, &status), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
    EXPECT_EQ(cuThreadExchangeStreamCaptureMode(&mode), CUDA_SUCCESS);
    EXPECT_EQ(mode, CU_STREAM_CAPTURE_MODE_GLOBAL);
    EXPECT_EQ(cuMemAlloc(&pointer, 16), CUDA_SUCCESS);
    EXPECT_EQ(cuMemFree(pointer), CUDA_SUCCESS);
    EXPECT_EQ(cuThreadExchangeStreamCaptureMode(&mode), CUDA_SUCCESS);
  }
  EXPECT_EQ(fake_cuda_violations(), 2u);
  EXPECT_EQ(cuStreamSynchronize(stream.get()), CUDA_SUCCESS);
}

TEST(FakeDriver, RefusesStreamsOfAnotherDevice) {
  const Stream stream(1);
  const Current current(0);
  fake_cuda_reset();
  EXPECT_EQ(cuStreamSynchronize(stream.get()), CUDA_ERROR_INVALID_HANDLE);
  EXPECT_EQ(fake_cuda_violations(), 1u);
}

TEST(FakeDriver, FailsWhenAsked) {
  const Current current(0);
  fake_cuda_reset();
  fake_cuda_fail("cuMemGetInfo", CUDA_ERROR_UNKNOWN, 1);
  std::size_t free_bytes = 0, bytes = 0;
  EXPECT_EQ(cuMemGetInfo(&free_bytes, &bytes), CUDA_SUCCESS);
  EXPECT_EQ(cuMemGetInfo(&free_bytes, &bytes), CUDA_ERROR_UNKNOWN);
  EXPECT_EQ(fake_cuda_count("cuMemGetInfo"), 2u);
  fake_cuda_reset();
  EXPECT_EQ(cuMemGetInfo(&free_bytes, &bytes), CUDA_SUCCESS);
}

// The parameters are those of the cubin: as long as the struct that the kernel takes.
TEST(FakeDriver, ReadsParametersFromTheCubin) {
  const fp8rt::Context context = gpu_context(0);
  const Stream stream(0);
  const Operands operands(0, kFunctions[1], FP8RT_DTYPE_BF16, 4, 128);
  ASSERT_OK(operands.run(context, stream));
  ASSERT_NE(fake_cuda_last_launch(), nullptr);
  EXPECT_EQ(fake_cuda_last_launch()->parameter_bytes, sizeof(kernels::Arguments<1>));
}

TEST(FakeDriver, FindsItsFunctions) {
  void *function = nullptr;
  EXPECT_EQ(cuGetProcAddress("cuMemAlloc", &function, 13000, 0, nullptr), CUDA_SUCCESS);
  EXPECT_EQ(function, reinterpret_cast<void *>(&cuMemAlloc));
  CUdriverProcAddressQueryResult status = CU_GET_PROC_ADDRESS_SUCCESS;
  EXPECT_EQ(cuGetProcAddress("cuNoSuchThing", &function, 13000, 0, &status), CUDA_SUCCESS);
  EXPECT_EQ(status, CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND);
}

TEST(FakeDriver, WritesTensorMapsThatTestsCanRead) {
  const Memory memory(0, 1 << 20);
  alignas(64) CUtensorMap map;
  const cuuint64_t extents[] = {512, 128}, strides[] = {512};
  const cuuint32_t box[] = {128, 64}, steps[] = {1, 1};
  const auto encode = [&](std::uint64_t address) {
    return cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, reinterpret_cast<void *>(address), extents,
                                  strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  ASSERT_EQ(encode(memory.address()), CUDA_SUCCESS);
  fake_cuda_tensor_map read{};
  std::memcpy(&read, &map, sizeof read);
  EXPECT_EQ(read.address, memory.address());
  EXPECT_EQ(read.extent[1], 128u);
  EXPECT_EQ(read.stride[0], 512u);
  EXPECT_EQ(read.box[1], 64u);
  EXPECT_EQ(read.swizzle, CU_TENSOR_MAP_SWIZZLE_128B);
  EXPECT_EQ(encode(memory.address() + 8), CUDA_ERROR_INVALID_VALUE);
}

}  // namespace
}  // namespace fp8rt_test
