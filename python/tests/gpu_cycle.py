#!/usr/bin/env python3
"""Runs cycles of reinforcement learning in vLLM: sleep, wake the weights, refit in buckets, wake the cache, generate.

    gpu_cycle.py [--cycles N] [--layers N] [--engines WORD,...] [--device cuda|cpu] [--eager] [--minutes N]
                 [--out FILE.json]

`FP8RT_LIBRARY` names the library where the plugin is not installed. Every engine runs in a process of its own, with a
limit of time, on one GPU, with CUDA graphs unless told otherwise: one that fails or is ended leaves what it has, and
the others go on. The model is a Llama of random weights with the shapes of an 8B one and few layers; the trainer's two
versions of them lie on the same GPU. A table comes last; what does not hold, or could not be told, fails the run.

Engines: fresh_1 and fresh_2 load a version from disk, for the tokens that a cycle must give; cycle does what must work
and what must be refused; ours, bf16 and stock (vLLM's own FP8 in blocks, made from bf16 at its reload) are timed alone.
With --device cpu the model is tiny, and nothing sleeps: it shows that the script runs, and what refits refuse. There
vLLM keeps no weights of its own that could be loaded again, so bf16 and stock are left out.
"""

import argparse
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence

import engines
import scripts
from scripts import Results

ENGINES = ("fresh_1", "fresh_2", "cycle", "ours", "bf16", "stock")
# Every so many cycles one sleeps at level 2, and every so many one generates.
LEVEL_2, GENERATES = 20, 10
TIMED = 12
LIMITS = {"write": 90, "fresh_1": 150, "fresh_2": 150, "cycle": 240, "ours": 180, "stock": 240, "bf16": 180}
PHASES = ("sleep", "wake_weights", "refit", "wake_kv_cache", "whole")
GPU = {
    "attention_backend": "TRITON_ATTN",
    "enable_sleep_mode": True,
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": 2 << 30,
    "max_model_len": 2048,
    "max_num_batched_tokens": 2048,
}
# The trainer of this process: its versions, and the buffer that its buckets lie in.
TRAINER: dict = {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--engines")
    parser.add_argument("--eager", action="store_true")
    scripts.add_options(parser)
    options = parser.parse_args()
    if options.engine:
        scripts.one_engine(options, {"write": write, None: run_engine})
    wanted = options.engines or ",".join(ENGINES[: 4 if options.device == "cpu" else None])
    names = scripts.chosen(parser, "--engines", wanted, ENGINES)
    with tempfile.TemporaryDirectory() as name:
        engines.prepare(options.device, pathlib.Path(name))
        results = scripts.run_engines(["write", *names], pathlib.Path(name), LIMITS, options.minutes)
    failures = compare(results, names)
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps({"results": results, "failures": failures}, indent=1))
    table(results)
    scripts.report("gpu_cycle", failures)


def config_of(options: argparse.Namespace) -> dict:
    return (engines.LARGE if options.device == "cuda" else engines.SMALL) | {"num_hidden_layers": options.layers}


def write(options: argparse.Namespace, results: Results) -> None:
    """Both versions in bf16."""
    config = config_of(options)
    for version in (1, 2):
        tensors = {name: weight.cpu() for name, weight in engines.weights(config, version, options.device)}
        engines.write_checkpoint(pathlib.Path(options.folder) / str(version), config, tensors)
    results.note("write")


def run_engine(options: argparse.Namespace, results: Results) -> None:
    name, gpu, config = options.engine, options.device == "cuda", config_of(options)
    arguments = GPU if gpu else {}
    if name == "stock":
        arguments = arguments | {"quantization": "fp8_per_block"}
    elif name != "bf16":
        arguments = arguments | engines.plugin(config)
    folder = pathlib.Path(options.folder) / ("2" if name == "fresh_2" else "1")
    begin = time.time()
    llm = engines.small_engine(folder, enforce_eager=options.eager or not gpu, seed=0, **arguments)
    results.note(name, start_s=time.time() - begin)
    if name.startswith("fresh"):
        results.note(name, tokens=tokens(llm))
        return
    llm.collective_rpc(make_trainer, args=(config, options.device))
    tokens(llm)
    if name == "cycle":
        cycles(llm, options, results)
        refusals(llm, gpu, results)
    else:
        timings(llm, name, gpu, results)


def tokens(llm) -> list[list[int]]:
    """Greedy, of fixed prompts."""
    return engines.generate(llm, llm.llm_engine.model_config.get_vocab_size())["tokens"]


