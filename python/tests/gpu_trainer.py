#!/usr/bin/env python3
"""The trainer's side on a GPU: the bytes and fingerprints of the host, on a stream of its own, in bounded memory.

    gpu_trainer.py [--device cuda|cpu] [--layers N] [--hidden N] [--inner N]

`FP8RT_LIBRARY` names the library where the package is not installed. Needs torch, no vLLM. A part that fails leaves
what the others have; after LIMIT seconds the process ends. A table comes last; a comparison that does not hold fails
the run.
"""

import argparse
import contextlib
import faulthandler
import sys
import time
import traceback

import torch

from fp8rt import comparison
from fp8rt.library import Policy
from fp8rt.trainer import SCALE_SUFFIX, Outgoing, Shard

TURNS = 5
LIMIT = 300


def shapes(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    hidden, inner = options.hidden, options.inner
    found = {"model.embed_tokens.weight": (32000, hidden)}
    for layer in range(options.layers):
        found |= {
            f"model.layers.{layer}.input_layernorm.weight": (hidden,),
            f"model.layers.{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"model.layers.{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"model.layers.{layer}.mlp.up_proj.weight": (inner + 64, hidden),
            f"model.layers.{layer}.mlp.down_proj.weight": (hidden, inner + 64),
            f"model.layers.{layer}.mlp.experts.down_proj": (4, 384, hidden),
        }
    return found


def weights(options: argparse.Namespace, device: str):
    """One tensor at a time, the same on every device."""
    for index, (name, shape) in enumerate(shapes(options).items()):
        generator = torch.Generator().manual_seed(index)
        yield name, torch.randn(shape, generator=generator).bfloat16().to(device)


def digest(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy().tobytes()


def side_stream(device: str):
    """Not the default one: nothing may rely on it."""
    return contextlib.nullcontext() if device == "cpu" else torch.cuda.stream(torch.cuda.Stream())


def same_as_on_the_host(options: argparse.Namespace, policy: Policy) -> list[str]:
    host, device = Outgoing(policy), Outgoing(policy)
    wrong = []
    with side_stream(options.device):
        for one, other in zip(
            host.tensors(weights(options, "cpu")), device.tensors(weights(options, options.device)), strict=True
        ):
            if one[0] != other[0] or digest(one[1]) != digest(other[1]):
                wrong.append(f"{other[0]}: other bytes than on the host")
        if host.expected() != device.expected():
            wrong.append("other fingerprints than on the host")
    return wrong


def shards_add_up(options: argparse.Namespace, policy: Policy) -> list[str]:
    """Rows over two ranks, cut on a block."""
    ranks = [Outgoing(policy), Outgoing(policy)]
    whole = Outgoing(policy)
    with side_stream(options.device):
        for name, weight in weights(options, options.device):
            whole.add(name, weight)
            if weight.dim() != 2:
                for rank in ranks:
                    rank.add(name, weight)
                continue
            half = weight.shape[0] // 256 * 128
            for rank, rows in zip(ranks, (slice(0, half), slice(half, None)), strict=True):
                rank.add(name, weight[rows], Shard(tuple(weight.shape), (rows.start, 0)))
        equal = comparison.merged(rank.pieces() for rank in ranks) == whole.expected()
    return [] if equal else ["the shards' fingerprints do not add up to the whole's"]


def something_is_quantized(options: argparse.Namespace, policy: Policy) -> list[str]:
    names = {name for name, _ in Outgoing(policy).tensors(weights(options, options.device))}
    return [] if any(name.endswith(SCALE_SUFFIX) for name in names) else ["nothing was quantized"]


def memory_and_speed(options: argparse.Namespace, policy: Policy, table: list[str]) -> list[str]:
    """Beyond the trainer's own weights a refit takes what one tensor becomes."""
    if options.device == "cpu":
        table.append("memory and speed: not measured on the host")
        return []
    held = list(weights(options, options.device))
    total = sum(weight.nbytes for _, weight in held)
    largest = max(weight.nbytes for name, weight in held if policy.decide(name, tuple(weight.shape)).fp8)
    seconds = []
    for _ in range(TURNS):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, begin = torch.cuda.memory_allocated(), time.perf_counter()
        outgoing, sent = Outgoing(policy), 0
        for _, tensor in outgoing.tensors(iter(held)):
            sent += tensor.nbytes
            del tensor
        outgoing.expected()
        seconds.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() - before
    # Codes are half of the values; scales, sums and the allocator's rounding are the rest.
    allowed = largest * 0.51 + (4 << 20)
    table += [
        f"values {total / 1e9:.2f} GB, sent {sent / 1e9:.2f} GB, of these linears in half",
        f"quantized and fingerprinted in {min(seconds) * 1e3:.2f} ms, {total / min(seconds) / 1e9:.0f} GB/s",
        f"memory taken {peak / 1e6:.1f} MB, the largest linear has {largest / 1e6:.1f} MB",
    ]
    return [] if peak <= allowed else [f"took {peak} bytes, allowed {int(allowed)}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=14336)
    options = parser.parse_args()
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    failures, table = [], []
    for recipe, scale_format in (("NEMO_RL", "FP32"), ("VLLM", "POW2")):
        policy = Policy({"fp8rt": {"weight": {"recipe": recipe, "scale_format": scale_format}}})
        for part in (same_as_on_the_host, shards_add_up, something_is_quantized):
            found = attempt(part, options, policy)
            print(f"{recipe}, {scale_format}, {part.__name__}: {len(found)} wrong", flush=True)
            failures += [f"{recipe}, {scale_format}: {one}" for one in found]
    failures += attempt(memory_and_speed, options, policy, table)
    print("\n".join(table))
    for failure in failures:
        print("FAILED:", failure)
    sys.exit(bool(failures))


def attempt(part, *arguments) -> list[str]:
    """What is wrong; an error is."""
    try:
        return part(*arguments)
    except Exception as error:
        traceback.print_exc()
        return [f"{part.__name__}: {type(error).__name__}: {error}"]


if __name__ == "__main__":
    main()
