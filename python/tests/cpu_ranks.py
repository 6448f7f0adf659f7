#!/usr/bin/env python3
"""Runs engines of two ranks on the CPU, with a vLLM that is built for it, and has one rank fail.

    cpu_ranks.py [CASE...]

Cases: last (a rank fails in the last bucket of a refit, so the other one has all of it), step (what a step of the
engine does then), removed (one worker does not find the plugin's package), filtered (one was told not to load it). Each
is a process with a limit of time. Run by hand: "removed" waits for minutes, until vLLM ends the other worker.
"""

import json
import os
import pathlib
import sys
import tempfile
import time

import engines
import scripts
from engines import ask, plugin

# Seconds that a case may take.
CASES = {"last": 300, "step": 240, "removed": 900, "filtered": 240}
CONFIG = engines.SMALL
EXTENSION, PLAIN = "cpu_ranks.Extension", "fp8rt_vllm.worker.WorkerExtension"
# What of a case's log is printed.
SAID = ("asked: ", "a step: ", "start: ", "after ")
# Runs in every process before its main module; in a case that has a treatment the first worker alone gets it.
TREATED = """
import os, sys
if "TREATMENT" in os.environ and "spawn_main" in " ".join(sys.orig_argv):
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
    if sys.argv[1:2] == ["--engine"]:
        CHECKS[sys.argv[2]](pathlib.Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        engines.prepare("cpu", folder)
        (folder / "installed/sitecustomize.py").write_text(TREATED)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        failed = [case for case in sys.argv[1:] or CASES if not run(case, folder)]
    print("FAILED: " + ", ".join(failed) if failed else "all held")
    sys.exit(bool(failed))


def run(case: str, folder: pathlib.Path) -> bool:
    """A case in a process of its own, with all that it starts."""
    environment, log = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"}, folder / f"{case}.log"
    if case in ("removed", "filtered"):
        environment |= {"FIRST_WORKER": str(folder / f"first_{case}"), "TREATMENT": case}
    command = [sys.executable, __file__, "--engine", case, str(folder)]
    failed = scripts.run_process(case, command, CASES[case], log, environment)
    for line in log.read_text().splitlines():
        if line.startswith(SAID):
            print("   ", line, flush=True)
    return not failed


def engine(folder: pathlib.Path, **arguments):
    return engines.small_engine(
        folder, seed=0, load_format="dummy", tensor_parallel_size=2, **plugin(CONFIG), **arguments
    )


def tokens(llm) -> list[list[int]]:
    return engines.generate(llm, CONFIG["vocab_size"])["tokens"]


class Extension(engines.Extension):
    def refit(self, version: int, failing: int = -1) -> str:
        """On the failing rank, the last bucket brings one tensor too short. What was raised: as an answer, since vLLM's
        executor does not read the other ranks' answers after an error of rank 0, and takes them for those of the next
        call.
        """
        import torch
        from vllm.distributed.parallel_state import get_world_group

        import fp8rt_vllm

        found = list(engines.weights(CONFIG, version))
        first, last = found[:8], found[8:]
        fails = torch.distributed.get_rank() == failing
        try:
            fp8rt_vllm.load_weights(first, self.model_runner)
            if fails:
                # The other one has all of it by now.
                torch.distributed.barrier(get_world_group().cpu_group)
                name, weight = last[-1]
                last[-1] = (name, weight[:-1])
            fp8rt_vllm.load_weights(last, self.model_runner)
        except ValueError as error:
            return str(error)
        if failing >= 0:
            torch.distributed.barrier(get_world_group().cpu_group)
        self.pack_again()
        return ""


def check_last(folder: pathlib.Path) -> None:
    import fp8rt_vllm

    llm = engine(folder, worker_extension_cls=EXTENSION)
    for version in (1, 2):
        assert ask(llm, "refit", version) == ["", ""]
        fp8rt_vllm.check(llm)
    expected, prints = tokens(llm), fp8rt_vllm.fingerprint(llm)["total"]
    for failing in (1, 0):
        answers = ask(llm, "refit", 1, failing)
        assert "has shape" in answers[failing] and not answers[1 - failing], answers
        print("asked:", must_say(lambda: fp8rt_vllm.check(llm), "nothing is generated until"))
        answers = ask(llm, "fp8rt_check")
        assert ": a bucket failed: V" in answers[failing], answers
        assert f": rank {failing}: a bucket failed: V" in answers[1 - failing], answers
        assert ask(llm, "refit", 2) == ["", ""]
        fp8rt_vllm.check(llm)
        assert [one["items"] for one in fp8rt_vllm.receipts(llm)] == [len(engines.shapes(CONFIG))] * 2
        assert fp8rt_vllm.fingerprint(llm)["total"] == prints
        assert tokens(llm) == expected


def check_step(folder: pathlib.Path) -> None:
    """The rank that computes the logits of the engine refuses, whichever failed."""
    llm = engine(folder, worker_extension_cls=EXTENSION)
    ask(llm, "refit", 1)
    tokens(llm)
    assert "has shape" in ask(llm, "refit", 2, 1)[1]
    print("a step:", must_say(lambda: tokens(llm), "rank 1: a bucket failed"))


def check_removed(folder: pathlib.Path) -> None:
    begin = time.monotonic()
    print("start:", must_say(lambda: engine(folder, worker_extension_cls=PLAIN), "WorkerProc initialization failed"))
    assert pathlib.Path(os.environ["FIRST_WORKER"]).exists()
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
