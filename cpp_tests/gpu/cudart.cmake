# What the programs for a GPU machine share: the CUDA runtime, linked statically, and one directory for all of them.
include_guard(GLOBAL)

set(FP8RT_CUDA_ROOT "${FP8RT_SOURCE_DIR}/.tools/cuda/nvidia/cu13" CACHE PATH "CUDA toolkit: bin, include, lib")
set(FP8RT_GPU_DIR "${CMAKE_BINARY_DIR}/gpu" CACHE INTERNAL "Where the programs for a GPU machine lie")
set(FP8RT_CUDA_ARCHITECTURE sm_90a CACHE STRING "What the kernels of the GPU benches are compiled for")

find_library(FP8RT_CUDART cudart_static HINTS "${FP8RT_CUDA_ROOT}/lib" "${FP8RT_CUDA_ROOT}/lib64" REQUIRED
  NO_DEFAULT_PATH)
find_package(Threads REQUIRED)

add_library(fp8rt_cudart INTERFACE)
target_include_directories(fp8rt_cudart SYSTEM INTERFACE "${FP8RT_CUDA_ROOT}/include")
target_link_libraries(fp8rt_cudart INTERFACE "${FP8RT_CUDART}" Threads::Threads ${CMAKE_DL_LIBS} rt)

# Whether the library has the fused producers.
file(STRINGS "${FP8RT_SOURCE_DIR}/include/fp8rt.h" fused REGEX "fp8rt_silu_and_mul\\(")
set(FP8RT_FUSED "${fused}" CACHE INTERNAL "Declaration of a fused producer; empty: there are none")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${FP8RT_SOURCE_DIR}/include/fp8rt.h")

# The programs find the library beside them, here and wherever they are copied to.
file(MAKE_DIRECTORY "${FP8RT_GPU_DIR}")
file(CREATE_LINK "${FP8RT_LIBRARY}" "${FP8RT_GPU_DIR}/libfp8rt.so.0" SYMBOLIC)

function(fp8rt_add_gpu_program name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE fp8rt::fp8rt fp8rt_cudart)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${FP8RT_GPU_DIR}"
    BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN")
endfunction()
