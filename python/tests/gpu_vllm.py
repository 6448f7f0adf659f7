#!/usr/bin/env python3
"""The plugin in a real vLLM on a GPU: gpu_vllm.py [--compiled] [--json FILE]

A small Llama of random weights, two checkpoints A and B. Starts on A through the plugin, generates, refits to B in buckets,
twice, and generates; then starts afresh on B, and in bf16 on B. Tokens and codes after the refit must be those of the fresh
start, addresses must not change, and log-probabilities must be near those of bf16. Needs vLLM 0.25.1 and this package.
"""
import argparse
import gc
import hashlib
import json
import os
import pathlib
import tempfile
import time

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
               "VLLM_USE_FLASHINFER_SAMPLER": "0"}
from fp8rt_vllm import load_weights, vllm_kwargs  # noqa: E402

KEYWORDS, ENVIRONMENT = vllm_kwargs({"precision": "fp8", "use_deep_gemm": True, "num_last_layers_in_bf16": 1})
os.environ |= ENVIRONMENT
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

LAYERS, HIDDEN, HEADS, GROUPS, INTERMEDIATE, VOCABULARY = 4, 2048, 16, 4, 5632, 32000
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
    "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}
BUCKET = 32 << 20


def weights(seed):
    """{name: bf16 on the GPU}, the same for the same seed."""
    generator = torch.Generator("cuda").manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16) * shape[-1] ** -0.5

    all_weights = {"model.embed_tokens.weight": randn(VOCABULARY, HIDDEN) * HIDDEN ** 0.5,
                   "lm_head.weight": randn(VOCABULARY, HIDDEN),
                   "model.norm.weight": torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        head = HIDDEN // HEADS
        for name, rows, columns in (("self_attn.q_proj", HIDDEN, HIDDEN), ("self_attn.k_proj", GROUPS * head, HIDDEN),
                                    ("self_attn.v_proj", GROUPS * head, HIDDEN), ("self_attn.o_proj", HIDDEN, HIDDEN),
                                    ("mlp.gate_proj", INTERMEDIATE, HIDDEN), ("mlp.up_proj", INTERMEDIATE, HIDDEN),
                                    ("mlp.down_proj", HIDDEN, INTERMEDIATE)):
            all_weights[f"{prefix}{name}.weight"] = randn(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            all_weights[f"{prefix}{name}.weight"] = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
    return all_weights


def checkpoint(folder, seed):
    folder = pathlib.Path(folder, str(seed))
    folder.mkdir()
    folder.joinpath("config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    save_file({name: one.cpu() for name, one in weights(seed).items()}, folder / "model.safetensors")
    return str(folder)


def start(model, compiled, keywords):
    begin = time.time()
    if compiled:
        keywords = {**keywords, "compilation_config": {"cudagraph_capture_sizes": [1, 2, 4, 8, 16]}}
    llm = LLM(model=model, skip_tokenizer_init=True, enforce_eager=not compiled, max_model_len=1024, seed=0,
              gpu_memory_utilization=0.2, attention_backend="TRITON_ATTN", enable_prefix_caching=False, **keywords)
    return llm, time.time() - begin


def generate(llm):
    """Tokens of greedy generation, and seconds."""
    prompts = [{"prompt_token_ids": [(7 * i + 13 * j) % 31000 + 5 for j in range(64)]} for i in range(8)]
    begin = time.time()
    outputs = llm.generate(prompts, SamplingParams(max_tokens=16, temperature=0, detokenize=False), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs], time.time() - begin


def prompt_log_probabilities(llm):
    prompts = [{"prompt_token_ids": [(11 * i + 17 * j) % 31000 + 5 for j in range(128)]} for i in range(4)]
    parameters = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    return [next(iter(one.values())).logprob for output in outputs for one in output.prompt_logprobs[1:]]


def on_worker(llm, function, *arguments):
    return llm.collective_rpc(function, args=arguments)[0]


def describe(worker):
    """{name: (address, hash of the bytes)} of every parameter."""
    def digest(tensor):
        return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().tobytes()).hexdigest()
    return {name: (one.data_ptr(), digest(one)) for name, one in worker.model_runner.model.named_parameters()}


def refit(worker, seed):
    """In buckets whose memory is used again, as a trainer does; seconds."""
    torch.cuda.synchronize()
    begin, memory = time.time(), torch.empty(BUCKET, dtype=torch.uint8, device="cuda")
    bucket, used = [], 0
    for name, weight in weights(seed).items():
        size = weight.numel() * 2
        if size > BUCKET:
            load_weights([(name, weight)], worker.model_runner)
            continue
        if used + size > BUCKET:
            load_weights(bucket, worker.model_runner)
            bucket, used = [], 0
        place = memory[used:used + size].view(torch.bfloat16).view(weight.shape)
        place.copy_(weight)
        bucket.append((name, place))
        used += (size + 255) // 256 * 256
    load_weights(bucket, worker.model_runner)
    memory.fill_(0xFF)
    torch.cuda.synchronize()
    return time.time() - begin


def end(llm):
    del llm
    gc.collect()
    torch.cuda.empty_cache()


def run(compiled, first, second):
    result = {"compiled": compiled}

    llm, result["start_s"] = start(first, compiled, KEYWORDS)
    before = on_worker(llm, describe)
    tokens_of_first, result["generate_first_s"] = generate(llm)
    _, result["generate_s"] = generate(llm)
    result["refit_s"] = [on_worker(llm, refit, 2), on_worker(llm, refit, 2)]
    refitted, after = generate(llm)[0], on_worker(llm, describe)
    ours = prompt_log_probabilities(llm)
    end(llm)

    llm, result["fresh_start_s"] = start(second, compiled, KEYWORDS)
    fresh, fresh_parameters = generate(llm)[0], on_worker(llm, describe)
    end(llm)

    llm, result["bf16_start_s"] = start(second, compiled, {})
    _, result["bf16_generate_first_s"] = generate(llm)
    _, result["bf16_generate_s"] = generate(llm)
    theirs = prompt_log_probabilities(llm)
    end(llm)

    gaps = [abs(a - b) for a, b in zip(ours, theirs)]
    result["log_probability_gap_mean"], result["log_probability_gap_worst"] = sum(gaps) / len(gaps), max(gaps)
    checks = {
        "the refit changed the tokens": tokens_of_first != refitted,
        "tokens equal a fresh start's": refitted == fresh,
        "codes equal a fresh start's": {name: one[1] for name, one in after.items()} ==
                                       {name: one[1] for name, one in fresh_parameters.items()},
        "addresses are unchanged": {name: one[0] for name, one in before.items()} ==
                                   {name: one[0] for name, one in after.items()},
        "parameters are FP8": sum("weight_scale_inv" in name for name in after) == 4 * (LAYERS - 1),
        "log-probabilities are near those of bf16": result["log_probability_gap_mean"] < 0.1,
    }
    result["checks"] = checks
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options.compiled, checkpoint(folder, 1), checkpoint(folder, 2))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=2), encoding="utf-8")
    for name, value in result.items():
        print(f"{name}: {value}")
    return 0 if all(result["checks"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
