"""The ranks of a model compare their set-up once, before the model is built. Each process does it at its first layer,
and never again: ranks may make a different number of configurations, and a comparison needs all of them.
"""

import contextlib
import datetime
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

import torch

from .settings import METHOD

# What changes results or kernels. Where a file lies, and what is logged, may differ between machines.
MAY_DIFFER = ("FP8RT_LIBRARY", "FP8RT_VERBOSE", "FP8RT_KERNEL_CACHE")
VLLM_SWITCHES = (
    "VLLM_BATCH_INVARIANT",
    "VLLM_MOE_USE_DEEP_GEMM",
    "VLLM_USE_DEEP_GEMM",
    "VLLM_USE_DEEP_GEMM_E8M0",
)

# The field of a rank that could not say what its set-up is.
FAULT = "set-up"

# How long a rank waits for the others to come to their first layer.
PATIENCE = datetime.timedelta(minutes=5)

_checked = False


class DisagreementError(RuntimeError):
    """Ranks that would run one model in different ways."""


def check_once(config: Any) -> None:
    """All ranks call this, or none does; in each of them it raises if any two differ."""
    global _checked
    if _checked:
        return
    # Also if it raises: the others do not come back to compare a second time.
    _checked = True
    try:
        own = setup(config)
    except Exception as error:
        # The others wait in the comparison: they hear of it there, and raise too.
        with contextlib.suppress(DisagreementError):
            check({FAULT: f"{type(error).__name__}: {error}"})
        raise
    check(own)


def setup(config: Any) -> dict[str, str]:
    """What must be the same in all ranks, by name."""
    import vllm

    from fp8rt import library

    result = {
        "plugin": loaded(),
        "library build": library.build_info(),
        "library file": file_hash(library.file()),
        "vLLM version": vllm.__version__,
        "torch version": torch.__version__,
        "architecture": architecture(),
        "batch_invariant": json.dumps(config.batch_invariant),
    }
    result |= {f"environment {name}": value for name, value in environment().items()}
    return result | {f"setting {name}": value for name, value in flat(json.loads(config.policy.text)).items()}


def loaded() -> str:
    """A worker that gets its configuration from another process can run without the plugin, if it finds the package. It
    shall not, where others have it.
    """
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    return "loaded" if METHOD in QUANTIZATION_METHODS else "not loaded"


@functools.cache
def file_hash(path: str) -> str:
    """Two builds may say the same of themselves."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def architecture() -> str:
    from vllm.platforms import current_platform

    capability = current_platform.get_device_capability()
    device = "no GPU" if capability is None else f"sm_{capability.to_int()}"
    return f"{os.uname().machine}, {device}"


def environment() -> dict[str, str]:
    """vLLM's switches as it reads them, so that unset and the default are the same; and all of this library."""
    from vllm import envs

    switches = {name: str(getattr(envs, name)) for name in VLLM_SWITCHES}
    own = {name: value for name, value in os.environ.items() if name.startswith("FP8RT_") and name not in MAY_DIFFER}
    return switches | own


def flat(value: Any, name: str = "") -> dict[str, str]:
    """The settings one by one, "weight.recipe", so that a difference has a name."""
    if isinstance(value, dict) and value:
        parts: dict[str, str] = {}
        for key, item in value.items():
            parts |= flat(item, f"{name}.{key}" if name else key)
        return parts
    return {name: json.dumps(value)}


def check(own: dict[str, str]) -> None:
    """Gathers every rank's set-up over the world's CPU group."""
    from vllm.distributed import parallel_state

    if not torch.distributed.is_initialized() or parallel_state._WORLD is None:
        return
    world = parallel_state.get_world_group()
    if world.world_size == 1:
        return
    gathered = gather(world, own)
    if differences := compare(dict(zip(world.ranks, gathered, strict=True))):
        raise DisagreementError("the ranks of this model are not set up alike: " + "; ".join(differences))


def gather(world: Any, own: dict[str, str]) -> list[dict[str, str]]:
    """In bounded time, also where a rank never comes."""
    gathered: list[Any] = [None] * world.world_size
    try:
        torch.distributed.monitored_barrier(world.cpu_group, PATIENCE, wait_all_ranks=True)
        torch.distributed.all_gather_object(gathered, own, group=world.cpu_group)
    except RuntimeError as error:
        raise DisagreementError(
            f"the ranks of this model did not all compare their set-up within {PATIENCE.total_seconds():g} s. One that "
            f"ended before its first layer says why in its own log; without the plugin it cannot run {METHOD}: {error}"
        ) from error
    return gathered


def compare(setups: dict[int, dict[str, str]]) -> list[str]:
    """A line for each field that is not the same in all ranks, with the ranks of each value; or for each rank that
    could not say what its set-up is.
    """
    faults = {rank: setup[FAULT] for rank, setup in setups.items() if FAULT in setup}
    if faults:
        return [f"rank {rank} failed: {fault}" for rank, fault in sorted(faults.items())]
    fields = sorted({field for setup in setups.values() for field in setup})
    lines = []
    for field in fields:
        ranks: dict[str, list[int]] = {}
        for rank, values in sorted(setups.items()):
            ranks.setdefault(values.get(field, "not set"), []).append(rank)
        if len(ranks) > 1:
            shown = [f"{value} in rank{'s' * (len(who) > 1)} {spans(who)}" for value, who in ranks.items()]
            lines.append(f"{field} is {', '.join(shown)}")
    return lines


def spans(ranks: list[int]) -> str:
    """[0, 1, 2, 5] is "0-2, 5": a world may have a thousand ranks."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
