#!/usr/bin/env python3
"""Runs vLLM with routed experts of the plugin on a GPU: generates, refits in buckets, and compares with fresh starts,
with BF16 and with vLLM's own FP8, in bytes, tokens, log-probabilities, memory and time.

    gpu_experts.py [--layers N] [--tp N] [--ep] [--parts WORD,...] [--minutes N] [--out FILE.json] [--device cpu]

`FP8RT_LIBRARY` names the library where the plugin is not installed. Every engine runs in a process of its own, with a
limit of time: one that fails or is ended leaves what it has, and the others go on. The model is a Qwen3-MoE of random
weights, with the shapes of the 30B one and few layers. A table comes last; a comparison that does not hold, or that
could not be made, fails the run.

Parts: eager, graphs (compiled, CUDA graphs), pow2 (eager, activations in powers of two), bf16, vllm_fp8 (vLLM's own).

With --device cpu the model is tiny, and references take the place of vLLM's kernels for experts and for routing.
Engine, loaders and refits are the real ones, in vLLM's build for the CPU (parts eager and bf16, the latter without
refits: there vLLM packs weights that stay in BF16).
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import tempfile
import time
from unittest import mock

import engines
import scripts
from scripts import Results

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
BUCKET_BYTES = 200 << 20
TOKENS = 16
PARTS = {
    "eager": ["eager_refit", "eager_fresh"],
    "graphs": ["graphs_refit", "graphs_fresh"],
    "pow2": ["pow2_refit", "pow2_fresh"],
    "bf16": ["bf16_refit"],
    "vllm_fp8": ["stock_fresh"],
}
# Of a refit, against BF16 on the same path.
MOST_TIME = 1.1
# Seconds of a process.
LIMIT = 240


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--ep", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    scripts.add_options(parser)
    options = parser.parse_args()
    if options.engine:
        scripts.one_engine(options, {"write": write_checkpoints, None: run_engine})
    parts = scripts.chosen(parser, "--parts", options.parts, PARTS)
    names = ["write", *(name for part in parts for name in PARTS[part])]
    with tempfile.TemporaryDirectory() as name:
        engines.prepare(options.device, pathlib.Path(name))
        # Functions of this file are sent to the workers.
        os.environ |= {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        results = scripts.run_engines(names, pathlib.Path(name), dict.fromkeys(names, LIMIT), options.minutes)
    failures = compare(results, parts, options.device)
    if options.out:
        shown = {"options": vars(options), "results": results, "failures": failures}
        pathlib.Path(options.out).write_text(json.dumps(shown, indent=1))
    table(results)
    scripts.report("gpu_experts", failures)


def config_of(options: argparse.Namespace) -> dict:
    tiny = TINY if options.device == "cpu" else {}
    return CONFIG | tiny | {"num_hidden_layers": options.layers}


def names_and_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of the checkpoint."""
    hidden, inner, head = config["hidden_size"], config["moe_intermediate_size"], config["head_dim"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        own = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.q_norm": (head,),
            "self_attn.k_norm": (head,),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate": (config["num_experts"], hidden),
        }
        for expert in range(config["num_experts"]):
            own[f"mlp.experts.{expert}.gate_proj"] = (inner, hidden)
            own[f"mlp.experts.{expert}.up_proj"] = (inner, hidden)
            own[f"mlp.experts.{expert}.down_proj"] = (hidden, inner)
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def weights(config: dict, version: int, device: str):
    """The trainer's weights of a version, tensor by tensor, the same on every rank."""
    # Versions of a thousand tensors and more must not share seeds.
    return engines.random(names_and_shapes(config), 1000 * version, device)


def write_checkpoints(options: argparse.Namespace, results: Results) -> None:
    """Version 2, which the second refit brings too: in bf16, and beside it in codes and scales."""
    folder, config, kept, quantized = pathlib.Path(options.folder), config_of(options), {}, {}
    for name, weight in weights(config, 2, options.device):
        kept[name] = quantized[name] = weight.cpu()
        if "_proj" in name:
            codes, scales = engines.quantized(weight)
            quantized |= {name: codes.cpu(), f"{name}_scale_inv": scales.cpu()}
    engines.write_checkpoint(folder / "bf16", config, kept)
    engines.write_checkpoint(folder / "fp8", config | {"quantization_config": engines.FP8_CHECKPOINT}, quantized)
    results.note("write", tensors=len(quantized))


