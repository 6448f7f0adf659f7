#!/usr/bin/env bash
# install_and_use.sh BUILD WORK CMAKE GENERATOR MAKE_PROGRAM CC CXX: installs, moves the installation, and builds two
# users of it there: one with find_package, one with the flags of fp8rt.pc.
set -euo pipefail
build=$1 work=$2 cmake=$3 generator=$4 make_program=$5 cc=$6 cxx=$7
project=$(cd "$(dirname "$0")" && pwd)/project

rm -rf "$work"
mkdir -p "$work"
"$cmake" --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/moved"
libdir=$(dirname "$(find "$work/moved" -name libfp8rt.so.0)")

expect() { "$@" || { echo "failed: $*"; exit 1; }; }

check_files() {
  expect test -f "$libdir/libfp8rt.so.0" -a ! -L "$libdir/libfp8rt.so.0"
  expect test "$(readlink "$libdir/libfp8rt.so")" = libfp8rt.so.0
  expect test -f "$work/moved/include/fp8rt.h" -a -f "$work/moved/include/fp8rt.hpp" \
    -a -f "$work/moved/include/fp8rt_torch.hpp"
  if grep -rlF "$work" "$work/moved"; then
    echo "these files name the directory that they were installed to"
    exit 1
  fi
}

use_cmake() {
  "$cmake" -G "$generator" -DCMAKE_MAKE_PROGRAM="$make_program" -DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" \
    -DCMAKE_PREFIX_PATH="$work/moved" -S "$project" -B "$work/cmake"
  "$cmake" --build "$work/cmake"
  expect "$work/cmake/consumer_c"
  expect "$work/cmake/consumer_cpp"
}

# What pkg-config prints, read without it where it is not installed.
package_flags() {
  if command -v pkg-config >/dev/null; then
    PKG_CONFIG_PATH="$libdir/pkgconfig" pkg-config --cflags --libs fp8rt
  else
    (
      pcfiledir="$libdir/pkgconfig"
      eval "$(grep -E '^[a-z]+=' "$pcfiledir/fp8rt.pc")"
      eval "echo $(sed -n 's/^\(Cflags\|Libs\): //p' "$pcfiledir/fp8rt.pc" | tr '\n' ' ')"
    )
  fi
}

use_flags() {
  # shellcheck disable=SC2046 # flags are words
  "$cc" "$project/consumer.c" -o "$work/consumer" $(package_flags)
  LD_LIBRARY_PATH="$libdir" expect "$work/consumer"
}

check_files
use_cmake
use_flags
