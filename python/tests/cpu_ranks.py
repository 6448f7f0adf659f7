#!/usr/bin/env python3
"""Runs engines of two ranks on the CPU, with a vLLM that is built for it, and has one rank fail.

    cpu_ranks.py [CASE...]

Cases: last (a rank fails in the last bucket of a refit, so the other one has all of it), step (what a step of the
engine does then), removed (one worker does not find the plugin's package), filtered (one was told not to load it).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import gpu_cycle
import gpu_vllm as base

CASES = ("last", "step", "removed", "filtered")
LAYERS = 2
# Runs in every process before its main module; the first worker alone is treated.
TREATED = """
import os, sys
if "spawn_main" in " ".join(sys.orig_argv):
    try:
        os.close(os.open(os.environ["FIRST_WORKER"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        if os.environ["TREATMENT"] == "filtered":
            os.environ["VLLM_PLUGINS"] = "another"
        else:
            sys.modules["fp8rt_vllm"] = None
"""


def main() -> None:
    base.CONFIG.update(gpu_cycle.TINY)
    base.BUCKET_BYTES = gpu_cycle.TINY_BUCKET_BYTES
    os.environ.update(base.ENVIRONMENT, VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
    if sys.argv[1:2] == ["--engine"]:
        CHECKS[sys.argv[2]](pathlib.Path(sys.argv[3]))
        return
    failed = [case for case in sys.argv[1:] or CASES if not run(case)]
    print("FAILED: " + ", ".join(failed) if failed else "all held")
    sys.exit(bool(failed))


def run(case: str) -> bool:
    """A case in a process of its own, with all that it starts."""
    print(f"=== {case}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, environment = pathlib.Path(name), {}
        (folder / "config.json").write_text(json.dumps(base.CONFIG | {"num_hidden_layers": LAYERS}))
        base.make_installed(folder)
        if case in ("removed", "filtered"):
            (folder / "sitecustomize.py").write_text(TREATED)
            environment = {"FIRST_WORKER": str(folder / "first"), "TREATMENT": case}
        command = [sys.executable, __file__, "--engine", case, name]
        return subprocess.run(command, env=os.environ | environment).returncode == 0


def engine(folder: pathlib.Path):
    from vllm import LLM

    arguments = base.plugin_arguments(LAYERS)
    extension = "fp8rt_vllm.worker.WorkerExtension"
    return LLM(model=str(folder), skip_tokenizer_init=True, enforce_eager=True, max_model_len=256, seed=0,
               load_format="dummy", tensor_parallel_size=2, worker_extension_cls=extension, **arguments)  # fmt: skip


def refit(worker, version: int, failing: int = -1) -> str:
    """On the failing rank, the last bucket brings one tensor too short. What was raised: as an answer, since vLLM's
    executor does not read the other ranks' answers after an error of rank 0, and takes them for those of the next call.
    """
    import torch

    import fp8rt_vllm

    # The worker is a process of its own.
    base.CONFIG.update(gpu_cycle.TINY)
    found = list(base.weights(LAYERS, version, "cpu"))
    for bucket in (found[:8], found[8:]):
        if bucket[0][0] != found[0][0] and torch.distributed.get_rank() == failing:
            name, weight = bucket[-1]
            bucket[-1] = (name, weight[:-1])
        try:
            fp8rt_vllm.load_weights(bucket, worker.model_runner)
        except ValueError as error:
            return str(error)
    return ""


def check_last(folder: pathlib.Path) -> None:
    import fp8rt_vllm

    llm = engine(folder)
    for version in (1, 2):
        assert llm.collective_rpc(refit, args=(version,)) == ["", ""]
        fp8rt_vllm.check(llm)
    expected, prints = gpu_cycle.tokens(llm), fp8rt_vllm.fingerprint(llm)["total"]
    for failing in (1, 0):
        answers = llm.collective_rpc(refit, args=(1, failing))
        assert "has shape" in answers[failing] and not answers[1 - failing], answers
        print("asked:", must_say(lambda: fp8rt_vllm.check(llm), "nothing is generated until"))
        answers = llm.collective_rpc("fp8rt_check")
        assert ": a bucket failed: V" in answers[failing], answers
        assert f": rank {failing}: a bucket failed: V" in answers[1 - failing], answers
        assert llm.collective_rpc(refit, args=(2,)) == ["", ""]
        fp8rt_vllm.check(llm)
        assert [one["items"] for one in fp8rt_vllm.receipts(llm)] == [len(base.names_and_shapes(LAYERS))] * 2
        assert fp8rt_vllm.fingerprint(llm)["total"] == prints
        assert gpu_cycle.tokens(llm) == expected


def check_step(folder: pathlib.Path) -> None:
    """The rank that computes the logits of the engine refuses, whichever failed."""
    llm = engine(folder)
    llm.collective_rpc(refit, args=(1,))
    gpu_cycle.tokens(llm)
    assert "has shape" in llm.collective_rpc(refit, args=(2, 1))[1]
    print("a step:", must_say(lambda: gpu_cycle.tokens(llm), "rank 1: a bucket failed"))


def check_removed(folder: pathlib.Path) -> None:
    begin = time.monotonic()
    print("start:", must_say(lambda: engine(folder), "WorkerProc initialization failed"))
    assert (folder / "first").exists()
    print(f"after {time.monotonic() - begin:.0f} s")


def must_say(call, words: str) -> str:
    """The error of the call, which has these words."""
    try:
        call()
    except Exception as error:
        assert words in str(error), f"{words!r} is not in {type(error).__name__}: {error}"
        return f"{type(error).__name__}: {error}"[:400]
    raise AssertionError(f"no error with {words!r}")


CHECKS = {"last": check_last, "step": check_step, "removed": check_removed, "filtered": check_removed}

if __name__ == "__main__":
    main()