def cycles(llm, options: argparse.Namespace, results: Results) -> None:
    """Versions in turn. Memory is measured before a cycle generates: then what a step left in torch's cache is gone."""
    gpu, measured, generated = options.device == "cuda", [], {}
    for turn in range(1, options.cycles + 1):
        version = 1 + turn % 2
        cycle(llm, "ours", version, gpu, 2 if turn % LEVEL_2 == 0 else 1)
        measured += llm.collective_rpc(measure)
        if turn <= 2 or turn % GENERATES < 2:
            generated.setdefault(str(version), []).append(tokens(llm))
        results.note("cycle", measured=measured, generated=generated)


def cycle(llm, how: str, version: int, gpu: bool, level: int = 1) -> dict[str, float]:
    """Seconds of each phase."""
    steps = {
        "sleep": lambda: gpu and llm.sleep(level),
        "wake_weights": lambda: gpu and llm.wake_up(["weights"]),
        "refit": lambda: llm.collective_rpc(REFITS[how], args=(version,)),
        "wake_kv_cache": lambda: gpu and llm.wake_up(["kv_cache"]),
    }
    taken = {}
    for phase, step in steps.items():
        begin = time.perf_counter()
        step()
        taken[phase] = time.perf_counter() - begin
    return taken | {"whole": sum(taken.values())}


