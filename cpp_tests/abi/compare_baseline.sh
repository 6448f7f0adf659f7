#!/usr/bin/env bash
# compare_baseline.sh LIBRARY: fails if a program built against the baseline would break, because a function is gone
# or a struct or a parameter changed. What is added is allowed. LIBRARY is built with `cargo build --profile abi`.
# compare_baseline.sh LIBRARY --write: makes LIBRARY the baseline.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Paths of the machine that built it, and the empty units of other crates, say nothing about the interface.
abidw --suppressions "$here/private.suppr" --no-corpus-path --no-comp-dir-path --no-show-locs --no-elf-needed \
  --no-write-default-sizes --out-file "$work/raw" "$1"
sed -E "/<abi-instr/ s| path='[^']*'| path='fp8rt'|" "$work/raw" |
  sed -z "s|  <abi-instr[^>]*>\n  </abi-instr>\n||g" >"$work/fp8rt.abi"

if [ "${2:-}" = --write ]; then
  cp "$work/fp8rt.abi" "$here/fp8rt.abi"
else
  abidiff --suppressions "$here/private.suppr" --no-added-syms --no-show-locs "$here/fp8rt.abi" "$work/fp8rt.abi"
fi
