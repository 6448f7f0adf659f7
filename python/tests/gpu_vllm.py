#!/usr/bin/env python3
"""Runs vLLM with the plugin on GPUs: generates, refits in buckets, and compares with fresh starts and other precisions.

    gpu_vllm.py [--tp N] [--layers N] [--parts WORD,...] [--out FILE.json]

`FP8RT_LIBRARY` names the library where the plugin is not installed. Every engine runs in a process of its own. The
model is a Llama of random weights with the shapes of an 8B one and few layers. A table comes last; a comparison that
does not hold fails the run.

Parts: eager, graphs (compiled, CUDA graphs), serialized (codes and scales from disk), bf16, vllm_fp8 (vLLM's own).
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

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BUCKET_BYTES = 200 << 20
TOKENS = 16
FP8_CHECKPOINT = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_DEEP_GEMM_WARMUP": "skip",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # No NVLink multicast: a host that is shared may not survive it.
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NCCL_NVLS_ENABLE": "0",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--parts", default="eager,graphs,serialized,bf16,vllm_fp8")
    parser.add_argument("--out")
    parser.add_argument("--engine", help="for the processes that this script starts")
    parser.add_argument("--model")
    options = parser.parse_args()
    if options.engine == "write":
        write_checkpoints(pathlib.Path(options.model), options.layers)
        print("{}")
        return
    if options.engine:
        run_engine(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder)
        make_installed(model)
        start("write", options, model)
        wanted = options.parts.split(",")
        engines = {
            "eager": ["eager_refit", "eager_fresh"],
            "graphs": ["graphs_refit", "graphs_fresh"],
            "bf16": ["bf16_eager", "bf16_graphs"],
            "serialized": ["serialized_eager"],
            "vllm_fp8": ["stock_eager", "stock_graphs"],
        }
        results = {}
        for part in wanted:
            for engine in engines[part]:
                print(f"=== {engine}", flush=True)
                results[engine] = start(engine, options, model)
    failures = compare(results)
    if options.out:
        pathlib.Path(options.out).write_text(
            json.dumps({"tp": options.tp, "layers": options.layers, "results": results, "failures": failures}, indent=1)
        )
    table(results)
    for failure in failures:
        print("FAILED:", failure)
    sys.exit(bool(failures))


def start(engine: str, options: argparse.Namespace, model: pathlib.Path) -> dict:
    """Runs one engine in a process of its own; its own last line is JSON."""
    environment = ENVIRONMENT | ({"VLLM_USE_DEEP_GEMM_E8M0": "0"} if engine.startswith("stock") else {})
    command = [
        sys.executable,
        __file__,
        "--engine",
        engine,
        "--model",
        str(model),
        "--tp",
        str(options.tp),
        "--layers",
        str(options.layers),
    ]
    ended = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    lines = ended.stdout.splitlines()
    print("\n".join(line for line in lines if not line.startswith("{")), flush=True)
    answers = [line for line in lines if line.startswith("{")]
    if ended.returncode or not answers:
        return {"error": f"exit status {ended.returncode}"}
    return json.loads(answers[-1])


def make_installed(folder: pathlib.Path) -> None:
    """Every process finds the plugin by its entry point, as if the wheel of this tree were installed."""
    package = folder / "fp8rt_vllm-0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: fp8rt_vllm\nVersion: 0\n")
    (package / "entry_points.txt").write_text("[vllm.general_plugins]\nfp8rt = fp8rt_vllm.plugin:register\n")
    paths = [str(folder), str(pathlib.Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def names_and_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the checkpoint."""
    hidden, inner, vocabulary = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    keys = hidden * CONFIG["num_key_value_heads"] // CONFIG["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (hidden, hidden),
                "self_attn.k_proj": (keys, hidden),
                "self_attn.v_proj": (keys, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }.items()
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def weights(layers: int, version: int, device: str):
    """The trainer's weights of a version, tensor by tensor, the same on every rank."""
    import torch

    for index, (name, shape) in enumerate(names_and_shapes(layers).items()):
        generator = torch.Generator(device).manual_seed(1000 * version + index)
        values = torch.randn(shape, generator=generator, device=device)
        yield name, (1 + 0.1 * values if len(shape) == 1 else 0.02 * values).to(torch.bfloat16)


