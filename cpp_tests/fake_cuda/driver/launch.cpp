// Launches: checked against the limits of the device and the function, and remembered with their parameters.

#include <cstring>

#include "recording.hpp"

using namespace fake_cuda;

namespace {

std::uint64_t product(const std::uint32_t (&extents)[3]) {
  return std::uint64_t{extents[0]} * extents[1] * extents[2];
}

// A copy, because the module may be gone when a test looks.
const char *remember(const std::string &name) {
  std::uint8_t *room = parameter_room(name.size() + 1);
  std::memcpy(room, name.c_str(), name.size() + 1);
  return reinterpret_cast<const char *>(room);
}

void describe(fake_cuda_launch &launch, const CUlaunchConfig &config, const Function &function) {
  launch.kernel = remember(function.kernel.name);
  const std::uint32_t grid[3] = {config.gridDimX, config.gridDimY, config.gridDimZ};
  const std::uint32_t block[3] = {config.blockDimX, config.blockDimY, config.blockDimZ};
  std::memcpy(launch.grid, grid, sizeof grid);
  std::memcpy(launch.block, block, sizeof block);
  launch.cluster[0] = launch.cluster[1] = launch.cluster[2] = 1;
  launch.shared_bytes = config.sharedMemBytes;
  launch.stream = config.hStream;
  launch.num_attributes = config.numAttrs;
  launch.device = current()->device;
  for (unsigned int i = 0; i < config.numAttrs; ++i) {
    const CUlaunchAttribute &attribute = config.attrs[i];
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      launch.cluster[0] = attribute.value.clusterDim.x;
      launch.cluster[1] = attribute.value.clusterDim.y;
      launch.cluster[2] = attribute.value.clusterDim.z;
    }
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
      launch.programmatic = attribute.value.programmaticStreamSerializationAllowed != 0;
    }
  }
}

CUresult check_limits(const fake_cuda_launch &launch, const Function &function) {
  const auto &attributes = state().attributes[static_cast<std::size_t>(launch.device)];
  const std::uint64_t most = function.kernel.max_threads == 0 ? 1024 : function.kernel.max_threads;
  if (product(launch.grid) == 0 || product(launch.block) == 0) return CUDA_ERROR_INVALID_VALUE;
  if (launch.grid[0] > 2147483647u || launch.grid[1] > 65535 || launch.grid[2] > 65535) return CUDA_ERROR_INVALID_VALUE;
  if (product(launch.block) > 1024) return CUDA_ERROR_INVALID_VALUE;
  if (product(launch.block) > most) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  if (launch.shared_bytes > static_cast<std::uint32_t>(function.shared_limit)) return CUDA_ERROR_INVALID_VALUE;
  const bool before_hopper = attributes[CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR] < 9;
  if (before_hopper && (launch.programmatic != 0 || product(launch.cluster) != 1)) return CUDA_ERROR_NOT_SUPPORTED;
  if (product(launch.cluster) == 0 || product(launch.cluster) > 16) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
  for (int axis = 0; axis < 3; ++axis) {
    if (launch.grid[axis] % launch.cluster[axis] != 0) return CUDA_ERROR_INVALID_VALUE;
  }
  return CUDA_SUCCESS;
}

// The buffer of `extra`, NULL if it gives none.
const std::uint8_t *buffer_of(void **extra) {
  for (; extra != nullptr && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) return static_cast<const std::uint8_t *>(extra[1]);
  }
  return nullptr;
}

CUresult copy_parameters(fake_cuda_launch &launch, const Function &function, void **parameters, void **extra) {
  const auto &places = function.kernel.parameters;
  const std::uint8_t *buffer = buffer_of(extra);
  if (places.empty()) return CUDA_SUCCESS;
  if ((parameters == nullptr) == (buffer == nullptr)) return CUDA_ERROR_INVALID_VALUE;
  launch.parameter_bytes = places.back().offset + places.back().bytes;
  std::uint8_t *room = parameter_room(launch.parameter_bytes);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const void *from = buffer == nullptr ? parameters[i] : buffer + places[i].offset;
    std::memcpy(room + places[i].offset, from, places[i].bytes);
  }
  launch.parameters = room;
  return CUDA_SUCCESS;
}

CUresult launch_kernel(fake_cuda_call &call, const CUlaunchConfig &config, CUfunction handle, void **parameters,
                       void **extra) {
  const Function *function = find_function(handle);
  if (function == nullptr || function->module->context != current() || !usable(config.hStream)) {
    call.violation = "a handle of another context, or of none";
    return CUDA_ERROR_INVALID_HANDLE;
  }
  if (is_default_stream(config.hStream) && config.hStream != CU_STREAM_PER_THREAD && any_capture() &&
      !state().default_capturing[0]) {
    call.violation = "the legacy stream is used while another stream is captured";
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  fake_cuda_launch launch{};
  describe(launch, config, *function);
  CUresult result = check_limits(launch, *function);
  if (result == CUDA_SUCCESS) result = copy_parameters(launch, *function, parameters, extra);
  if (result == CUDA_SUCCESS) call.launch = launch;
  return result;
}

}  // namespace

#ifndef FAKE_CUDA_WITHOUT_LAUNCH_KERNEL_EX
CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
  return record(__func__, Needs::kContext, {config, function, parameters, extra}, [&](fake_cuda_call &call) {
    if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
    return launch_kernel(call, *config, function, parameters, extra);
  });
}
#endif

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                        CUstream stream, void **parameters, void **extra) {
  return record(__func__, Needs::kContext, {function, parameters, extra}, [&](fake_cuda_call &call) {
    CUlaunchConfig config{};
    config.gridDimX = grid_x;
    config.gridDimY = grid_y;
    config.gridDimZ = grid_z;
    config.blockDimX = block_x;
    config.blockDimY = block_y;
    config.blockDimZ = block_z;
    config.sharedMemBytes = shared_bytes;
    config.hStream = stream;
    return launch_kernel(call, config, function, parameters, extra);
  });
}
