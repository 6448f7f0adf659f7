#!/usr/bin/env python3
"""Attention under CUDA graphs in vLLM with the plugin: scales of an FP8 KV cache that refits change, and MLA, whose
decoding reads matrices derived from kv_b_proj. After refits, tokens and log-probabilities equal those of a fresh start.

    gpu_attention.py [--parts cache,mla] [--cache-backend NAME] [--mla-backend NAME] [--experts N] [--minutes N]
                     [--out FILE.json] [--device cpu]

`FP8RT_LIBRARY` names the library where the plugin is not installed. Every engine runs in a process of its own,
with a limit of time, on models of random weights: one that fails or is ended leaves what it has, and the others go on.
A table comes last; a comparison that does not hold, or that could not be made, fails the run.

Two comparisons must differ, so that the equal ones mean something: the same weights with other scales, and MLA with
what it derives left as it was at the capture. `--device cpu` tries the script without a GPU: nothing is captured there,
and vLLM has no MLA, so that what it says of graphs and of MLA is not counted.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

import engines
import scripts
from engines import ask
from scripts import Results

VOCABULARY, LAYERS, HEADS = 4096, 3, 16
COMMON = {key: value for key, value in engines.LARGE.items() if key != "head_dim"} | {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 2048,
    "rope_theta": 50000.0,
}
LLAMA = COMMON | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
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
LIMIT = 180


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="cache,mla")
    parser.add_argument("--cache-backend", default="TRITON_ATTN")
    parser.add_argument("--mla-backend")
    parser.add_argument("--experts", type=int, default=0, help="routed experts of the last MLA layer, kept in bf16")
    scripts.add_options(parser)
    options = parser.parse_args()
    if options.engine:
        scripts.one_engine(options, {None: run_engine})
    parts = scripts.chosen(parser, "--parts", options.parts, ENGINES)
    names = [name for part in parts for name in ENGINES[part]]
    if options.device == "cpu":
        os.environ["VLLM_MLA_DISABLE"] = "1"
        names = [name for name in names if name != "mla_stale"]
    with tempfile.TemporaryDirectory() as name:
        engines.prepare(options.device, pathlib.Path(name))
        results = scripts.run_engines(names, pathlib.Path(name), dict.fromkeys(names, LIMIT), options.minutes)
    comparisons = compare(results, names, options.device)
    if options.out:
        text = json.dumps({"options": vars(options), "results": results, "comparisons": comparisons}, indent=1)
        pathlib.Path(options.out).write_text(text)
    table(results, comparisons)
    failed = any(held is False for held in comparisons.values()) or not comparisons
    print("gpu_attention:", "failed" if failed else "passed", flush=True)
    sys.exit(failed)


def config_of(part: str, experts: int) -> dict:
    if part == "cache":
        return LLAMA
    if not experts:
        return MOONLIGHT
    return MOONLIGHT | {"first_k_dense_replace": LAYERS - 1, "n_routed_experts": experts}


def names_and_shapes(part: str, config: dict) -> dict[str, tuple[int, ...]]:
    if part == "cache":
        return engines.shapes(config)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
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
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{prefix}.mlp.{name}": shape for name, shape in feed_forward(config, layer).items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def feed_forward(config: dict, layer: int) -> dict[str, tuple[int, ...]]:
    hidden = config["hidden_size"]

    def gated(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
        up = {f"{prefix}{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")}
        return up | {f"{prefix}down_proj.weight": (hidden, inner)}

    if layer < config["first_k_dense_replace"]:
        return gated("", config["intermediate_size"])
    count, inner = config["n_routed_experts"], config["moe_intermediate_size"]
    found = {"gate.weight": (count, hidden), "gate.e_score_correction_bias": (count,)}
    found |= gated("shared_experts.", config["n_shared_experts"] * inner)
    for expert in range(count):
        found |= gated(f"experts.{expert}.", inner)
    return found


def weights(part: str, experts: int, version: int) -> dict:
    """The trainer's weights of a version, made on the CPU: the same on every machine."""
    found = dict(engines.random(names_and_shapes(part, config_of(part, experts)), version))
    # Around zero, and in float32.
    return {
        name: 0.1 * (values.float() - 1) if name.endswith("e_score_correction_bias") else values
        for name, values in found.items()
    }


