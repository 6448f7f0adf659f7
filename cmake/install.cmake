# `cmake --install`: the library under its SONAME, the headers, fp8rt.pc and the CMake package. Nothing in them names
# the prefix: each finds its files from its own place, so that the tree may be moved.

include(CMakePackageConfigHelpers)

install(FILES "${FP8RT_LIBRARY}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" RENAME libfp8rt.so.0
  PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
# A relative link, made in the build tree because install() copies links as they are.
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/install")
file(CREATE_LINK libfp8rt.so.0 "${CMAKE_BINARY_DIR}/install/libfp8rt.so" SYMBOLIC)
install(FILES "${CMAKE_BINARY_DIR}/install/libfp8rt.so" DESTINATION "${CMAKE_INSTALL_LIBDIR}")

install(FILES "${FP8RT_SOURCE_DIR}/include/fp8rt.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES "${FP8RT_SOURCE_DIR}/include/fp8rt.hpp" "${FP8RT_SOURCE_DIR}/include/fp8rt_torch.hpp"
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES "${FP8RT_SOURCE_DIR}/LICENSE" "${FP8RT_SOURCE_DIR}/NOTICE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/fp8rt")
configure_package_config_file("${FP8RT_SOURCE_DIR}/cmake/fp8rtConfig.cmake.in"
  "${CMAKE_BINARY_DIR}/install/fp8rtConfig.cmake"
  INSTALL_DESTINATION "${package_dir}"
  PATH_VARS CMAKE_INSTALL_INCLUDEDIR CMAKE_INSTALL_LIBDIR
  NO_CHECK_REQUIRED_COMPONENTS_MACRO)
# Before 1.0 the interface may change with the minor version.
write_basic_package_version_file("${CMAKE_BINARY_DIR}/install/fp8rtConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/install/fp8rtConfig.cmake" "${CMAKE_BINARY_DIR}/install/fp8rtConfigVersion.cmake"
  DESTINATION "${package_dir}")

file(RELATIVE_PATH FP8RT_PC_PREFIX "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file("${FP8RT_SOURCE_DIR}/cmake/fp8rt.pc.in" "${CMAKE_BINARY_DIR}/install/fp8rt.pc" @ONLY)
install(FILES "${CMAKE_BINARY_DIR}/install/fp8rt.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
