#!/usr/bin/env python3
"""Attention under CUDA graphs in vLLM with the plugin: scales of an FP8 KV cache that refits change, and MLA, whose
decoding reads matrices derived from kv_b_proj. After refits, tokens and log-probabilities equal those of a fresh start.

    gpu_attention.py [--parts cache,mla] [--cache-backend NAME] [--mla-backend NAME] [--experts N] [--out FILE.json]
                     [--device cpu]

`FP8RT_LIBRARY` names the library where the plugin is not installed. Every engine runs in a process of its own, on
models of random weights. A table comes last; a comparison that does not hold fails the run.

Two comparisons must differ, so that the equal ones mean something: the same weights with other scales, and MLA with
what it derives left as it was at the capture. `--device cpu` tries the script without a GPU: nothing is captured there,
and vLLM has no MLA, so that what it says of graphs and of MLA is not counted.
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

import gpu_vllm

VOCABULARY, LAYERS, HEADS = 4096, 3, 16
COMMON = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
# Moonlight's attention, on few and narrow layers.
MOONLIGHT = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_key_value_heads": HEADS,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "moe_layer_freq": 1,
    "first_k_dense_replace": LAYERS,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.446,
    "num_nextn_predict_layers": 0,
}
ENGINES = {"cache": ["cache_refit", "cache_fresh"], "mla": ["mla_refit", "mla_fresh", "mla_stale"]}
# k, v and q of the first layer; each further layer has half as much again.
SCALES = {1: (0.02, 0.01, 0.03), 2: (0.5, 0.25, 0.4), 3: (8.0, 6.0, 7.0)}
BUCKETS = 4
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_MLA_DISABLE": "1"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="cache,mla")
    parser.add_argument("--cache-backend", default="TRITON_ATTN")
    parser.add_argument("--mla-backend")
    parser.add_argument("--experts", type=int, default=0, help="routed experts of the last MLA layer, kept in bf16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out")
    parser.add_argument("--engine", help="for the processes that this script starts")
    parser.add_argument("--model")
    options = parser.parse_args()
    if options.engine:
        run_engine(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        model, results = pathlib.Path(folder), {}
        gpu_vllm.make_installed(model)
        for part in options.parts.split(","):
            write_checkpoint(model / part, part, options)
            for engine in ENGINES[part]:
                if engine == "mla_stale" and options.device == "cpu":
                    continue
                print(f"=== {engine}", flush=True)
                results[engine] = start(engine, options, model / part)
    comparisons = compare(results, options.device)
    if options.out:
        text = json.dumps({"options": vars(options), "results": results, "comparisons": comparisons}, indent=1)
        pathlib.Path(options.out).write_text(text)
    table(results, comparisons)
    sys.exit(any(held is False for held in comparisons.values()) or not comparisons)


def start(engine: str, options: argparse.Namespace, model: pathlib.Path) -> dict:
    """Runs one engine in a process of its own; its own last line is JSON."""
    environment = os.environ | gpu_vllm.ENVIRONMENT | (CPU if options.device == "cpu" else {})
    command = [sys.executable, __file__, *sys.argv[1:], "--engine", engine, "--model", str(model)]
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    lines = ended.stdout.splitlines()
    print("\n".join(line for line in lines if not line.startswith("{")), flush=True)
    answers = [line for line in lines if line.startswith("{")]
    if ended.returncode or not answers:
        return {"error": f"exit status {ended.returncode}"}
    return json.loads(answers[-1])


def config_of(part: str, experts: int) -> dict:
    if part == "cache":
        return LLAMA
    if not experts:
        return MOONLIGHT
    return MOONLIGHT | {"first_k_dense_replace": LAYERS - 1, "n_routed_experts": experts}


def names_and_shapes(part: str, config: dict) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        if part == "cache":
            size, keys = config["head_dim"], config["num_key_value_heads"]
            attention = {
                "q_proj": (heads * size, hidden),
                "k_proj": (keys * size, hidden),
                "v_proj": (keys * size, hidden),
                "o_proj": (hidden, heads * size),
            }
        else:
            nope, rope, value, rank = (
                config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")
            )
            attention = {
                "q_proj": (heads * (nope + rope), hidden),
                "kv_a_proj_with_mqa": (rank + rope, hidden),
                "kv_a_layernorm": (rank,),
                "kv_b_proj": (heads * (nope + value), rank),
                "o_proj": (hidden, heads * value),
            }
        shapes |= {f"{prefix}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{prefix}.mlp.{name}": shape for name, shape in feed_forward(part, config, layer).items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def feed_forward(part: str, config: dict, layer: int) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]

    def gated(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
        up = {f"{prefix}{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")}
        return up | {f"{prefix}down_proj.weight": (hidden, inner)}

    if part == "cache" or layer < config["first_k_dense_replace"]:
        return gated("", config["intermediate_size"])
    count, inner = config["n_routed_experts"], config["moe_intermediate_size"]
    found = {"gate.weight": (count, hidden), "gate.e_score_correction_bias": (count,)}
    found |= gated("shared_experts.", config["n_shared_experts"] * inner)
    for expert in range(count):
        found |= gated(f"experts.{expert}.", inner)
    return found


def weights(part: str, experts: int, version: int) -> dict:
    """The trainer's weights of a version, made on the CPU: the same on every machine."""
    import torch

    found = {}
    for index, (name, shape) in enumerate(names_and_shapes(part, config_of(part, experts)).items()):
        generator = torch.Generator().manual_seed(1000 * version + index)
        values = torch.randn(shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            found[name] = 0.01 * values
        else:
            found[name] = (1 + 0.1 * values if len(shape) == 1 else 0.05 * values).to(torch.bfloat16)
    return found


def scales(version: int) -> dict:
    """Of the cache, by NeMo-RL's names, as it sends them: float32, one element."""
    import torch

    found = {}
    for layer in range(LAYERS):
        for kind, first in zip("kvq", SCALES[version], strict=True):
            module = "self_attn.attn" if kind == "q" else "self_attn"
            found[f"model.layers.{layer}.{module}.{kind}_scale"] = torch.tensor([first * 1.5**layer])
    return found


def write_checkpoint(folder: pathlib.Path, part: str, options: argparse.Namespace) -> None:
    """Version 2, which the second refit brings too."""
    import safetensors.torch

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(part, options.experts)))
    tensors = weights(part, options.experts, 2) | (scales(2) if part == "cache" else {})
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def run_engine(options: argparse.Namespace) -> None:
    part, mode = options.engine.split("_")
    begin = time.time()
    llm = make_engine(options, part, "auto" if mode == "fresh" else "dummy")
    result = {"start_s": time.time() - begin, "addresses": llm.collective_rpc(addresses_of_worker)}
    if mode == "stale":
        llm.collective_rpc(leave_derived)
    if mode == "fresh":
        result |= generate(llm)
        result["state"] = llm.collective_rpc(state_of_worker)
        # Other weights, and then those of the disk again by vLLM's own reload.
        llm.collective_rpc(refit_worker, args=(part, options.experts, 1, 1))
        result["between"] = generate(llm)
        llm.collective_rpc("reload_weights")
        result["reloaded"] = generate(llm)
        result["reloaded_state"] = llm.collective_rpc(state_of_worker)
    else:
        for version in (1, 2):
            begin = time.time()
            result["receipt"] = llm.collective_rpc(refit_worker, args=(part, options.experts, version, version))
            result[f"refit_{version}_s"] = time.time() - begin
            result[f"after_{version}"] = generate(llm)
        result |= result["after_2"]
        result["state"] = llm.collective_rpc(state_of_worker)
    if options.engine == "cache_refit":
        llm.collective_rpc(refit_worker, args=(part, options.experts, 2, 3))
        result["other_scales"] = generate(llm)
        llm.collective_rpc(scales_worker, args=(2,))
        result["scales_back"] = generate(llm)
    result["addresses_after"] = llm.collective_rpc(addresses_of_worker)
    print(json.dumps(result), flush=True)