def write_checkpoints(bf16: pathlib.Path, layers: int) -> None:
    """Version 2, which the second refit brings too: in bf16, and beside it in codes and scales. Needs the GPU."""
    import safetensors.torch
    import torch

    from fp8rt import library

    library.register_ops()
    fp8 = fp8_folder(bf16)
    fp8.mkdir()
    config = CONFIG | {"num_hidden_layers": layers}
    (bf16 / "config.json").write_text(json.dumps(config))
    (fp8 / "config.json").write_text(json.dumps(config | {"quantization_config": FP8_CHECKPOINT}))
    kept, quantized = {}, {}
    for name, weight in weights(layers, 2, "cuda"):
        kept[name] = weight.cpu()
        if "_proj" not in name:
            quantized[name] = kept[name]
            continue
        codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
        scales = torch.empty(*(-(-size // 128) for size in weight.shape), device="cuda")
        torch.ops.fp8rt.quantize_weight(weight, codes, scales)
        quantized |= {name: codes.cpu(), f"{name}_scale_inv": scales.cpu()}
    for folder, tensors in ((bf16, kept), (fp8, quantized)):
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fp8_folder(bf16: pathlib.Path) -> pathlib.Path:
    return bf16 / "fp8"


def run_engine(options: argparse.Namespace) -> None:
    """One engine: starts, generates, refits if its name says so, measures."""
    kind, mode = options.engine.split("_")
    eager, ours = "eager" in (kind, mode), kind in ("eager", "graphs", "serialized")
    model, arguments = pathlib.Path(options.model), {}
    if kind in ("eager", "graphs"):
        arguments = plugin_arguments(options.layers) | {"load_format": "dummy" if mode == "refit" else "auto"}
    elif kind != "bf16":
        model, arguments = fp8_folder(model), {"quantization": "fp8rt" if ours else "fp8"}
    begin = time.time()
    from vllm import LLM

    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        enforce_eager=eager,
        max_model_len=2048,
        gpu_memory_utilization=0.5,
        attention_backend="TRITON_ATTN",
        enable_prefix_caching=False,
        tensor_parallel_size=options.tp,
        seed=0,
        **arguments,
    )
    result = {"start_s": time.time() - begin}
    begin = time.time()
    generate(llm)
    result["first_generate_s"] = time.time() - begin
    if mode == "refit":
        result |= refits(llm, options.layers)
    result |= generate(llm)
    if ours:
        result["state"] = llm.collective_rpc(state_of_worker)
    result |= timings(llm)
    if mode == "fresh":
        # Other weights, and then those of the disk again by vLLM's own reload.
        llm.collective_rpc(refit_worker, args=(options.layers, 1))
        begin = time.time()
        llm.collective_rpc("reload_weights")
        result["reload_s"] = time.time() - begin
        result["reloaded"] = llm.collective_rpc(state_of_worker)
    print(json.dumps(result), flush=True)


def plugin_arguments(layers: int) -> dict:
    """NeMo-RL's settings, as the README shows them."""
    import fp8rt_vllm

    settings = fp8rt_vllm.vllm_kwargs({"precision": "fp8"}, CONFIG | {"num_hidden_layers": layers})
    os.environ.update(settings.environment)
    return settings.kwargs


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


def refits(llm, layers: int) -> dict:
    """Two refits in buckets with new weights; the second has the checkpoint's."""
    result = {"addresses": llm.collective_rpc(addresses_of_worker)}
    for version in (1, 2):
        begin = time.time()
        receipts = llm.collective_rpc(refit_worker, args=(layers, version))
        result[f"refit_{version}_s"] = time.time() - begin
        result[f"receipt_{version}"] = receipts
    result["addresses_after"] = llm.collective_rpc(addresses_of_worker)
    return result


def refit_worker(worker, layers: int, version: int) -> dict:
    """Brings buckets from one buffer that is overwritten by the next, as a trainer does."""
    import torch

    from fp8rt_vllm import refit

    device, seconds, bucket, size = worker.device, 0.0, [], 0
    buffer = torch.empty(2 * BUCKET_BYTES, dtype=torch.uint8, device=device)

    def send() -> float:
        torch.cuda.synchronize()
        begin = time.time()
        refit.load_weights(bucket, worker.model_runner)
        enqueued = time.time() - begin
        torch.cuda.synchronize()
        del bucket[:]
        return enqueued

    with torch.no_grad():
        for name, weight in weights(layers, version, str(device)):
            if size + weight.nbytes > BUCKET_BYTES and bucket:
                seconds, size = seconds + send(), 0
            room = buffer[size : size + weight.nbytes] if size + weight.nbytes <= buffer.numel() else None
            if room is not None:
                weight = room.view(torch.bfloat16).view(weight.shape).copy_(weight)
                size += -(-weight.nbytes // 256) * 256
            bucket.append((name, weight))
        seconds += send()
    return refit.receipt(worker.model_runner) | {"enqueue_s": seconds}


def tensors_of(worker) -> dict:
    """Parameters and the scales beside them."""
    model = worker.model_runner.get_model()
    found = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        if hasattr(module, "fp8rt"):
            found[f"{prefix}.weight_scale_inv"] = module.weight_scale_inv
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


def compare(results: dict) -> list[str]:
    """What must hold."""
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    for mode in ("eager", "graphs"):
        refitted, fresh = results.get(f"{mode}_refit", {}), results.get(f"{mode}_fresh", {})
        if "tokens" not in refitted or "tokens" not in fresh:
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
    serialized, fresh = results.get("serialized_eager", {}), results.get("eager_fresh", {})
    if "state" in serialized and "state" in fresh and serialized["state"] != fresh["state"]:
        failures.append("serialized: bytes of codes from disk differ from those of bf16 quantized here")
    return failures


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
    """One row an engine."""
    keys = ("start_s", "first_generate_s", "refit_1_s", "refit_2_s", "decode_8_ms", "decode_64_ms", "prefill_8192_ms")
    print(f"{'engine':16}" + "".join(f"{key:>17}" for key in keys) + "   logprobs against bf16, mean / max")
    for name, result in results.items():
        cells = "".join(f"{result[key]:17.3f}" if key in result else f"{'-':>17}" for key in keys)
        print(f"{name:16}{cells}   {difference(result, results.get('bf16_eager', {}))}")


if __name__ == "__main__":
    main()
