"""A Llama of random weights for real vLLM engines: its checkpoints, its trainer, and what its workers answer. Imports
torch and vLLM only where they are used, so that a process can set its environment first.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import sys
import time

import tomllib

import fp8rt_vllm
from fp8rt_vllm.worker import WorkerExtension

BLOCK = 128
EXTENSION = "engines.Extension"
# The shapes of an 8B model.
LARGE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 2,
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
# No part, shard or column count is a multiple of a block, on one rank or on two; the vocabulary is padded.
SMALL = LARGE | {
    "hidden_size": 192,
    "intermediate_size": 344,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 256,
}
# Shards of two ranks lie on blocks: codes and scales from disk can be divided.
ALIGNED = SMALL | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8}
FP8_CHECKPOINT = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}
# Which dimension tensor parallelism divides.
DIVIDED = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "gate_proj": 0, "up_proj": 0, "o_proj": 1, "down_proj": 1}
# Of scripts.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # The stock engine is to run DeepGEMM, on the scales that are there, and to compile what it meets.
    "VLLM_USE_DEEP_GEMM": "1",
    "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER": "0",
    "VLLM_USE_DEEP_GEMM_E8M0": "0",
    "VLLM_DEEP_GEMM_WARMUP": "skip",
    # No NVLink multicast: a host that is shared may not survive it.
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NCCL_NVLS_ENABLE": "0",
}
# These change what runs; whoever starts this script may have them.
UNSET = (
    "FP8RT_BACKEND",
    "FP8RT_TAKE_OVER_FP8",
    "PYTHONDONTWRITEBYTECODE",
    "VLLM_BATCH_INVARIANT",
    "VLLM_DISABLED_KERNELS",
    "VLLM_PLUGINS",
    "VLLM_TEST_FORCE_FP8_MARLIN",
)


def prepare_environment(root: pathlib.Path) -> None:
    """For engines on the CPU that start fast. Before torch and vLLM are imported."""
    # Many processes import the same: they find it compiled.
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(root / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= {
        "PYTHONPYCACHEPREFIX": sys.pycache_prefix,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # What is compiled is compiled here, and not read from an earlier run.
        "VLLM_CACHE_ROOT": str(root / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        # Else inductor tries the processor's vectors out in processes that import torch: 13 seconds.
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
    }
    install(root / "installed")


def prepare(device: str, scratch: pathlib.Path) -> None:
    """The environment of a script that compares engines, for the processes that it starts."""
    for name in UNSET:
        os.environ.pop(name, None)
    if device == "cpu":
        prepare_environment(scratch)
    else:
        install(scratch / "installed")
    # What vLLM found out about a model's class is kept there, and is no kernel: one for all processes.
    os.environ |= ENVIRONMENT | {"VLLM_CACHE_ROOT": str(scratch / "vllm")}


def install(folder: pathlib.Path) -> None:
    """Every process finds this file, and the plugin by its entry point: the installed wheel's, or else this tree's."""
    folder.mkdir(parents=True)
    tests, tree = pathlib.Path(__file__).resolve().parents[:2]
    paths = [folder, tests]
    if pathlib.Path(fp8rt_vllm.__file__).resolve().is_relative_to(tree):
        paths.append(tree)
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name="fp8rt"):
        points = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["entry-points"]
        install_points(folder, "fp8rt_vllm", points)
    sys.path[:0] = map(str, paths)
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])


def install_points(folder: pathlib.Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """What an installed wheel says of itself: groups of entry points."""
    info = folder / f"{name}-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in named.items()) for group, named in points.items()]
    (info / "entry_points.txt").write_text("".join(lines))


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of the checkpoint."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, keys = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    found = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        found |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (heads, hidden),
                "self_attn.k_proj": (keys, hidden),
                "self_attn.v_proj": (keys, hidden),
                "self_attn.o_proj": (hidden, heads),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }.items()
        }
    found["model.norm.weight"] = (hidden,)
    return found if config["tie_word_embeddings"] else found | {"lm_head.weight": (vocabulary, hidden)}


def weights(config: dict, version: int, device: str = "cpu"):
    """The trainer's weights of a version, tensor by tensor, the same in every process. Of a size that keeps values
    near 1, so that every linear has its part in what comes out.
    """
    return random(shapes(config), version, device)


def random(tensors: dict[str, tuple[int, ...]], version: int, device: str = "cpu"):
    import torch

    for index, (name, shape) in enumerate(tensors.items()):
        generator = torch.Generator(device).manual_seed(1000 * version + index)
        values = torch.randn(shape, generator=generator, device=device)
        values = 1 + 0.1 * values if len(shape) == 1 else values * shape[1] ** -0.5
        yield name, values.to(torch.bfloat16)


def quantized(weight):
    """Codes and scales of a matrix."""
    import torch

    from fp8rt import library

    library.register_ops()
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(*(-(-size // BLOCK) for size in weight.shape), device=weight.device)
    torch.ops.fp8rt.quantize_weight(weight, codes, scales)
    return codes, scales


def write_checkpoints(folder: pathlib.Path, config: dict, version: int, device: str = "cpu") -> None:
    """folder/bf16, and folder/fp8 with codes and scales."""
    kept, fp8 = {}, {}
    for name, weight in weights(config, version, device):
        kept[name] = weight.cpu()
        if "_proj" in name:
            codes, scales = quantized(weight)
            fp8 |= {name: codes.cpu(), f"{name}_scale_inv": scales.cpu()}
        else:
            fp8[name] = kept[name]
    for kind, tensors, more in (("bf16", kept, {}), ("fp8", fp8, {"quantization_config": FP8_CHECKPOINT})):
        write_checkpoint(folder / kind, config | more, tensors)


def write_checkpoint(folder: pathlib.Path, config: dict, tensors: dict) -> None:
    import safetensors.torch

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def trainer_fingerprints(config: dict, version: int, ranks: int, device: str = "cpu") -> dict[str, list[str]]:
    """By name what each rank must hold, from the trainer's weights alone. A vocabulary is divided in padded parts, and
    is not here where there are several ranks.
    """
    import torch

    from fp8rt.plan import Box, Destination, RefitPlan

    found = {}
    for name, weight in weights(config, version, device):
        dimension = DIVIDED.get(name.split(".")[-2])
        if ranks > 1 and weight.shape[0] == config["vocab_size"]:
            continue
        found[name] = []
        matrix = weight if weight.dim() == 2 else weight[None]
        for rank in range(ranks):
            first, extent = [0, 0], list(matrix.shape)
            if dimension is not None:
                extent[dimension] //= ranks
                first[dimension] = rank * extent[dimension]
            fp8 = dimension is not None
            codes = torch.empty(extent, dtype=torch.float8_e4m3fn if fp8 else weight.dtype, device=device)
            scales = torch.empty(*(-(-size // BLOCK) for size in extent), device=device) if fp8 else None
            box = Box(name, 0, (0, *first), (1, *extent), (0, 0, 0))
            plan = RefitPlan(torch.device(device), [Destination("shard", codes, scales)], [box])
            plan.begin()
            plan.run([(name, matrix, None)])
            plan.finish()
            found[name].append(plan.fingerprints()[name])
    return found


def small_engine(folder: pathlib.Path, **arguments):
    """Of a SMALL checkpoint, and small in all that takes time."""
    from vllm import LLM

    small = {
        "enforce_eager": True,
        "max_model_len": 64,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 32 << 20,
        "enable_prefix_caching": False,
        "worker_extension_cls": EXTENSION,
    }
    return LLM(model=str(folder), skip_tokenizer_init=True, **small | arguments)


def plugin(config: dict = SMALL, **settings) -> dict:
    """Arguments of LLM(...) for the plugin, the environment set, as NeMo-RL's users do."""
    kwargs, environment = fp8rt_vllm.vllm_kwargs({"precision": "fp8"} | settings, config)
    os.environ |= environment
    return kwargs