def make_engine(options: argparse.Namespace, part: str, load_format: str):
    import fp8rt_vllm

    cfg = {"precision": "fp8"}
    if part == "cache":
        cfg["kv_cache_dtype"] = "fp8"
    elif options.experts:
        cfg["fp8rt"] = {"rules": [{"glob": "*.experts*", "decision": "keep"}]}
    settings = fp8rt_vllm.vllm_kwargs(cfg, config_of(part, options.experts))
    os.environ.update(settings.environment)
    from vllm import LLM

    backend = options.cache_backend if part == "cache" else options.mla_backend
    arguments = {"enforce_eager": True}
    if options.device == "cuda":
        sizes = {"cudagraph_mode": "FULL_AND_PIECEWISE", "cudagraph_capture_sizes": [1, 2, 4, 8]}
        arguments = {"compilation_config": sizes, "gpu_memory_utilization": 0.4}
        arguments |= {"attention_backend": backend} if backend else {}
    return LLM(
        model=options.model,
        skip_tokenizer_init=True,
        max_model_len=512,
        max_num_seqs=8,
        enable_prefix_caching=False,
        load_format=load_format,
        seed=0,
        **arguments,
        **settings.kwargs,
    )


def generate(llm) -> dict:
    """Greedy tokens of fixed prompts, with their log-probabilities (decoding, from graphs) and those of the prompts."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [(7 * i + 13 * j) % (VOCABULARY - 8) + 5 for j in range(48)]} for i in range(8)]
    wanted = SamplingParams(
        max_tokens=24, temperature=0, logprobs=1, prompt_logprobs=1, ignore_eos=True, detokenize=False
    )
    tokens, logprobs = [], []
    for output in llm.generate(prompts, wanted, use_tqdm=False):
        made = output.outputs[0]
        steps = [*zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)]
        steps += zip(made.logprobs, made.token_ids, strict=True)
        tokens.append(list(made.token_ids))
        logprobs.append([step[token].logprob for step, token in steps])
    return {"tokens": tokens, "logprobs": logprobs}


def refit_worker(worker, part: str, experts: int, version: int, of_scales: int) -> dict:
    """Buckets from memory that is overwritten after each; the scales come last, as NeMo-RL sends them."""
    from fp8rt_vllm import refit

    items = list(weights(part, experts, version).items())
    size = -(-len(items) // BUCKETS)
    buckets = [items[begin : begin + size] for begin in range(0, len(items), size)]
    if part == "cache":
        buckets.append(list(scales(of_scales).items()))
    for bucket in buckets:
        send(worker, bucket)
    receipt = refit.receipt(worker.model_runner)
    if worker.device.type == "cpu":
        repack(worker)
    return receipt


def repack(worker) -> None:
    """vLLM for the CPU multiplies by a copy of lm_head, which it makes after loading."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    with set_current_vllm_config(worker.vllm_config):
        process_weights_after_loading(worker.model_runner.get_model(), worker.model_config, worker.device)