def run_engine(options: argparse.Namespace, results: Results) -> None:
    """One engine: starts, generates, refits if its name says so, measures."""
    kind, mode = options.engine.split("_")
    ours, config = kind in ("eager", "graphs", "pow2"), config_of(options)
    arguments = plugin_arguments(config, kind == "pow2") if ours else {}
    if options.device == "cuda":
        arguments |= {"moe_backend": "triton", "gpu_memory_utilization": 0.5, "attention_backend": "TRITON_ATTN"}
    begin = time.time()
    refitted = mode == "refit" and (ours or options.device == "cuda")
    with kernel(options.device):
        from vllm import LLM

        llm = LLM(
            model=str(pathlib.Path(options.folder, "fp8" if kind == "stock" else "bf16")),
            load_format="dummy" if refitted else "auto",
            skip_tokenizer_init=True,
            enforce_eager=kind != "graphs",
            max_model_len=2048,
            enable_prefix_caching=False,
            tensor_parallel_size=options.tp,
            enable_expert_parallel=options.ep,
            seed=0,
            **arguments,
        )
        note = functools.partial(results.note, options.engine)
        note(start_s=time.time() - begin)
        begin = time.time()
        generate(llm)
        note(first_generate_s=time.time() - begin)
        if refitted:
            note(**refits(llm, config, kind))
        note(**generate(llm))
        if ours:
            note(state=llm.collective_rpc(state_of_worker))
        if options.device == "cuda":
            note(**timings(llm))
        if ours and mode == "fresh":
            # Other weights, and then those of the disk again by vLLM's own reload.
            llm.collective_rpc(refit_worker, args=(config, 1, "plan"))
            begin = time.time()
            llm.collective_rpc("reload_weights")
            note(reload_s=time.time() - begin, reloaded=llm.collective_rpc(state_of_worker))


def plugin_arguments(config: dict, pow2: bool) -> dict:
    """NeMo-RL's settings, as the README shows them."""
    import fp8rt_vllm

    vllm_cfg = {"precision": "fp8", "pow2_activation_scaling_factors": pow2}
    settings = fp8rt_vllm.vllm_kwargs(vllm_cfg, config)
    os.environ.update(settings.environment)
    return settings.kwargs


@contextlib.contextmanager
def kernel(device: str):
    """Where there is no Triton, a reference in its place; and kept weights are not packed where no refit sees them."""
    if device == "cuda":
        yield
        return
    import toy_moe
    from vllm import _custom_ops

    toy_moe.cpu_routing()
    with toy_moe.cpu_kernel(), mock.patch.object(_custom_ops, "_supports_onednn", False):
        yield


