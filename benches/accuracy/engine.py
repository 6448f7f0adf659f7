#!/usr/bin/env python3
"""One engine of the study, in a process of its own: samples in each of its settings. The one in bf16 also scores what
all sampled. Started by study.py.
"""

import argparse
import json
import os
import pathlib
import time

import settings

# For engines side by side on one GPU: none measures what memory the others leave.
KV_CACHE_BYTES = 2 << 30
POLL_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    engine = next(one for one in (settings.FLOOR, *settings.ENGINES) if one.name == options.engine)
    llm = make(engine, options)
    prompts = json.loads((options.folder / "model/prompts.json").read_text())
    for setting in engine.settings:
        if setting.recipe is not None:
            refit(llm, options.folder / "model", setting)
        begin = time.monotonic()
        samples = sample(llm, prompts, options.tokens)
        print(f"{setting.name}: sampled in {time.monotonic() - begin:.1f} s", flush=True)
        write(options.folder / "samples", setting.name, samples | {"group": setting.group})
    if engine is settings.FLOOR:
        score_all(llm, prompts, options.folder)


def make(engine: settings.Engine, options: argparse.Namespace):
    """Starts vLLM. Eager: what is compiled differs between the engines in more than FP8."""
    model, arguments = options.folder / "model", {}
    if engine.vllm_cfg is not None:
        import fp8rt_vllm

        arguments, environment = fp8rt_vllm.vllm_kwargs(engine.vllm_cfg, model)
        os.environ.update(environment)
        arguments["hf_overrides"]["quantization_config"]["batch_invariant"] = engine.batch_invariant
        arguments["worker_extension_cls"] = "fp8rt_vllm.worker.WorkerExtension"
    elif engine.checkpoint != "bf16":
        import casts

        source, model = model, options.folder / engine.name.replace(" ", "_")
        casts.write_checkpoint(source, model, engine.checkpoint, options.device)
    if options.device == "cuda":
        arguments |= {"attention_backend": "TRITON_ATTN", "gpu_memory_utilization": 0.05}
    begin = time.monotonic()
    from vllm import LLM

    llm = LLM(
        model=str(model),
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=1024,
        kv_cache_memory_bytes=KV_CACHE_BYTES if options.device == "cuda" else None,
        enable_prefix_caching=False,
        seed=0,
        **arguments,
    )
    print(f"{engine.name}: started in {time.monotonic() - begin:.1f} s", flush=True)
    return llm


def sample(llm, prompts: list[list[int]], tokens: int) -> dict:
    """Tokens at temperature 1, and the log-probability of each as the engine saw it."""
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=1.0, max_tokens=tokens, logprobs=0, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    results = [output.outputs[0] for output in outputs]
    return {
        "tokens": [list(result.token_ids) for result in results],
        "logprobs": [
            [step[token].logprob for step, token in zip(result.logprobs, result.token_ids, strict=True)]
            for result in results
        ],
    }


def refit(llm, model: pathlib.Path, setting: settings.Setting) -> None:
    """As a trainer does that sends codes: it knows what the engine must then hold."""
    import fp8rt_vllm
    from fp8rt import comparison

    (expected,) = llm.collective_rpc(send, args=(str(model), setting.recipe, setting.scale_format, setting.broken))
    comparison.check_receipts(fp8rt_vllm.receipts(llm))
    result = comparison.compare(expected, fp8rt_vllm.fingerprint(llm))
    different = [one.name for one in result.different]
    if different != ([settings.BROKEN] if setting.broken else []) or result.left_out:
        raise RuntimeError(f"{setting.name}: other than was sent: {different}; not compared: {result.left_out}")


def send(worker, model: str, recipe: str, scale_format: str, broken: bool) -> dict:
    """Runs in the worker. Returns the fingerprints of what should have been sent."""
    import safetensors.torch

    import settings
    from fp8rt import trainer
    from fp8rt.library import Policy
    from fp8rt_vllm import refit

    policy = Policy({"fp8rt": {"weight": {"recipe": recipe, "scale_format": scale_format}}})
    outgoing = trainer.Outgoing(policy)
    weights = safetensors.torch.load_file(f"{model}/model.safetensors", device=str(worker.device))
    for name, tensor in outgoing.tensors(weights.items()):
        if broken and name == settings.BROKEN + trainer.SCALE_SUFFIX:
            tensor = tensor * 2
        refit.load_weights([(name, tensor)], worker.model_runner)
    return outgoing.expected()


def score_all(llm, prompts: list[list[int]], folder: pathlib.Path) -> None:
    """Scores each setting's samples as they come, until the file END says that no more do."""
    done = set()
    while True:
        last = (folder / "samples/END").exists()
        for path in sorted((folder / "samples").glob("*.json")):
            if path.name not in done:
                samples = json.loads(path.read_text())
                scored = score(llm, prompts, samples["tokens"])
                write(folder / "scores", samples["name"], samples | {"scored": scored})
                done.add(path.name)
        if last:
            return
        time.sleep(POLL_S)


def score(llm, prompts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
    """Log-probabilities of sampled tokens, all of a sequence at once: what a trainer computes."""
    from vllm import SamplingParams

    sequences = [[*prompt, *sampled] for prompt, sampled in zip(prompts, tokens, strict=True)]
    outputs = llm.generate(
        [{"prompt_token_ids": sequence} for sequence in sequences],
        SamplingParams(temperature=1.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True, detokenize=False),
        use_tqdm=False,
    )
    return [
        [
            step[token].logprob
            for step, token in zip(output.prompt_logprobs[len(prompt) :], sequence[len(prompt) :], strict=True)
        ]
        for prompt, sequence, output in zip(prompts, sequences, outputs, strict=True)
    ]


def write(folder: pathlib.Path, name: str, content: dict) -> None:
    """At once, so that nobody reads half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name.replace(" ", "_") + ".json")
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"name": name} | content))
    part.rename(path)


if __name__ == "__main__":
    main()
