# The CUDA toolkit: that of CUDA_HOME, as in build.rs, or the one that `make gpu-tools` installs.

set(default_root "${FP8RT_SOURCE_DIR}/.tools/cuda/nvidia/cu13")
set(FP8RT_CUDA_ROOT "${default_root}" CACHE PATH "CUDA toolkit: bin, include, lib")
if(DEFINED ENV{CUDA_HOME} AND FP8RT_CUDA_ROOT STREQUAL default_root)
  set_property(CACHE FP8RT_CUDA_ROOT PROPERTY VALUE "$ENV{CUDA_HOME}")
endif()
set(FP8RT_CUDA_INCLUDE "${FP8RT_CUDA_ROOT}/include" CACHE PATH "Directory that holds cuda.h")

if(NOT EXISTS "${FP8RT_CUDA_ROOT}/bin/nvcc")
  message(FATAL_ERROR "no ${FP8RT_CUDA_ROOT}/bin/nvcc: `make gpu-tools` installs it, FP8RT_CUDA_ROOT names another one")
endif()

# cargo compiles the kernels again when CUDA_HOME changes, so for the default it is unset, as `make gpu` has it.
if(FP8RT_CUDA_ROOT STREQUAL default_root)
  set(FP8RT_CARGO_ENVIRONMENT --unset=CUDA_HOME)
else()
  set(FP8RT_CARGO_ENVIRONMENT "CUDA_HOME=${FP8RT_CUDA_ROOT}")
endif()
