#!/usr/bin/env bash
# check_exports.sh LIBRARY HEADER: what the library exports, what the header declares and exports.txt are one list.
# check_exports.sh LIBRARY HEADER --write: makes it what the library exports.
set -euo pipefail
library=$1 header=$2
exports=$(cd "$(dirname "$0")" && pwd)/exports.txt
export LC_ALL=C

exported() { nm -D --defined-only "$library" | awk '{print $3}' | sort; }
declared() { grep -vE '^ *//' "$header" | grep -oE '\bfp8rt_[a-z0-9_]+\(' | tr -d '(' | sort -u; }

if [ "${3:-}" = --write ]; then
  exported >"$exports"
fi
failed=0
diff --label exports.txt --label "$library" -u "$exports" <(exported) || failed=1
diff --label exports.txt --label "$header" -u "$exports" <(declared) || failed=1
if grep -v '^fp8rt_' "$exports"; then
  echo "an exported name must begin with fp8rt_"
  failed=1
fi
exit "$failed"
