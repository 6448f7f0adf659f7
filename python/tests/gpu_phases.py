"""What gpu_vllm.py runs in processes of their own: engines, one after the other, and what is measured in them.

    gpu_phases.py PHASE --folder FOLDER --device cuda|cpu --tp N --layers N

Results go to FOLDER/PHASE.json after every step, so that a phase that fails or is ended leaves what it has.
"""

import argparse
import pathlib
import time

import engines
import scripts
from engines import ask
from scripts import Results

# The fresh start has the weights of this version, and so has the last refit.
VERSION, OTHER = 2, 1
SEQUENCES = 64


class Sizes:
    """What is generated and measured. Prompts add up to few numbers of rows, for which DeepGEMM compiles kernels."""

    def __init__(self, device: str):
        gpu = device == "cuda"
        self.bucket = (200 << 20) if gpu else 100_000
        self.batch = 8192 if gpu else 64
        self.length = 2048 if gpu else 64
        self.prompts = {"count": 8, "length": 128, "tokens": 16} if gpu else {"count": 4, "length": 16, "tokens": 8}
        # Sequences, tokens of each prompt, and tokens to generate.
        self.decode = ((8, 128, 129), (64, 16, 129)) if gpu else ((4, 4, 5), (8, 2, 5))
        self.prefill = (8, 1024) if gpu else (2, 32)
        self.repetitions = 7 if gpu else 1