def timings(llm, how: str, gpu: bool, results: Results) -> None:
    """Medians of whole cycles at level 1 and 2, in milliseconds, after two for warmth; and whether tokens repeat."""
    seen = {}
    for level in (1, 2):
        taken = []
        for turn in range(2 + TIMED):
            version = 1 + turn % 2
            taken.append(cycle(llm, how, version, gpu, level))
            if turn >= TIMED:
                seen.setdefault(version, []).append(tokens(llm))
        for phase in PHASES:
            median = sorted(one[phase] for one in taken[2:])[TIMED // 2]
            results.note(how, **{f"{phase}_{level}_ms": median * 1000})
    results.note(
        how,
        repeats=all(one == many[0] for many in seen.values() for one in many),
        versions_differ=seen[1][0] != seen[2][0],
    )


def refusals(llm, gpu: bool, results: Results) -> None:
    """What must be refused, with its words, and the tokens after a full refit each time."""
    import fp8rt_vllm

    said, healed, last = {}, [], tokens(llm)
    if gpu:
        llm.sleep(1)
        said["refit asleep"] = refused(lambda: llm.collective_rpc(refit_ours, args=(1,)))
        said["fingerprint asleep"] = refused(lambda: llm.collective_rpc("fp8rt_fingerprint"))
        llm.wake_up(["weights"])
        llm.wake_up(["kv_cache"])
        # Level 1 keeps the version of the last cycle.
        said["version kept"] = "yes" if tokens(llm) == last else ""
        llm.sleep(2)
        llm.wake_up(["weights"])
        said["generation without weights, asked"] = refused(lambda: fp8rt_vllm.check(llm))
        llm.wake_up(["kv_cache"])
        said["generation without weights"] = refused(lambda: tokens(llm))
        forget(llm)
        llm.collective_rpc(refit_ours, args=(1,))
        healed.append(tokens(llm))
    said["failing bucket"] = refused(lambda: llm.collective_rpc(refit_broken, args=(2,)))
    said["mixed model, asked"] = refused(lambda: fp8rt_vllm.check(llm))
    for turn in range(2):
        said[f"mixed model, {turn}"] = refused(lambda: tokens(llm))
        forget(llm)
    llm.collective_rpc(refit_ours, args=(1,))
    fp8rt_vllm.check(llm)
    healed.append(tokens(llm))
    results.note("cycle", said=said, healed=healed)


def refused(call) -> str:
    """The error's words; empty if there was none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def forget(llm) -> None:
    """Requests whose step was refused are still there."""
    llm.llm_engine.abort_request(list(llm.llm_engine.output_processor.request_states), internal=True)


def make_trainer(worker, config: dict, device: str) -> None:
    """Before memory is measured."""
    import torch

    bucket_bytes = (200 << 20) if device == "cuda" else 100_000
    TRAINER["buffer"] = torch.empty(2 * bucket_bytes, dtype=torch.uint8, device=device)
    for version in (1, 2):
        TRAINER[version] = list(engines.weights(config, version, device))


def buckets(version: int):
    return engines.buckets(TRAINER[version], TRAINER["buffer"])


def end(worker) -> None:
    """Of a refit."""
    worker.pack_again()
    engines.synchronize(worker.device)


def refit_ours(worker, version: int) -> None:
    import fp8rt_vllm

    for bucket in buckets(version):
        fp8rt_vllm.load_weights(bucket, worker.model_runner)
    end(worker)


def refit_broken(worker, version: int) -> None:
    """The second bucket has a tensor of another shape."""
    import fp8rt_vllm

    for index, bucket in enumerate(buckets(version)):
        name, weight = bucket[-1]
        fp8rt_vllm.load_weights([*bucket[:-1], (name, weight[:-1] if index else weight)], worker.model_runner)


def refit_stock(worker, version: int) -> None:
    """vLLM's own reload, from memory that stays: it keeps what it is given until a layer has all of its tensors."""
    worker.reload_weights(weights_iterator=iter(TRAINER[version]))
    end(worker)


def refit_bf16(worker, version: int) -> None:
    import torch

    with torch.no_grad():
        for bucket in buckets(version):
            worker.model_runner.get_model().load_weights(iter(bucket))
    end(worker)


REFITS = {"ours": refit_ours, "stock": refit_stock, "bf16": refit_bf16}


def measure(worker) -> dict:
    """Where the weights are, and how much memory torch and the device hold."""
    import torch

    addresses = json.dumps(worker.addresses(), sort_keys=True)
    found = {"addresses": hashlib.sha256(addresses.encode()).hexdigest()}
    if worker.device.type == "cuda":
        engines.synchronize(worker.device)
        found |= {"reserved": torch.cuda.memory_reserved(), "free": torch.cuda.mem_get_info()[0]}
    return found


def compare(results: dict, names: Sequence[str]) -> list[str]:
    """What does not hold, and what could not be told."""
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    for name in ("ours", "stock", "bf16"):
        for key in ("repeats", "versions_differ"):
            if name in names and results.get(name, {}).get(key) is not True:
                failures.append(f"{name}: {key} is {results.get(name, {}).get(key, 'not there')}")
    failures += [f"{name}: no tokens" for name in names if "fresh" in name and "tokens" not in results.get(name, {})]
    if "cycle" not in names:
        return failures
    found = results.get("cycle", {})
    kinds = ("measured", "generated", "said", "healed")
    failures += [f"cycle: {key} is not there" for key in kinds if key not in found]
    failures += changes(found.get("measured", []))
    generated = found.get("generated", {})
    for version, many in generated.items():
        expected = results.get(f"fresh_{version}", {}).get("tokens", many[0])
        wrong = [turn for turn, one in enumerate(many) if one != expected]
        if wrong:
            failures.append(f"cycle: tokens of version {version} are not a fresh start's in generations {wrong[:8]}")
    expected = results.get("fresh_1", {}).get("tokens") or generated.get("1", [None])[0]
    failures += [f"healed {turn}: other tokens" for turn, one in enumerate(found.get("healed", [])) if one != expected]
    return failures + [f"not refused: {what}" for what, words in found.get("said", {}).items() if not words]


def changes(measured: list[dict]) -> list[str]:
    """From the second cycle on; the first lays out what stays."""
    failures = []
    for key in measured[0] if measured else ():
        values = [one[key] for one in measured]
        if len(set(values[1:])) > 1:
            when = [turn + 1 for turn in range(2, len(values)) if values[turn] != values[turn - 1]]
            failures.append(f"cycle: {key} changes in cycles {when[:8]}: {values[:4]} ... {values[-2:]}")
    return failures


def table(results: dict) -> None:
    """Whole cycles, one row an engine and level; and what was said."""
    print(f"{'engine':10}{'level':>6}" + "".join(f"{phase + ' ms':>18}" for phase in PHASES))
    for name in ("ours", "stock", "bf16"):
        result = results.get(name, {})
        for level in (1, 2):
            if f"whole_{level}_ms" in result:
                cells = "".join(f"{result[f'{phase}_{level}_ms']:18.2f}" for phase in PHASES)
                print(f"{name:10}{level:6}{cells}")
    found = results.get("cycle", {})
    for measured in found.get("measured", [])[:3] + found.get("measured", [])[-1:]:
        print("memory:", json.dumps(measured))
    for what, words in found.get("said", {}).items():
        print(f"{what}: {words[:300]}")


if __name__ == "__main__":
    main()
