#!/usr/bin/env bash
# check_dynamic.sh LIBRARY: SONAME, that it is never unmapped, and that it needs only what every Linux system has.
set -euo pipefail
dynamic=$(readelf -dW "$1")
allowed='^(libc|libm|libgcc_s|libpthread|libdl|librt|ld-linux-[a-z0-9_-]+)\.so\.[0-9]+$'

failed=0
if ! grep -q 'SONAME.*\[libfp8rt\.so\.0\]' <<<"$dynamic"; then
  echo "the SONAME is not libfp8rt.so.0"
  failed=1
fi
if ! grep -q 'FLAGS_1.*NODELETE' <<<"$dynamic"; then
  echo "the library lacks NODELETE: its threads would outlive a dlclose"
  failed=1
fi
if grep -qE 'RPATH|RUNPATH|TEXTREL' <<<"$dynamic"; then
  echo "the library has a search path or text relocations"
  failed=1
fi
if sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' <<<"$dynamic" | grep -vE "$allowed"; then
  echo "the library needs more than the C library"
  failed=1
fi
exit "$failed"
