"""vLLM's sleep mode: which tensors have no memory now, and which lost what they held.

Sleep unmaps memory under addresses that stay. Whoever reads or writes there meets an illegal address, which ends the
process's use of the GPU: so it is asked before, of vLLM's allocator itself. A sleep that keeps no copy (level 2) leaves
no trace after the wake: a sleep-mode backend in vLLM's registry notices it while it lasts.
"""

import bisect
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from vllm.device_allocator.sleep_mode_backend import CuMemBackend, SleepModeBackendFactory

from . import health

VLLM_BACKEND = "cumem"
BACKEND = "fp8rt_cumem"
DISCARDED = "sleep discarded the weights, as at level 2"


class NoticingBackend(CuMemBackend):
    """vLLM's own, with a look at what it discarded."""

    def suspend(self, level: int = 1) -> None:
        super().suspend(level)
        notice()

    def discard(self, tags: tuple[str, ...]) -> None:
        """Known to newer vLLMs only."""
        super().discard(tags)
        notice()


def register() -> None:
    """Once a process."""
    try:
        SleepModeBackendFactory.get_backend_class(BACKEND)
    except ValueError:
        SleepModeBackendFactory.register_backend(BACKEND, __name__, NoticingBackend.__name__)


def choose(model_config: Any) -> None:
    """Makes this process sleep with our backend. vLLM 0.25.1 has no argument for it."""
    name = getattr(model_config, "sleep_mode_backend", BACKEND)
    if name == BACKEND:
        return
    offloads = getattr(model_config, "sleep_mode_offload_cudagraph", False)
    if name == VLLM_BACKEND and not offloads:
        model_config.sleep_mode_backend = BACKEND
        return
    if not getattr(model_config, "enable_sleep_mode", False):
        return
    setting = "sleep_mode_offload_cudagraph is True" if name == VLLM_BACKEND else f"sleep_mode_backend is {name!r}"
    raise NotImplementedError(
        f"{setting}: with it fp8rt would not know which weights a sleep discards; it knows the backend "
        f"{VLLM_BACKEND!r}, without graphs in its memory"
    )


def notice() -> None:
    """Tells every model of this process whose weights are gone."""
    for model in health.all_models():
        if first(((str(n), p) for layer in model.layers for n, p in layer.named_parameters()), without_copy=True):
            model.discarded(DISCARDED)


def check_awake(what: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raises if any of the tensors has no memory."""
    if (name := first(tensors)) is not None:
        raise RuntimeError(f'fp8rt: {what} while {name} is asleep: wake_up(["weights"]) comes before')


def first(tensors: Iterable[tuple[str, torch.Tensor]], without_copy: bool = False) -> str | None:
    """The first name whose tensor is asleep, and, if asked, has no copy to wake up with."""
    spans = asleep(lambda data: not without_copy or data.cpu_backup_tensor is None)
    if not spans:
        return None
    starts = [begin for begin, _ in spans]
    for name, tensor in tensors:
        address = tensor.data_ptr()
        at = bisect.bisect_right(starts, address) - 1
        if at >= 0 and address < spans[at][1]:
            return name
    return None


def asleep(wanted: Callable[[Any], bool]) -> list[tuple[int, int]]:
    """Addresses without memory, in order. An allocator that was never used has none, and is not made here."""
    module = sys.modules.get("vllm.device_allocator.cumem")
    allocator = module.CuMemAllocator.instance if module is not None else None
    if allocator is None:
        return []
    entries = allocator.pointer_to_data.items()
    return sorted((begin, begin + data.handle[1]) for begin, data in entries if data.is_asleep and wanted(data))