def ask(llm, method: str, *arguments) -> list:
    """What each rank answers."""
    return llm.collective_rpc(method, args=arguments)


def generate(llm, vocabulary: int, count: int = 8, length: int = 24, tokens: int = 12, decoded=None) -> dict:
    """Greedy tokens of fixed prompts, and the log-probabilities of the prompts' own tokens; with decoded=1 those of
    the tokens too.
    """
    from vllm import SamplingParams

    prompts = [
        {"prompt_token_ids": [(7 * i + 13 * j + i * j) % (vocabulary - 5) + 5 for j in range(length)]}
        for i in range(count)
    ]
    parameters = SamplingParams(
        max_tokens=tokens,
        temperature=0,
        logprobs=decoded,
        prompt_logprobs=1,
        ignore_eos=True,
        detokenize=False,
    )
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    found = {
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "logprobs": [
            step[token].logprob
            for output in outputs
            for step, token in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)
        ],
    }
    if decoded:
        made = [output.outputs[0] for output in outputs]
        steps = [pair for one in made for pair in zip(one.logprobs, one.token_ids, strict=True)]
        found["logprobs"] += [step[token].logprob for step, token in steps]
    return found


def gap(mine: list[float], other: list[float]) -> float:
    """Mean distance of log-probabilities of the same tokens."""
    return sum(abs(a - b) for a, b in zip(mine, other, strict=True)) / len(mine)


