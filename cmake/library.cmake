# The imported target fp8rt::fp8rt for the build tree, and FP8RT_LIBRARY, the file behind it.

if(FP8RT_LIBRARY)
  get_filename_component(FP8RT_LIBRARY "${FP8RT_LIBRARY}" ABSOLUTE BASE_DIR "${CMAKE_BINARY_DIR}")
else()
  set(target_dir "${FP8RT_SOURCE_DIR}/target")
  set(features)
  if(FP8RT_CUDA)
    set(target_dir "${FP8RT_SOURCE_DIR}/target/cuda")
    set(features --features cuda,cutlass)
  endif()
  set(FP8RT_LIBRARY "${target_dir}/release/libfp8rt.so")
  find_program(FP8RT_CARGO cargo HINTS "$ENV{HOME}/.cargo/bin" REQUIRED)
  add_custom_target(fp8rt_cargo ALL
    COMMAND ${CMAKE_COMMAND} -E env ${FP8RT_CARGO_ENVIRONMENT} -- ${FP8RT_CARGO} build --release --locked --lib
      ${features} --target-dir "${target_dir}"
    BYPRODUCTS "${FP8RT_LIBRARY}"
    WORKING_DIRECTORY "${FP8RT_SOURCE_DIR}"
    USES_TERMINAL
    COMMENT "cargo build --release"
    VERBATIM)
endif()

# Programs ask the loader for the SONAME, cargo names the file without the version.
set(FP8RT_RUNTIME_DIR "${CMAKE_BINARY_DIR}/lib")
file(MAKE_DIRECTORY "${FP8RT_RUNTIME_DIR}")
file(CREATE_LINK "${FP8RT_LIBRARY}" "${FP8RT_RUNTIME_DIR}/libfp8rt.so.0" SYMBOLIC)
file(CREATE_LINK "${FP8RT_LIBRARY}" "${FP8RT_RUNTIME_DIR}/libfp8rt.so" SYMBOLIC)
set(CMAKE_BUILD_RPATH "${FP8RT_RUNTIME_DIR}")

add_library(fp8rt_shared SHARED IMPORTED GLOBAL)
set_target_properties(fp8rt_shared PROPERTIES
  IMPORTED_LOCATION "${FP8RT_LIBRARY}"
  IMPORTED_SONAME libfp8rt.so.0
  SYSTEM OFF
  INTERFACE_INCLUDE_DIRECTORIES "${FP8RT_SOURCE_DIR}/include")
if(TARGET fp8rt_cargo)
  add_dependencies(fp8rt_shared fp8rt_cargo)
endif()
add_library(fp8rt::fp8rt ALIAS fp8rt_shared)
