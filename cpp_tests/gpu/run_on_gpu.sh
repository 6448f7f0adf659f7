#!/usr/bin/env bash
# Runs the GPU tests and benches of a bundle: run_on_gpu.sh LOGS [tests] [torch] [sanitizer] [bench] [compare=PEERS_DIR]
#
# A bundle is one directory that holds libfp8rt.so, the programs gpu_* and bench_*, the Python scripts and this
# script. Without a word after LOGS: tests. Logs go to LOGS, the summary to the screen, last. FP8RT_TEST_SEED repeats a
# run; GPU_TESTS names some of the programs ("gpu_small gpu_far"), GTEST_FILTER some of their tests. TEST_SECONDS is the
# limit of a program, by default 420.
set -uo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly LOGS=${1:?usage: run_on_gpu.sh LOGS [tests] [torch] [sanitizer] [bench] [compare=PEERS_DIR]}
shift
mkdir -p "$LOGS" || exit 1
readonly SECONDS_EACH=${TEST_SECONDS:-420}
# Programs that watch the device's free memory or its speed run alone; the others beside each other.
readonly BESIDE="gpu_small gpu_weights gpu_activations gpu_values gpu_fused gpu_small_fused gpu_fingerprint gpu_far gpu_checked \
gpu_two_devices gpu_linear gpu_linear_small gpu_linear_shapes gpu_linear_tiles gpu_linear_parts \
gpu_linear_isolation gpu_linear_streams gpu_linear_invariance gpu_linear_errors gpu_linear_checked \
gpu_linear_far gpu_linear_two_devices gpu_refit_two_devices"
readonly ALONE="gpu_graphs gpu_refit gpu_refit_plan gpu_linear_graphs"
SUMMARY=()
FAILED=0

# Cargo names the file without the version, programs ask for the name with it.
[ -e "$ROOT/libfp8rt.so.0" ] || ln -s libfp8rt.so "$ROOT/libfp8rt.so.0" || exit 1
export LD_LIBRARY_PATH="$ROOT${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export FP8RT_LIBRARY="$ROOT/libfp8rt.so.0"

# note NAME EXIT_CODE SECONDS: a line of the summary.
note() {
  local verdict=FAILED
  case $2 in
    0) verdict=passed ;;
    77) verdict=SKIPPED ;;
    124) verdict="FAILED (over the limit)" ;;
  esac
  case $verdict in FAILED*) FAILED=1 ;; esac
  SUMMARY+=("$(printf '%-24s %s, %s s' "$1" "$verdict" "$3")")
}

# timed NAME COMMAND...: runs it into NAME.log and leaves its exit code and its seconds in NAME.exit.
timed() {
  local name=$1 begin=$SECONDS code
  shift
  timeout "$SECONDS_EACH" "$@" >"$LOGS/$name.log" 2>&1
  code=$?
  echo "$code $((SECONDS - begin))" >"$LOGS/$name.exit"
}

# What matters of a test's log: its failures, and its last lines.
excerpt() {
  echo "--- $1"
  grep -E -A 6 ': Failure$|^\[  FAILED|skipped:|C\+\+ exception' "$LOGS/$1.log" | head -n 40
  tail -n 3 "$LOGS/$1.log"
}

# Whether a program is in the bundle and among those that GPU_TESTS names.
wanted() { [ -x "$ROOT/$1" ] && { [ -z "${GPU_TESTS:-}" ] || [[ " $GPU_TESTS " == *" $1 "* ]]; }; }

collect() {
  local name code seconds
  for name in "$@"; do
    read -r code seconds <"$LOGS/$name.exit"
    rm -f "$LOGS/$name.exit"
    note "$name" "$code" "$seconds"
    excerpt "$name"
  done
}

run_tests() {
  local name beside=() alone=()
  for name in $BESIDE; do wanted "$name" && beside+=("$name"); done
  for name in $ALONE; do wanted "$name" && alone+=("$name"); done
  for name in "${beside[@]}"; do timed "$name" "$ROOT/$name" --gtest_brief=1 & done
  wait
  for name in "${alone[@]}"; do timed "$name" "$ROOT/$name" --gtest_brief=1; done
  collect "${beside[@]}" "${alone[@]}"
}

run_sanitizer() {
  local program tool name
  if ! command -v compute-sanitizer >/dev/null; then
    SUMMARY+=("sanitizer                SKIPPED: no compute-sanitizer")
    return
  fi
  for program in gpu_small gpu_small_fused gpu_linear_small; do
    [ -x "$ROOT/$program" ] || continue
    for tool in memcheck racecheck initcheck synccheck; do
      name=${tool}_$program
      timed "$name" compute-sanitizer --tool "$tool" --error-exitcode 1 "$ROOT/$program" --gtest_brief=1
      collect "$name"
      grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|========= (Invalid|Uninit|Error|Warning)' "$LOGS/$name.log" | head -n 10
    done
  done
}

run_bench() {
  local name
  for name in bench_quantize bench_refit bench_fingerprint bench_fused; do
    [ -x "$ROOT/$name" ] || continue
    timed "$name" "$ROOT/$name"
    cat "$LOGS/$name.log"
    collect "$name"
  done
}

# The ops of torch, with the torch of this machine: on the GPU, and the tests that need none. PYTHON names a Python.
run_torch() {
  local name
  for name in registration numbers errors threads load_order compile; do
    timed "torch_$name" "${PYTHON:-python3}" "$ROOT/${name}_test.py"
    collect "torch_$name"
  done
  timed gpu_ops "${PYTHON:-python3}" -u "$ROOT/gpu_ops.py"
  cat "$LOGS/gpu_ops.log"
  collect gpu_ops
}

run_compare() {
  timed compare_peers python3 -u "$ROOT/compare_peers.py" "$1"
  cat "$LOGS/compare_peers.log"
  collect compare_peers
}

for word in "${@:-tests}"; do
  case $word in
    tests) run_tests ;;
    torch) run_torch ;;
    sanitizer) run_sanitizer ;;
    bench) run_bench ;;
    compare=*) run_compare "${word#compare=}" ;;
    *)
      echo "unknown: $word" >&2
      exit 2
      ;;
  esac
done

printf '%s\n' "--- summary" "${SUMMARY[@]}" | tee "$LOGS/summary.txt"
exit "$FAILED"