def scales(version: int) -> dict:
    """Of the cache, by NeMo-RL's names, as it sends them: float32, one element."""
    import torch

    found = {}
    for layer in range(LAYERS):
        for kind, first in zip("kvq", SCALES[version], strict=True):
            module = "self_attn.attn" if kind == "q" else "self_attn"
            found[f"model.layers.{layer}.{module}.{kind}_scale"] = torch.tensor([first * 1.5**layer])
    return found


def write_checkpoint(folder: pathlib.Path, part: str, experts: int) -> pathlib.Path:
    """Version 2, which the second refit brings too."""
    if not folder.exists():
        tensors = weights(part, experts, 2) | (scales(2) if part == "cache" else {})
        engines.write_checkpoint(folder, config_of(part, experts), tensors)
    return folder


def run_engine(options: argparse.Namespace, results: Results) -> None:
    name = options.engine
    part, mode = name.split("_")
    begin = time.time()
    llm = make_engine(options, part, "auto" if mode == "fresh" else "dummy")
    results.note(name, start_s=time.time() - begin, addresses=ask(llm, "addresses"))
    if mode == "stale":
        ask(llm, "leave_derived")
    if mode == "fresh":
        results.note(name, **generate(llm), state=ask(llm, "digests"))
        # Other weights, and then those of the disk again by vLLM's own reload.
        ask(llm, "refit", part, options.experts, 1, 1)
        results.note(name, between=generate(llm))
        ask(llm, "reload_weights")
        results.note(name, reloaded=generate(llm), reloaded_state=ask(llm, "digests"))
    else:
        for version in (1, 2):
            begin = time.time()
            receipt = ask(llm, "refit", part, options.experts, version, version)
            results.note(name, receipt=receipt, **{f"refit_{version}_s": time.time() - begin})
            results.note(name, **{f"after_{version}": generate(llm)})
        results.note(name, **results[name]["after_2"], state=ask(llm, "digests"))
    if name == "cache_refit":
        ask(llm, "refit", part, options.experts, 2, 3)
        results.note(name, other_scales=generate(llm))
        ask(llm, "send", list(scales(2).items()))
        results.note(name, scales_back=generate(llm))
    results.note(name, addresses_after=ask(llm, "addresses"))


def make_engine(options: argparse.Namespace, part: str, load_format: str):
    cfg = {}
    if part == "cache":
        cfg["kv_cache_dtype"] = "fp8"
    elif options.experts:
        cfg["fp8rt"] = {"rules": [{"glob": "*.experts*", "decision": "keep"}]}
    config = config_of(part, options.experts)
    backend = options.cache_backend if part == "cache" else options.mla_backend
    arguments = {}
    if options.device == "cuda":
        sizes = {"cudagraph_mode": "FULL_AND_PIECEWISE", "cudagraph_capture_sizes": [1, 2, 4, 8]}
        arguments = {"compilation_config": sizes, "enforce_eager": False, "gpu_memory_utilization": 0.1}
        arguments |= {"kv_cache_memory_bytes": 1 << 30}
        arguments |= {"attention_backend": backend} if backend else {}
    return engines.small_engine(
        write_checkpoint(pathlib.Path(options.folder) / part, part, options.experts),
        max_model_len=512,
        max_num_batched_tokens=512,
        load_format=load_format,
        seed=0,
        worker_extension_cls="gpu_attention.Extension",
        **arguments,
        **engines.plugin(config, **cfg),
    )


def generate(llm) -> dict:
    """With the log-probabilities of decoding, which is from graphs."""
    return engines.generate(llm, VOCABULARY, length=48, tokens=24, decoded=1)


