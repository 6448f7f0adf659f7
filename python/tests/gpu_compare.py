"""What the results of gpu_vllm.py must hold, and its table."""

import json
import pathlib
import statistics

import engines
from gpu_phases import ENGINES

# Of the spread of log-probabilities, for two layers: see engine_test.py.
BOUND = 0.12
# Beside vLLM's own FP8, which rounds alike.
BESIDE_STOCK = 1.25
# Of a small generation whose kernels are not compiled yet, beside bf16.
COLD = 1.3


def read(folder: pathlib.Path, phases: list[str]) -> dict:
    """By engine, from the phases that have results."""
    found = {}
    for phase in phases:
        if (folder / f"{phase}.json").exists():
            found |= json.loads((folder / f"{phase}.json").read_text())
    return found


def compare(results: dict, phases: list[str], layers: int) -> list[str]:
    """What does not hold, and what could not be told."""
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    failures += [f"{name}: did not run" for phase in phases for name in ENGINES[phase] if name not in results]
    for mode in ("eager", "graphs"):
        if mode in phases:
            failures += refits(results, mode)
        # Of an earlier call too, whose results are there.
        if mode in results and "bf16 eager" in results:
            failures += distances(results, mode, layers)
    if "eager" in phases:
        failures += same(results, ("eager serialized", "digests"), ("eager fresh", "digests"))
        failures += same(results, ("eager serialized", "tokens"), ("eager fresh", "tokens"))
    kernels = results.get("stock eager", {}).get("kernels")
    if kernels is not None and not any("DeepGemm" in kernel for kernel in kernels):
        failures.append(f"stock: its kernels are {', '.join(kernels)}, and not DeepGEMM's")
    return failures


def refits(results: dict, mode: str) -> list[str]:
    """Of an engine that began with dummy weights."""
    fresh = f"{mode} fresh"
    failures = same(results, (mode, "digests"), (fresh, "digests"))
    failures += same(results, (mode, "tokens"), (fresh, "tokens"))
    failures += same(results, (mode, "addresses_after"), (mode, "addresses"))
    failures += same(results, (fresh, "reloaded"), (fresh, "digests"))
    if results.get(mode, {}).get("digests_1") == results.get(fresh, {}).get("digests"):
        failures.append(f"{mode}: the first refit changed nothing")
    trainer, found = (results.get(name, {}).get("fingerprints", {}) for name in ("write", mode))
    wrong = [name for name, shards in trainer.items() if found.get(name) != shards]
    if wrong or not trainer:
        failures.append(f"{mode}: fingerprints differ from the trainer's: {first(wrong)}")
    methods = set(results.get(mode, {}).get("methods", {}).values())
    if methods != {"Fp8rtLinearMethod"}:
        failures.append(f"{mode}: linear methods are {sorted(methods)}")
    return failures


def same(results: dict, one: tuple[str, str], other: tuple[str, str]) -> list[str]:
    """Both are there and equal; which tensors differ."""
    values = [results.get(engine, {}).get(key) for engine, key in (one, other)]
    if None in values:
        return [f"{' '.join(one)} beside {' '.join(other)}: not there"]
    if values[0] == values[1]:
        return []
    differ = []
    for rank, (mine, theirs) in enumerate(zip(*values, strict=True)):
        if isinstance(mine, dict):
            differ += [f"{name} in rank {rank}" for name in theirs if mine.get(name) != theirs[name]]
        elif mine != theirs:
            differ.append(f"item {rank}")
    return [f"{' '.join(one)} differ from {' '.join(other)}: {first(differ)}"]


def first(names: list[str]) -> str:
    return f"{', '.join(names[:4])} ({len(names)})"


def distances(results: dict, mode: str, layers: int) -> list[str]:
    """Log-probabilities of the same tokens: of bf16, of ours, of vLLM's own."""
    exact, mine = (results.get(name, {}).get("logprobs") for name in ("bf16 eager", mode))
    if not exact or not mine:
        return [f"{mode}: no log-probabilities beside bf16"]
    bound = BOUND * statistics.stdev(exact) * (layers / 2) ** 0.5
    own = engines.gap(mine, exact)
    failures = [] if 0 < own < bound else [f"{mode}: log-probabilities are {own:.4f} from bf16's, bound {bound:.4f}"]
    stock = results.get("stock eager", {}).get("logprobs")
    if stock and own > BESIDE_STOCK * engines.gap(stock, exact):
        failures.append(f"{mode}: log-probabilities are {own:.4f} from bf16's, vLLM's {engines.gap(stock, exact):.4f}")
    return failures


def table(results: dict) -> list[str]:
    """A row an engine."""
    keys = sorted({key for result in results.values() for key in result if key.endswith("_ms")})
    columns = ["start_s", "cold_s", *keys, "reload_s"]
    exact = results.get("bf16 eager", {}).get("logprobs")
    lines = [f"{'engine':18}" + "".join(f"{key:>17}" for key in columns) + "  log-probabilities from bf16: mean, most"]
    for name, result in results.items():
        cells = "".join(f"{result[key]:17.3f}" if key in result else f"{'-':>17}" for key in columns)
        mine, distance = result.get("logprobs"), "-"
        if mine and exact:
            most = max(abs(a - b) for a, b in zip(mine, exact, strict=True))
            distance = f"{engines.gap(mine, exact):.4f}, {most:.4f}"
        lines.append(f"{name:18}{cells}  {distance}")
    for name in ("eager", "graphs"):
        for key in ("refit_1", "refit_2"):
            for rank, receipt in enumerate(results.get(name, {}).get(key, [])):
                lines.append(
                    f"{name} {key} rank {rank}: {receipt['bytes_read'] / 1e9:.3f} GB in {receipt['buckets']} buckets, "
                    f"enqueued in {receipt['enqueue_s'] * 1000:.1f} ms"
                )
    return lines


def speed(results: dict) -> list[str]:
    """What was asked, and whether it was met. Not a comparison that fails."""
    lines = []
    for mine in ("eager", "graphs"):
        for key in sorted(key for key in results.get(mine, {}) if key.endswith("_ms")):
            ours, theirs = results[mine][key], results.get(f"stock {mine}", {}).get(key)
            if theirs:
                ratio = theirs / ours
                lines.append(f"{mine} {key}: {ratio:.3f} times as fast as vLLM with DeepGEMM{met(ratio >= 1)}")
    ours, bf16, stock = (results.get(name, {}).get("cold_s") for name in ("eager", "bf16 eager", "stock eager"))
    if ours and bf16:
        ratio = ours / bf16
        lines.append(f"generation, cold caches: {ratio:.3f} times bf16, at most {COLD} asked{met(ratio <= COLD)}")
    if stock and bf16:
        lines.append(f"generation, cold caches, vLLM's own FP8: {stock / bf16:.3f} times bf16")
    return lines


def met(holds: bool) -> str:
    return "" if holds else ": NOT MET"
