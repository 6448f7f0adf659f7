#!/usr/bin/env python3
"""Runs cycles of reinforcement learning in vLLM: sleep, wake the weights, refit in buckets, wake the cache, generate.

    gpu_cycle.py [--cycles N] [--layers N] [--engines WORD,...] [--device cuda|cpu] [--eager] [--out FILE.json]

`FP8RT_LIBRARY` names the library where the plugin is not installed. Every engine runs in a process of its own, on one
GPU, with CUDA graphs unless told otherwise. The model is a Llama of random weights with the shapes of an 8B one and few
layers; the trainer's two versions of them lie on the same GPU. A table comes last; what does not hold fails the run.

Engines: fresh_1 and fresh_2 load a version from disk, for the tokens that a cycle must give; cycle does what must work
and what must be refused; ours, bf16 and stock (vLLM's own FP8 in blocks, made from bf16 at its reload) are timed alone.
With --device cpu the model is tiny, and nothing sleeps: it shows that the script runs, and what refits refuse.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import gpu_vllm as base

ENGINES = "fresh_1,fresh_2,cycle,ours,stock,bf16"
# Every so many cycles one sleeps at level 2, and every so many one generates.
LEVEL_2, GENERATES = 20, 10
TIMED = 12
PHASES = ("sleep", "wake_weights", "refit", "wake_kv_cache", "whole")
TINY = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}
TINY_BUCKET_BYTES = 1 << 20
# The trainer of this process: its versions, and the buffer that its buckets lie in.
TRAINER: dict = {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--engine", help="for the processes that this script starts")
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.device == "cpu":
        base.CONFIG.update(TINY)
        base.BUCKET_BYTES = TINY_BUCKET_BYTES
    if options.engine:
        folder = pathlib.Path(options.folder)
        result = write(folder, options) if options.engine == "write" else run_engine(folder, options)
        print(json.dumps(result), flush=True)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, results = pathlib.Path(name), {}
        base.make_installed(folder)
        for engine in ("write", *options.engines.split(",")):
            print(f"=== {engine}", flush=True)
            results[engine] = start(engine, folder, options)
    failures = compare(results)
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps({"results": results, "failures": failures}, indent=1))
    table(results)
    for failure in failures:
        print("FAILED:", failure)
    sys.exit(bool(failures))


def start(engine: str, folder: pathlib.Path, options: argparse.Namespace) -> dict:
    """Runs one engine in a process of its own; its last line is JSON."""
    environment = base.ENVIRONMENT | ({"VLLM_USE_DEEP_GEMM_E8M0": "0"} if engine == "stock" else {})
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1"} if options.device == "cpu" else {}
    command = [sys.executable, __file__, "--engine", engine, "--folder", str(folder), "--device", options.device,
               "--cycles", str(options.cycles), "--layers", str(options.layers)]  # fmt: skip
    command += ["--eager"] if options.eager else []
    ended = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    lines = ended.stdout.splitlines()
    print("\n".join(line for line in lines if not line.startswith("{")), flush=True)
    answers = [line for line in lines if line.startswith("{")]
    if ended.returncode or not answers:
        return {"error": f"exit status {ended.returncode}"}
    return json.loads(answers[-1])


def write(folder: pathlib.Path, options: argparse.Namespace) -> dict:
    """Both versions in bf16."""
    import safetensors.torch

    for version in (1, 2):
        model = folder / str(version)
        model.mkdir()
        (model / "config.json").write_text(json.dumps(base.CONFIG | {"num_hidden_layers": options.layers}))
        tensors = {name: tensor.cpu() for name, tensor in base.weights(options.layers, version, options.device)}
        safetensors.torch.save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return {}


def run_engine(folder: pathlib.Path, options: argparse.Namespace) -> dict:
    name, gpu = options.engine, options.device == "cuda"
    version = 2 if name == "fresh_2" else 1
    arguments = {"enable_sleep_mode": True, "gpu_memory_utilization": 0.5} if gpu else {}
    if gpu:
        arguments["attention_backend"] = "TRITON_ATTN"
    if name == "stock":
        arguments["quantization"] = "fp8_per_block"
    elif name != "bf16":
        arguments |= base.plugin_arguments(options.layers)
        arguments["worker_extension_cls"] = "fp8rt_vllm.worker.WorkerExtension"
    from vllm import LLM

    begin = time.time()
    llm = LLM(
        model=str(folder / str(version)),
        skip_tokenizer_init=True,
        enforce_eager=options.eager or not gpu,
        max_model_len=256 if not gpu else 2048,
        enable_prefix_caching=False,
        seed=0,
        **arguments,
    )
    result = {"start_s": time.time() - begin}
    if name.startswith("fresh"):
        return result | {"tokens": tokens(llm)}
    llm.collective_rpc(make_trainer, args=(options.layers, options.device))
    tokens(llm)
    if name == "cycle":
        result |= cycles(llm, options)
        return result | refusals(llm, gpu, tokens(llm))
    return result | timings(llm, name, gpu)


def tokens(llm) -> list[list[int]]:
    """Greedy, of fixed prompts."""
    from vllm import SamplingParams

    prompts = [
        {"prompt_token_ids": [(7 * i + 13 * j) % (base.CONFIG["vocab_size"] - 10) + 5 for j in range(64)]}
        for i in range(8)
    ]
    settings = SamplingParams(max_tokens=base.TOKENS, temperature=0, ignore_eos=True, detokenize=False)
    return [list(one.outputs[0].token_ids) for one in llm.generate(prompts, settings, use_tqdm=False)]


def cycles(llm, options: argparse.Namespace) -> dict:
    """Versions in turn. Memory is measured before a cycle generates: then what a step left in torch's cache is gone."""
    gpu, measured, generated = options.device == "cuda", [], {}
    for turn in range(1, options.cycles + 1):
        version = 1 + turn % 2
        cycle(llm, "ours", version, gpu, 2 if turn % LEVEL_2 == 0 else 1)
        measured += llm.collective_rpc(measure)
        if turn <= 2 or turn % GENERATES < 2:
            generated.setdefault(str(version), []).append(tokens(llm))
    return {"measured": measured, "generated": generated}


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