class Extension(engines.Extension):
    def refit(self, part: str, experts: int, version: int, of_scales: int) -> dict:
        """In buckets; the scales come last, as NeMo-RL sends them."""
        from fp8rt_vllm import refit

        items = list(weights(part, experts, version).items())
        size = -(-len(items) // BUCKETS)
        buckets = [items[begin : begin + size] for begin in range(0, len(items), size)]
        if part == "cache":
            buckets.append(list(scales(of_scales).items()))
        for bucket in buckets:
            self.send(bucket)
        self.pack_again()
        return refit.receipt(self.model_runner)

    def send(self, bucket: list) -> None:
        """From memory that is overwritten after it."""
        from fp8rt_vllm import refit

        copies = [(name, tensor.to(self.device, copy=True)) for name, tensor in bucket]
        refit.load_weights(copies, self.model_runner)
        for _, copy in copies:
            copy.fill_(9)

    def leave_derived(self) -> None:
        """As if nothing followed kv_b_proj."""
        from fp8rt_vllm import mla

        mla.Derivations.refresh = lambda self, filled: None

    def tensors_of_model(self) -> dict:
        """What kernels read: scales of the cache too, and what is derived."""
        import torch

        from fp8rt_vllm import mla

        found = {name: tensor for name, tensor in super().tensors_of_model().items() if tensor.dim()}
        for prefix, module in self.model_runner.get_model().named_modules():
            for name in (*mla.DERIVED, "_k_scale", "_v_scale", "_q_scale", "_prob_scale"):
                tensor = getattr(module, name, None)
                if isinstance(tensor, torch.Tensor):
                    found[f"{prefix}.{name}"] = tensor
        return found


def compare(results: dict, names: list[str], device: str) -> dict[str, bool | None]:
    """What must hold, and whether it does; None: it cannot be seen on this device."""
    found: dict[str, bool | None] = {f"{name} ran to its end": "error" not in results.get(name, {}) for name in names}

    def of(name: str, *keys: str):
        value = results.get(name, {})
        for key in keys:
            value = (value or {}).get(key)
        return value

    for part in (part for part in ENGINES if f"{part}_fresh" in names):
        mine, fresh = f"{part}_refit", f"{part}_fresh"
        tokens, logprobs, state = (of(fresh, key) for key in ("tokens", "logprobs", "state"))
        stayed = {name: same(of(name, "addresses"), of(name, "addresses_after")) for name in (mine, fresh)}
        found |= {
            f"{part}: tokens after two refits equal a fresh start's": same(of(mine, "tokens"), tokens),
            f"{part}: log-probabilities too": same(of(mine, "logprobs"), logprobs),
            f"{part}: bytes of all tensors too": same(of(mine, "state"), state),
            f"{part}: the first refit's weights gave others": differ(of(mine, "after_1", "logprobs"), logprobs),
            f"{part}: addresses of the refitted engine stayed": stayed[mine],
            f"{part}: addresses stayed through vLLM's reload": stayed[fresh],
            f"{part}: a refit of the fresh engine gave others": differ(of(fresh, "between", "logprobs"), logprobs),
            f"{part}: tokens after vLLM's reload equal the start's": same(of(fresh, "reloaded", "tokens"), tokens),
            f"{part}: log-probabilities after it too": same(of(fresh, "reloaded", "logprobs"), logprobs),
            f"{part}: bytes of all tensors after it too": same(of(fresh, "reloaded_state"), state),
        }
    if "cache_refit" in names:
        logprobs, before = of("cache_refit", "logprobs"), of("cache_refit", "after_2")
        found |= {
            "cache: other scales alone give others": differ(of("cache_refit", "other_scales", "logprobs"), logprobs),
            "cache: scales sent alone give the former": same(of("cache_refit", "scales_back"), before),
        }
    if "mla_fresh" in names:
        addresses = of("mla_fresh", "addresses") or [{}]
        seen = device == "cuda"
        derived = any(name.endswith(".W_UK_T") for name in addresses[0])
        stale = differ(of("mla_stale", "logprobs"), of("mla_fresh", "logprobs"))
        found |= {
            "mla: the model has derived matrices": derived if seen else None,
            "mla: without deriving anew, decoding differs": stale if seen else None,
        }
    return found


def same(one, other) -> bool:
    """What is not there is not the same, and does not differ."""
    return None not in (one, other) and one == other


def differ(one, other) -> bool:
    return None not in (one, other) and one != other


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