class Phase:
    def __init__(self, options: argparse.Namespace):
        self.options, self.sizes = options, Sizes(options.device)
        self.folder = pathlib.Path(options.folder)
        small = engines.SMALL if options.tp == 1 else engines.ALIGNED
        shape = engines.LARGE if options.device == "cuda" else small
        self.config = shape | {"num_hidden_layers": options.layers}
        self.results = Results(self.folder / f"{options.phase}.json")

    def run(self) -> None:
        for name, steps in ENGINES[self.options.phase].items():
            self.results.run(name, steps, self, name)

    def start(self, name: str, folder: str = "bf16", eager: bool = True, **arguments):
        """Kept alive on one rank, since an engine that is freed amid the next one's start disturbs it."""
        from vllm import LLM

        gpu = self.options.device == "cuda"
        more = {"attention_backend": "TRITON_ATTN", "gpu_memory_utilization": 0.1} if gpu else {}
        if gpu and not eager:
            # Few: for each size vLLM's own FP8 compiles kernels.
            more["compilation_config"] = {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, SEQUENCES]}
        begin = time.perf_counter()
        llm = LLM(
            model=str(self.folder / folder),
            skip_tokenizer_init=True,
            enforce_eager=eager,
            max_model_len=self.sizes.length,
            max_num_batched_tokens=self.sizes.batch,
            max_num_seqs=SEQUENCES,
            kv_cache_memory_bytes=(2 << 30) if gpu else (32 << 20),
            enable_prefix_caching=False,
            tensor_parallel_size=self.options.tp,
            worker_extension_cls=engines.EXTENSION,
            seed=0,
            **more,
            **arguments,
        )
        self.results.note(name, start_s=time.perf_counter() - begin, methods=ask(llm, "methods_of_layers")[0])
        return llm

    def end(self, llm) -> None:
        if self.options.tp > 1:
            llm.llm_engine.engine_core.shutdown()

    def ours(self, name: str, **arguments):
        return self.start(name, **arguments, **engines.plugin(self.config))

    def cold(self, llm, name: str) -> None:
        """The generation of a small example with nothing compiled before: its seconds hold all compilation."""
        from vllm import SamplingParams

        length = min(64, self.sizes.length // 2)
        vocabulary = self.config["vocab_size"] - 5
        prompts = [{"prompt_token_ids": [(7 * i + j) % vocabulary + 5 for j in range(length)]} for i in range(8)]
        parameters = SamplingParams(max_tokens=16, temperature=0, logprobs=1, detokenize=False)
        begin = time.perf_counter()
        llm.generate(prompts, parameters, use_tqdm=False)
        self.results.note(name, cold_s=time.perf_counter() - begin)

    def generate(self, llm, name: str) -> None:
        generated = engines.generate(llm, self.config["vocab_size"], **self.sizes.prompts)
        self.results.note(name, **generated)

    def digests(self, llm, name: str, key: str = "digests") -> None:
        self.results.note(name, **{key: ask(llm, "digests")})

    def refit(self, llm, name: str) -> None:
        """Two, in buckets; the second one brings what the fresh start has."""
        self.results.note(name, addresses=ask(llm, "addresses"))
        for version in (OTHER, VERSION):
            receipts = ask(llm, "refit_in_buckets", version, self.sizes.bucket)
            self.results.note(name, **{f"refit_{version}": receipts})
            self.digests(llm, name, f"digests_{version}")
        self.results.note(name, addresses_after=ask(llm, "addresses"), digests=self.results[name]["digests_2"])
        import fp8rt_vllm

        self.results.note(name, fingerprints=fp8rt_vllm.fingerprint(llm)["weights"])

    def reload(self, llm, name: str) -> None:
        """Other weights, and then those of the disk again by vLLM's own reload."""
        ask(llm, "refit_in_buckets", OTHER, self.sizes.bucket)
        begin = time.perf_counter()
        ask(llm, "reload_weights")
        self.results.note(name, reload_s=time.perf_counter() - begin)
        self.digests(llm, name, "reloaded")

    def timings(self, llm, name: str) -> None:
        """Milliseconds of a decode step and of a prefill. Every workload runs once before, which compiles."""
        for count, length, tokens in self.sizes.decode:
            long, short = (self.seconds(llm, count, length, number) for number in (tokens, 1))
            self.results.note(name, **{f"decode_{count}_ms": (long - short) / (tokens - 1) * 1000})
        count, length = self.sizes.prefill
        self.results.note(name, **{f"prefill_{count * length}_ms": self.seconds(llm, count, length, 1) * 1000})

    def seconds(self, llm, count: int, length: int, tokens: int) -> float:
        from vllm import SamplingParams

        vocabulary = self.config["vocab_size"] - 5
        parameters = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
        taken = []
        for turn in range(self.sizes.repetitions + 1):
            prompts = [
                {"prompt_token_ids": [(11 * i + 17 * j + turn) % vocabulary + 5 for j in range(length)]}
                for i in range(count)
            ]
            begin = time.perf_counter()
            llm.generate(prompts, parameters, use_tqdm=False)
            taken.append(time.perf_counter() - begin)
        return sorted(taken[1:])[self.sizes.repetitions // 2]


def write(phase: Phase, name: str) -> None:
    """The checkpoints, and the fingerprints that the trainer makes of its weights. Needs the device."""
    options = phase.options
    begin = time.perf_counter()
    engines.write_checkpoints(phase.folder, phase.config, VERSION, options.device)
    found = engines.trainer_fingerprints(phase.config, VERSION, options.tp, options.device)
    phase.results.note(name, write_s=time.perf_counter() - begin, fingerprints=found)


def refitted(phase: Phase, name: str) -> None:
    llm = phase.ours(name, eager="eager" in name, load_format="dummy")
    phase.cold(llm, name)
    phase.refit(llm, name)
    phase.generate(llm, name)
    phase.timings(llm, name)
    phase.end(llm)


def fresh(phase: Phase, name: str) -> None:
    llm = phase.ours(name, eager="eager" in name)
    phase.digests(llm, name)
    phase.generate(llm, name)
    phase.reload(llm, name)
    phase.end(llm)


def serialized(phase: Phase, name: str) -> None:
    llm = phase.start(name, "fp8", quantization="fp8rt")
    phase.digests(llm, name)
    phase.generate(llm, name)
    phase.end(llm)


def plain(phase: Phase, name: str) -> None:
    """Without the plugin: bf16, or vLLM's own FP8."""
    arguments = {"folder": "fp8", "quantization": "fp8"} if "stock" in name else {}
    llm = phase.start(name, eager="eager" in name, **arguments)
    if "stock" in name:
        phase.results.note(name, kernels=ask(llm, "kernels_of_layers")[0])
    phase.cold(llm, name)
    phase.generate(llm, name)
    phase.timings(llm, name)
    phase.end(llm)


ENGINES = {
    "write": {"write": write},
    "eager": {"eager": refitted, "eager fresh": fresh, "eager serialized": serialized},
    "graphs": {"graphs": refitted, "graphs fresh": fresh},
    "bf16": {"bf16 eager": plain, "bf16 graphs": plain},
    "stock": {"stock eager": plain, "stock graphs": plain},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("phase", choices=ENGINES)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tp", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    Phase(parser.parse_args()).run()
    scripts.finish()


if __name__ == "__main__":
    main()
