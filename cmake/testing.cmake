# What the programs of cpp_tests share: warnings, sanitizers, nlohmann/json, googletest, and fp8rt_add_gtest().

add_library(fp8rt_json INTERFACE)
target_include_directories(fp8rt_json SYSTEM INTERFACE "${FP8RT_JSON_INCLUDE}")

# googletest is compiled with the sanitizers, and before the warnings are set.
if(FP8RT_SANITIZE)
  add_compile_options(-fsanitize=${FP8RT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${FP8RT_SANITIZE})
endif()
if(FP8RT_TESTS)
  find_package(Threads REQUIRED)
  add_library(fp8rt_gtest STATIC "${FP8RT_GTEST_DIR}/src/gtest-all.cc" "${FP8RT_GTEST_DIR}/src/gtest_main.cc")
  target_include_directories(fp8rt_gtest SYSTEM PUBLIC "${FP8RT_GTEST_DIR}/include")
  target_include_directories(fp8rt_gtest PRIVATE "${FP8RT_GTEST_DIR}")
  target_link_libraries(fp8rt_gtest PUBLIC Threads::Threads)
endif()
add_compile_options(-Wall -Wextra -Wpedantic -Werror)

# A program of googletest cases, run as one test.
function(fp8rt_add_gtest name)
  add_executable(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE fp8rt::fp8rt fp8rt_gtest)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES ENVIRONMENT "FP8RT_LIBRARY=${FP8RT_LIBRARY}")
endfunction()