def buckets(tensors, buffer):
    """Of half of the buffer, which the next bucket overwrites. What is larger comes as it is."""
    import torch

    bucket, used, most = [], 0, buffer.nbytes // 2
    for name, weight in tensors:
        if bucket and used + weight.nbytes > most:
            yield bucket
            bucket, used = [], 0
        if weight.nbytes <= most:
            room = buffer[used : used + weight.nbytes]
            used += -(-weight.nbytes // 256) * 256
            weight = room.view(torch.bfloat16).view(weight.shape).copy_(weight)
        bucket.append((name, weight))
    yield bucket


class Extension(WorkerExtension):
    """A trainer's side in the worker, and what the tests ask of it."""

    def refit_in_buckets(self, version: int, bucket_bytes: int) -> dict:
        """Buckets lie in one buffer, which the next one overwrites once the call has returned."""
        import torch

        from fp8rt_vllm import refit

        config = self.model_config.hf_config.to_dict()
        buffer = torch.empty(2 * bucket_bytes, dtype=torch.uint8, device=self.device)
        seconds, count = 0.0, 0
        for bucket in buckets(weights(config, version, str(self.device)), buffer):
            synchronize(self.device)
            begin = time.perf_counter()
            refit.load_weights(bucket, self.model_runner)
            seconds, count = seconds + time.perf_counter() - begin, count + 1
        synchronize(self.device)
        # What is read after the call has returned is wrong.
        buffer.fill_(0x7F)
        self.pack_again()
        return refit.receipt(self.model_runner) | {"buckets": count, "enqueue_s": seconds}

    def pack_again(self) -> None:
        """vLLM multiplies on the CPU by packed copies of weights that are not quantized: here the head's."""
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)

    def digests(self) -> dict[str, str]:
        """Of every tensor: a refit and a fresh start must agree."""
        import torch

        return {
            name: hashlib.sha256(
                tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes()
            ).hexdigest()
            for name, tensor in self.tensors_of_model().items()
        }

    def addresses(self) -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in self.tensors_of_model().items()}

    def tensors_of_model(self) -> dict:
        """Parameters, and the scales beside them."""
        model = self.model_runner.get_model()
        found = dict(model.named_parameters())
        for prefix, module in model.named_modules():
            if hasattr(module, "fp8rt"):
                found[f"{prefix}.weight_scale_inv"] = module.weight_scale_inv
        return found

    def spoil_scale(self, name: str, factor: float) -> None:
        """One wrong scale: the first block of a weight."""
        self.tensors_of_model()[name][0, 0] *= factor

    def methods_of_layers(self) -> dict[str, str]:
        """Which class of linear method each layer has."""
        model = self.model_runner.get_model()
        return {
            name: type(module.quant_method).__name__
            for name, module in model.named_modules()
            if name.endswith("_proj") and hasattr(module, "quant_method")
        }

    def node_of_ray(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()

    def kernels_of_layers(self) -> list[str]:
        """Which kernels vLLM's own FP8 chose."""
        modules = self.model_runner.get_model().modules()
        methods = [getattr(module, "quant_method", None) for module in modules]
        return sorted({type(m.fp8_linear).__name__ for m in methods if hasattr(m, "fp8_linear")})


def synchronize(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