def scales_worker(worker, version: int) -> None:
    """Scales alone, between refits."""
    send(worker, list(scales(version).items()))


def send(worker, bucket: list) -> None:
    from fp8rt_vllm import refit

    copies = [(name, tensor.to(worker.device, copy=True)) for name, tensor in bucket]
    refit.load_weights(copies, worker.model_runner)
    for _, copy in copies:
        copy.fill_(9)


def leave_derived(worker) -> None:
    """As if nothing followed kv_b_proj."""
    from fp8rt_vllm import mla

    mla.Derivations.refresh = lambda self, filled: None


def tensors_of(worker) -> dict:
    """What kernels read: parameters, scales beside them, scales of the cache, and what is derived."""
    import torch

    from fp8rt_vllm import mla

    model = worker.model_runner.get_model()
    found = {name: tensor for name, tensor in gpu_vllm.tensors_of(worker).items() if tensor.dim()}
    for prefix, module in model.named_modules():
        for name in (*mla.DERIVED, "_k_scale", "_v_scale", "_q_scale", "_prob_scale"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor):
                found[f"{prefix}.{name}"] = tensor
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


def compare(results: dict, device: str) -> dict[str, bool | None]:
    """What must hold, and whether it does; None: it cannot be seen on this device."""
    found: dict[str, bool | None] = {
        f"{name} ran to its end": "error" not in result for name, result in results.items()
    }
    if not all(found.values()):
        return found
    for part in ("cache", "mla"):
        if f"{part}_fresh" not in results:
            continue
        refitted, fresh = results[f"{part}_refit"], results[f"{part}_fresh"]
        found |= {
            f"{part}: tokens after two refits equal a fresh start's": refitted["tokens"] == fresh["tokens"],
            f"{part}: log-probabilities too": refitted["logprobs"] == fresh["logprobs"],
            f"{part}: bytes of all tensors too": refitted["state"] == fresh["state"],
            f"{part}: the first refit's weights gave others": refitted["after_1"]["logprobs"] != fresh["logprobs"],
            f"{part}: addresses of the refitted engine stayed": refitted["addresses"] == refitted["addresses_after"],
            f"{part}: addresses stayed through vLLM's reload": fresh["addresses"] == fresh["addresses_after"],
            f"{part}: a refit of the fresh engine gave others": fresh["between"]["logprobs"] != fresh["logprobs"],
            f"{part}: tokens after vLLM's reload equal the start's": fresh["reloaded"]["tokens"] == fresh["tokens"],
            f"{part}: log-probabilities after it too": fresh["reloaded"]["logprobs"] == fresh["logprobs"],
            f"{part}: bytes of all tensors after it too": fresh["reloaded_state"] == fresh["state"],
        }
    if "cache_refit" in results:
        mine = results["cache_refit"]
        found |= {
            "cache: other scales alone give others": mine["other_scales"]["logprobs"] != mine["logprobs"],
            "cache: scales sent alone give the former": mine["scales_back"] == mine["after_2"],
        }
    if "mla_fresh" in results:
        fresh = results["mla_fresh"]
        derived = any(name.endswith(".W_UK_T") for name in fresh["addresses"][0])
        stale = results.get("mla_stale", {}).get("logprobs")
        found |= {
            "mla: the model has derived matrices": derived if device == "cuda" else None,
            "mla: without deriving anew, decoding differs": stale != fresh["logprobs"] if stale else None,
        }
    return found


def table(results: dict, comparisons: dict[str, bool | None]) -> None:
    keys = ("start_s", "refit_1_s", "refit_2_s")
    print(f"{'engine':16}" + "".join(f"{key:>12}" for key in keys))
    for name, result in results.items():
        print(f"{name:16}" + "".join(f"{result[key]:12.3f}" if key in result else f"{'-':>12}" for key in keys))
    words = {True: "holds", False: "FAILED", None: "not seen on this device"}
    for name, held in comparisons.items():
        print(f"{name:60}{words[held]:>24}")


if __name__ == "__main__":
    main()
