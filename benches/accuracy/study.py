#!/usr/bin/env python3
"""How far the log-probabilities of an engine in FP8 are from those of bf16, as reinforcement learning measures it.

    study.py --out FOLDER [--device cuda|cpu] [--size small|tiny] [--seconds N] [--prompts N] [--tokens N]
             [--parallel N] [--limit N] [--only NAME ...]

Trains a small Llama on the bytes of the Python standard library, samples from it at temperature 1 in every engine and
setting of settings.py, scores the same tokens in bf16 by prompt log-probabilities, and prints NeMo-RL's metrics (see
metrics.py), a line as each setting is scored. FOLDER/result.json is for plot.py. Needs vLLM 0.25.1, and FP8RT_LIBRARY
where the plugin is not installed; ends within --limit seconds. Fails if an engine does, or a comparison does not hold.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import metrics
import settings

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parents[1] / "python"), str(HERE.parents[1] / "python/tests")]
import engines  # noqa: E402

# Functions of engine.py are sent to the workers.
ENVIRONMENT = {
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
# Kept at the end for scoring what was sampled.
SCORING_S = 30
# Ours may be this many times as far from 1 as the best of the peers in FP8.
ALLOWED = 1.02
# A wrong scale of one tensor must be this many times as far from 1 as ours.
CONTROL = 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", default="small")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--limit", type=float, default=570)
    parser.add_argument("--only", nargs="*", help="names of engines")
    options = parser.parse_args()
    study = Study(options)
    study.train()
    study.run_engines()
    sys.exit(study.report())


class Study:
    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.out.resolve()
        self.end = time.monotonic() + options.limit
        self.failures: list[str] = []
        self.results: dict[str, dict] = {}
        self.engines = [one for one in settings.ENGINES if not options.only or one.name in options.only]
        for one in [one for one in self.engines if one.needs_gpu and options.device != "cuda"]:
            print(f"LEFT OUT, needs a GPU: {one.name}", flush=True)
            self.engines.remove(one)
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        engines.prepare(options.device, self.folder / "scratch")
        self.environment = os.environ | ENVIRONMENT
        for kind in ("samples", "scores", "logs"):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            for old in (self.folder / kind).iterdir():
                old.unlink()

    def train(self) -> None:
        o = self.options
        command = [sys.executable, HERE / "train.py", self.folder / "model", "--device", o.device, "--size", o.size]
        command += ["--seconds", str(o.seconds), "--prompts", str(o.prompts)]
        subprocess.run(list(map(str, command)), check=True, env=self.environment, timeout=self.left())

    def left(self) -> float:
        return max(1.0, self.end - time.monotonic())

    def start(self, engine: settings.Engine) -> subprocess.Popen:
        o = self.options
        command = [sys.executable, HERE / "engine.py", "--engine", engine.name, "--folder", self.folder]
        command += ["--device", o.device, "--tokens", o.tokens]
        name = engine.name.replace(" ", "_")
        # DeepGEMM's cache of compiled kernels is not made for processes that start at once.
        environment = self.environment | engine.environment | {"DG_JIT_CACHE_DIR": str(self.folder / "jit" / name)}
        with (self.folder / f"logs/{name}.txt").open("w") as log:
            return subprocess.Popen(list(map(str, command)), env=environment, stdout=log, stderr=log)

    def run_engines(self) -> None:
        """Some side by side; the one in bf16 scores meanwhile what comes."""
        waiting, running = list(self.engines), {}
        scorer = self.start(settings.FLOOR)
        try:
            while (waiting or running) and self.left() > SCORING_S and scorer.poll() is None:
                while waiting and len(running) < self.options.parallel:
                    engine = waiting.pop(0)
                    running[engine.name] = self.start(engine)
                for name in [name for name, process in running.items() if process.poll() is not None]:
                    self.ended(name, running.pop(name))
                self.show_scores()
                time.sleep(0.5)
            (self.folder / "samples/END").touch()
            with contextlib.suppress(subprocess.TimeoutExpired):
                scorer.wait(self.left())
            self.ended(settings.FLOOR.name, scorer)
            self.failures += [f"{one.name}: no time was left" for one in waiting]
        finally:
            for name, process in [*running.items(), (settings.FLOOR.name, scorer)]:
                if process.poll() is None:
                    process.kill()
                    self.failures.append(f"{name}: stopped")
                elif name in running:
                    self.ended(name, process)
        self.show_scores()

    def ended(self, name: str, process: subprocess.Popen) -> None:
        log = (self.folder / "logs" / f"{name.replace(' ', '_')}.txt").read_text()
        for line in log.splitlines():
            if ": started in" in line or ": sampled in" in line:
                print(line, flush=True)
        if process.returncode:
            self.failures.append(f"{name}: exit status {process.returncode}")
            print(f"=== the log of {name} ends\n{log[-3000:]}", flush=True)

    def show_scores(self) -> None:
        for path in sorted((self.folder / "scores").glob("*.json")):
            scores = json.loads(path.read_text()) if path.stem not in self.results else None
            if scores is None:
                continue
            try:
                result = metrics.metrics(scores["logprobs"], scores["scored"])
            except ValueError as error:
                self.failures.append(f"{scores['name']}: {error}")
                result = None
            self.results[path.stem] = {"name": scores["name"], "group": scores["group"], "metrics": result}
            if result is not None:
                print(line(scores["name"], result), flush=True)

    def report(self) -> int:
        """The table, the checks and result.json; the exit status."""
        scored = [one for one in self.results.values() if one["metrics"]]
        found = {one["name"]: {"group": one["group"]} | one["metrics"] for one in scored}
        names = [setting.name for one in (settings.FLOOR, *self.engines) for setting in one.settings]
        found = {name: found[name] for name in names if name in found}
        self.failures += [f"{name}: no result" for name in names if name not in found]
        checks = compared(found)
        self.failures += [text for text, holds in checks if holds is False]
        result = {
            "vllm": version("vllm"),
            "torch": version("torch"),
            "device": device() if self.options.device == "cuda" else "cpu",
            "options": {name: str(value) for name, value in vars(self.options).items() if name != "out"},
            "training": json.loads((self.folder / "model/training.json").read_text()),
            "results": found,
            "checks": checks,
            "failures": self.failures,
        }
        (self.folder / "result.json").write_text(json.dumps(result, indent=1))
        print(heading(), *(line(name, one) for name, one in found.items()), sep="\n")
        for text, holds in checks:
            print({True: "holds: ", False: "DOES NOT HOLD: ", None: "not compared: "}[holds] + text)
        for failure in self.failures:
            print("FAILED:", failure)
        print(json.dumps(result))
        return int(bool(self.failures))


def compared(found: dict[str, dict]) -> list[tuple[str, bool | None]]:
    """What must hold; None where one side is missing."""
    floor, ours = found.get(settings.FLOOR.settings[0].name), found.get(settings.DEFAULT)
    control = next((one for one in found.values() if one["group"] == "control"), None)
    peers = {name: one for name, one in found.items() if one["group"] == "peer"}
    checks = []
    if ours and peers:
        best = min(peers, key=lambda name: peers[name]["token_mult_prob_error"])
        value, error = metrics.ratio(ours, peers[best])
        text = f"ours is {value:.3f} (standard error {error:.3f}) times as far from 1 as {best}, allowed {ALLOWED}"
        checks.append((text, value <= ALLOWED))
    else:
        checks.append(("ours with the best peer in FP8", None))
    for name, one, other, factor in (
        (f"{settings.DEFAULT} is farther from 1 than bf16 on itself", ours, floor, 1),
        (f"a doubled scale is {CONTROL} times as far from 1 as {settings.DEFAULT}", control, ours, CONTROL),
    ):
        checks.append((name, metrics.ratio(one, other)[0] > factor if one and other else None))
    return checks


def heading() -> str:
    return f"{'setting':44}{'token_mult_prob_error':>24}{'gen_kl_error':>14}{'worst':>9}{'above 1.1':>11}{'tokens':>9}"


def line(name: str, result: dict) -> str:
    first = f"{result['token_mult_prob_error']:.6f} +- {result['standard_error']:.6f}"
    rest = f"{result['gen_kl_error']:14.3e}{result['worst_difference']:9.4f}{result['share_above_1.1']:11.5f}"
    return f"{name:44}{first:>24}{rest}{result['tokens']:9}"


def version(package: str) -> str:
    import importlib.metadata

    for name in (package, f"{package}-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"


def device() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return "unknown"


if __name__ == "__main__":
    main()