def generate(llm) -> dict:
    """Greedy tokens of fixed prompts and the log-probabilities of the prompts' own tokens."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [(7 * i + 13 * j) % 31000 + 5 for j in range(64)]} for i in range(8)]
    outputs = llm.generate(
        prompts,
        SamplingParams(max_tokens=TOKENS, temperature=0, prompt_logprobs=1, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    logprobs = [
        [step[token].logprob for step, token in zip(o.prompt_logprobs[1:], o.prompt_token_ids[1:], strict=True)]
        for o in outputs
    ]
    return {"tokens": [list(o.outputs[0].token_ids) for o in outputs], "logprobs": logprobs}


def refits(llm, config: dict, kind: str) -> dict:
    """Three refits in buckets: version 1, then the checkpoint's twice, the second of which is the steady state. A model
    in BF16 is refitted by the plan and by vLLM's own load_weights.
    """
    result = {"addresses": llm.collective_rpc(addresses_of_worker)}
    paths = ("stock", "plan") if kind == "bf16" else ("plan",)
    for path in paths:
        for turn, version in enumerate((1, 2, 2)):
            result[f"{path}_{turn}"] = llm.collective_rpc(refit_worker, args=(config, version, path))
    result["addresses_after"] = llm.collective_rpc(addresses_of_worker)
    return result


def refit_worker(worker, config: dict, version: int, path: str) -> dict:
    """Brings buckets from one buffer that is overwritten by the next, as a trainer does. Seconds are those of loading
    alone, until the device is done; memory is what loading took beside the buffer.
    """
    import torch

    from fp8rt_vllm import refit

    device, bucket, size = torch.device(worker.device), [], 0
    cuda = device.type == "cuda"
    buffer = torch.empty(2 * BUCKET_BYTES, dtype=torch.uint8, device=device)
    result = {"seconds": 0.0, "buckets": 0, "extra_bytes": 0}

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    def send() -> None:
        wait()
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        begin = time.time()
        if path == "plan":
            refit.load_weights(bucket, worker.model_runner)
        else:
            worker.model_runner.get_model().load_weights(iter(bucket))
        wait()
        result["seconds"] += time.time() - begin
        result["buckets"] += 1
        peak = torch.cuda.max_memory_allocated() if cuda else 0
        result["extra_bytes"] = max(result["extra_bytes"], peak - before)
        del bucket[:]

    with torch.no_grad():
        for name, weight in weights(config, version, str(device)):
            if size + weight.nbytes > BUCKET_BYTES and bucket:
                send()
                size = 0
            room = buffer[size : size + weight.nbytes] if size + weight.nbytes <= buffer.numel() else None
            if room is not None:
                weight = room.view(torch.bfloat16).view(weight.shape).copy_(weight)
                size += -(-weight.nbytes // 256) * 256
            bucket.append((name, weight))
        send()
    return result | ((refit.receipt(worker.model_runner) or {}) if path == "plan" else {})


def tensors_of(worker) -> dict:
    """Parameters and the scales beside them."""
    from fp8rt_vllm.layer import states

    model = worker.model_runner.get_model()
    found = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for weight in states(module):
            found[f"{prefix}.{weight}_scale_inv"] = getattr(module, f"{weight}_scale_inv")
    return found


def addresses_of_worker(worker) -> dict:
    return {name: tensor.data_ptr() for name, tensor in tensors_of(worker).items()}


def state_of_worker(worker) -> dict:
    """A digest of every tensor, which a refit and a fresh start must agree on."""
    import torch

    return {
        name: hashlib.sha256(
            tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes()
        ).hexdigest()
        for name, tensor in tensors_of(worker).items()
    }


def timings(llm) -> dict:
    """Milliseconds of a decode step with 8 and 64 sequences, and of a prefill of 8 times 1024 tokens; medians."""
    from vllm import SamplingParams

    def seconds(count: int, length: int, tokens: int, times: int = 5) -> float:
        taken = []
        for turn in range(times):
            prompts = [
                {"prompt_token_ids": [(11 * i + 17 * j + turn) % 31000 + 5 for j in range(length)]}
                for i in range(count)
            ]
            begin = time.perf_counter()
            llm.generate(
                prompts,
                SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False),
                use_tqdm=False,
            )
            taken.append(time.perf_counter() - begin)
        return sorted(taken)[times // 2]

    result = {}
    for count in (8, 64):
        result[f"decode_{count}_ms"] = (seconds(count, 16, 129) - seconds(count, 16, 1)) / 128 * 1000
    result["prefill_8192_ms"] = seconds(8, 1024, 1) * 1000
    return result


def compare(results: dict, parts: list[str], device: str) -> list[str]:
    """What must hold. A result that is not there is the first failure of its engine."""
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    for mode in ("eager", "graphs", "pow2"):
        if mode not in parts:
            continue
        refitted, fresh = results.get(f"{mode}_refit", {}), results.get(f"{mode}_fresh", {})
        missing = {"state", "tokens", "addresses_after"} - refitted.keys()
        missing |= {"state", "tokens", "reloaded"} - fresh.keys()
        if missing:
            failures.append(f"{mode}: {', '.join(sorted(missing))} is not there to compare")
            continue
        if refitted["state"] != fresh["state"]:
            differ = [name for name in fresh["state"][0] if refitted["state"][0].get(name) != fresh["state"][0][name]]
            failures.append(f"{mode}: bytes after the refit differ from a fresh start: {differ[:4]} ({len(differ)})")
        if refitted["tokens"] != fresh["tokens"]:
            failures.append(f"{mode}: tokens after the refit differ from a fresh start")
        if refitted["addresses"] != refitted["addresses_after"]:
            failures.append(f"{mode}: addresses changed")
        if fresh["reloaded"] != fresh["state"]:
            failures.append(f"{mode}: bytes after vLLM's reload differ from the start")
    return failures + (costs(results) if device == "cuda" else [])


def costs(results: dict) -> list[str]:
    """Time and memory of the steady refit."""
    failures = []
    kept = results.get("bf16_refit", {})
    for name, result in results.items():
        if name == "bf16_refit" or "plan_2" not in result:
            continue
        extra = max(rank["extra_bytes"] for rank in result["plan_2"])
        if extra > BUCKET_BYTES:
            failures.append(f"{name}: a refit took {extra} bytes beside its bucket of {BUCKET_BYTES}")
        for path in ("plan_2", "stock_2"):
            if path in kept and seconds(result, "plan_2") > MOST_TIME * seconds(kept, path):
                failures.append(
                    f"{name}: a refit takes {seconds(result, 'plan_2'):.3f} s, BF16 by {path} {seconds(kept, path):.3f}"
                )
    return failures


def seconds(result: dict, key: str) -> float:
    """Of the slowest rank."""
    return max(rank["seconds"] for rank in result[key])


def difference(mine: dict, other: dict) -> str:
    """Mean and largest absolute difference of log-probabilities of the same tokens."""
    if "logprobs" not in mine or "logprobs" not in other:
        return "-"
    gaps = [
        abs(a - b)
        for one, two in zip(mine["logprobs"], other["logprobs"], strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    return f"{sum(gaps) / len(gaps):.4f} / {max(gaps):.4f}"


def table(results: dict) -> None:
    """One row an engine. `plan`, `stock`: seconds of loading in the first and the third refit; MB beside the bucket."""
    keys = ("start_s", "first_generate_s", "reload_s", "decode_8_ms", "decode_64_ms", "prefill_8192_ms")
    refits = ("plan_0", "plan_2", "stock_2")
    print(f"{'engine':14}" + "".join(f"{key:>17}" for key in (*keys, *refits, "extra_MB")) + "   logprobs, mean / max")
    for name, result in results.items():
        cells = "".join(f"{result[key]:17.3f}" if key in result else f"{'-':>17}" for key in keys)
        cells += "".join(f"{seconds(result, key):17.3f}" if key in result else f"{'-':>17}" for key in refits)
        extra = max((rank["extra_bytes"] for rank in result.get("plan_2", [])), default=None)
        cells += f"{'-':>17}" if extra is None else f"{extra / 1e6:17.1f}"
        print(f"{name:14}{cells}   {difference(result, results.get('bf16_refit', {}))}")


if __name__ == "__main__":
    main()
