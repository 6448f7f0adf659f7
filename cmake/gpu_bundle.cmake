# The target gpu_bundle: build/gpu-bundle of the source tree, all that a machine with a GPU needs. It is copied there
# as it is, so that neither a compiler nor a toolkit is needed on it.

set(bundle "${FP8RT_SOURCE_DIR}/build/gpu-bundle")
set(programs)
foreach(directory cpp_tests/gpu benches/gpu)
  get_property(targets DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(type ${target} TYPE)
    if(type STREQUAL EXECUTABLE)
      list(APPEND programs ${target})
    endif()
  endforeach()
endforeach()
if(TARGET refit_model)
  list(APPEND programs refit_model)
endif()
set(files cpp_tests/gpu/run_on_gpu.sh cpp_tests/peers/fp8rt_ctypes.py benches/gpu/linear_shapes.txt)
file(GLOB scripts CONFIGURE_DEPENDS RELATIVE "${FP8RT_SOURCE_DIR}" benches/gpu/*.py cpp_tests/torch/*.py)
list(TRANSFORM programs REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE program_files)

add_custom_target(gpu_bundle
  COMMAND ${CMAKE_COMMAND} -E rm -rf "${bundle}"
  COMMAND ${CMAKE_COMMAND} -E make_directory "${bundle}"
  COMMAND ${CMAKE_COMMAND} -E copy ${program_files} ${files} ${scripts} "${bundle}"
  COMMAND ${CMAKE_STRIP} -o "${bundle}/libfp8rt.so.0" "${FP8RT_LIBRARY}"
  WORKING_DIRECTORY "${FP8RT_SOURCE_DIR}"
  DEPENDS ${programs}
  COMMENT "build/gpu-bundle"
  COMMAND_EXPAND_LISTS
  VERBATIM)
if(TARGET fp8rt_cargo)
  add_dependencies(gpu_bundle fp8rt_cargo)
endif()