def timings(llm, how: str, gpu: bool) -> dict:
    """Medians of whole cycles at level 1 and 2, in milliseconds, after two for warmth; and whether tokens repeat."""
    result, seen = {}, {}
    for level in (1, 2):
        taken = []
        for turn in range(2 + TIMED):
            version = 1 + turn % 2
            taken.append(cycle(llm, how, version, gpu, level))
            if turn >= TIMED:
                seen.setdefault(version, []).append(tokens(llm))
        for phase in PHASES:
            result[f"{phase}_{level}_ms"] = sorted(one[phase] for one in taken[2:])[TIMED // 2] * 1000
    result["repeats"] = all(one == many[0] for many in seen.values() for one in many)
    result["versions_differ"] = seen[1][0] != seen[2][0]
    return result


def refusals(llm, gpu: bool, last: list) -> dict:
    """What must be refused, with its words, and the tokens after a full refit each time."""
    import fp8rt_vllm

    said, healed = {}, []
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
    return {"said": said, "healed": healed}


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


def make_trainer(worker, layers: int, device: str) -> None:
    """Before memory is measured."""
    import torch

    TRAINER["buffer"] = torch.empty(2 * base.BUCKET_BYTES, dtype=torch.uint8, device=device)
    for version in (1, 2):
        TRAINER[version] = list(base.weights(layers, version, device))


def buckets(version: int):
    """In one buffer, which the next bucket overwrites."""
    import torch

    bucket, size = [], 0
    for name, weight in TRAINER[version]:
        if bucket and size + weight.nbytes > base.BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        room = TRAINER["buffer"][size : size + weight.nbytes]
        if room.nbytes == weight.nbytes:
            weight = room.view(torch.bfloat16).view(weight.shape).copy_(weight)
            size += -(-weight.nbytes // 256) * 256
        bucket.append((name, weight))
    yield bucket


def synchronize(worker) -> None:
    import torch

    if worker.device.type == "cuda":
        torch.cuda.synchronize(worker.device)


def refit_ours(worker, version: int) -> None:
    import fp8rt_vllm

    for bucket in buckets(version):
        fp8rt_vllm.load_weights(bucket, worker.model_runner)
    synchronize(worker)


def refit_broken(worker, version: int) -> None:
    """The second bucket has a tensor of another shape."""
    import fp8rt_vllm

    for index, bucket in enumerate(buckets(version)):
        name, weight = bucket[-1]
        fp8rt_vllm.load_weights([*bucket[:-1], (name, weight[:-1] if index else weight)], worker.model_runner)


def refit_stock(worker, version: int) -> None:
    """vLLM's own reload, of the same tensors."""
    worker.reload_weights(weights_iterator=(item for bucket in buckets(version) for item in bucket))
    synchronize(worker)


def refit_bf16(worker, version: int) -> None:
    import torch

    with torch.no_grad():
        for bucket in buckets(version):
            worker.model_runner.get_model().load_weights(iter(bucket))
    synchronize(worker)


REFITS = {"ours": refit_ours, "stock": refit_stock, "bf16": refit_bf16}


def measure(worker) -> dict:
    """Where the weights are, and how much memory torch and the device hold."""
    import torch

    addresses = json.dumps(base.addresses_of_worker(worker), sort_keys=True)
    found = {"addresses": hashlib.sha256(addresses.encode()).hexdigest()}
    if worker.device.type == "cuda":
        torch.cuda.synchronize(worker.device)
        found |= {"reserved": torch.cuda.memory_reserved(), "free": torch.cuda.mem_get_info()[0]}
    return found


def compare(results: dict) -> list[str]:
    """What must hold."""
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    for name in ("ours", "stock", "bf16"):
        for key in ("repeats", "versions_differ"):
            if not results.get(name, {}).get(key, True):
                failures.append(f"{name}: {key} is False")
    if "measured" not in results.get("cycle", {}):
        return failures
    found = results["cycle"]
    for key in found["measured"][0]:
        values = [one[key] for one in found["measured"]]
        # From the second on; the first lays out what stays.
        if len(set(values[1:])) > 1:
            changes = [turn + 1 for turn in range(2, len(values)) if values[turn] != values[turn - 1]]
            failures.append(f"cycle: {key} changes in cycles {changes[:8]}: {values[:4]} ... {values[-2:]}")
    for version, generated in found["generated"].items():
        expected = results.get(f"fresh_{version}", {}).get("tokens", generated[0])
        wrong = [turn for turn, one in enumerate(generated) if one != expected]
        if wrong:
            failures.append(f"cycle: tokens of version {version} are not a fresh start's in generations {wrong[:8]}")
    expected = results.get("fresh_1", {}).get("tokens", found["generated"]["1"][0])
    failures += [f"healed {turn}: other tokens" for turn, one in enumerate(found["healed"]) if one != expected]
    return failures + [f"not refused: {what}" for what, words in found["said"].items() if not words]


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
