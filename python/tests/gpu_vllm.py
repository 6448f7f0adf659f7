#!/usr/bin/env python3
"""Runs vLLM with the plugin on GPUs: generates, refits in buckets, and compares with fresh starts and other precisions.

    gpu_vllm.py [--tp N] [--layers N] [--phases WORD,...] [--minutes N] [--out FOLDER] [--device cpu]

`FP8RT_LIBRARY` names the library where the plugin's wheel is not installed. The model is a Llama of random weights with
the shapes of an 8B one and few layers. Every phase is a process with empty caches of its own, and a limit of time: one
that fails or is ended leaves what it has, and the others go on. `--minutes` is for all of it. A table comes last; a
comparison that does not hold, or that could not be made, fails the run. Logs and results are in FOLDER.

    phase    engines                                                     limit
    write    the checkpoints                                              120 s
    eager    ours: dummy weights and two refits; a fresh start; codes     240 s
             and scales from disk
    bf16     eager; compiled with CUDA graphs                             180 s
    graphs   ours, compiled: dummy weights and two refits; a fresh start  240 s
    stock    vLLM's own FP8 with DeepGEMM, eager and compiled             420 s

Minutes on an H100: not known for this form. An earlier one took 45 s for a first engine in a process, 0.4 s for a
second one, 10.6 s if it compiles; vLLM's own FP8 compiled kernels for 34 s in a generation. So with one GPU first
`--phases eager,bf16,graphs`, and in another call `--phases stock` with the same FOLDER, whose results it compares with.
With --device cpu (vLLM for the CPU, a tiny model, no stock phase) it takes 2.5 minutes of two busy cores, and 7 with
two ranks.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import engines
import gpu_compare
import scripts

LIMITS = {"write": 120, "eager": 240, "bf16": 180, "graphs": 240, "stock": 420}
# A machine without a GPU that runs other things too.
SLOWER = 3
KERNEL_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "DG_JIT_CACHE_DIR", "CUDA_CACHE_PATH")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--phases")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--out")
    options = parser.parse_args()
    phases = (options.phases or "eager,bf16,graphs" + ",stock" * (options.device == "cuda")).split(",")
    if unknown := [phase for phase in phases if phase not in LIMITS]:
        parser.error(f"--phases {','.join(unknown)}: known are {','.join(LIMITS)}")
    if options.out:
        run(options, phases, pathlib.Path(options.out))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(options, phases, pathlib.Path(folder))


def run(options: argparse.Namespace, phases: list[str], out: pathlib.Path) -> None:
    """The checkpoints are no result: they lie elsewhere."""
    end = time.monotonic() + 60 * options.minutes
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        engines.prepare(options.device, pathlib.Path(scratch))
        failures = []
        for phase in ["write", *phases]:
            failed = start(phase, options, pathlib.Path(scratch), out, end - time.monotonic())
            failures += [f"{phase}: {failed}"] if failed else []
    results = gpu_compare.read(out, ["write", *LIMITS])
    failures += gpu_compare.compare(results, phases, options.layers)
    for line in [*gpu_compare.table(results), *gpu_compare.speed(results)]:
        print(line)
    for failure in failures:
        print("FAILED:", failure)
    print("gpu_vllm:", "failed" if failures else "passed", flush=True)
    sys.exit(bool(failures))


def start(phase: str, options: argparse.Namespace, scratch: pathlib.Path, out: pathlib.Path, left: float) -> str:
    """Runs a phase; says what went wrong, if anything did."""
    limit = min(LIMITS[phase] * (SLOWER if options.device == "cpu" else 1), left)
    caches = {name: str(scratch / "caches" / phase / name) for name in KERNEL_CACHES}
    # What is compared with runs as if there were no plugin.
    plugins = {"VLLM_PLUGINS": "none"} if phase in ("bf16", "stock") else {}
    command = [sys.executable, str(pathlib.Path(__file__).with_name("gpu_phases.py")), phase]
    command += ["--folder", str(scratch), "--device", options.device]
    command += ["--tp", str(options.tp), "--layers", str(options.layers)]
    failed = scripts.run_process(phase, command, limit, out / f"{phase}.log", caches | plugins)
    result = scratch / f"{phase}.json"
    if result.exists():
        (out / result.name).write_bytes(result.read_bytes())
    return failed


if __name__ == "__main__":
    main()
