"""Scales of an FP8 KV cache. vLLM makes parameters for them (k_scale and so on), computes from these what attention
reads (the buffers _k_scale and so on, and copies in Python), and deletes them: what a refit brings later is dropped in
silence. Here the parameters stay, and a refit writes what vLLM would compute from them into the same buffers.
"""

import math
import re
import types
import weakref
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from vllm.config.vllm import get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.model_executor.layers.quantization import kv_cache
from vllm.model_executor.layers.quantization.fp8 import Fp8KVCacheMethod

from fp8rt.plan import Destination, RefitPlan

from . import loading

logger = init_logger(f"vllm.{__name__}")

KINDS = ("k_scale", "v_scale", "q_scale", "prob_scale")
# How a checkpoint's names of them end, in all the forms that vLLM knows.
NAMED = re.compile(
    r"\.(([qkv]|kv|prob)_scale|[qkv]_proj\.output_scale|prob_output_scale|q\.scale|[kv]_cache\.scale)$"
)
# vLLM's own sign that a scale did not come.
ABSENT = -1.0
# Attention whose kernels read the buffers at every launch, also in a captured graph; on the CPU the copies in Python,
# at every call. Others keep the copies in Python, or products of them, or have them in a captured graph.
READ_ANEW = frozenset({"CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN"})


class Slot(NamedTuple):
    """Where a scale belongs: a layer by its name in the model, and one of KINDS."""

    layer: str
    kind: str


class Fp8rtKVCacheMethod(Fp8KVCacheMethod):
    """One for each attention layer. A cache that is not in FP8, or whose scales are calculated, is left to vLLM."""

    # What another process prepared has no parameters.
    supports_pre_processed_weights = False

    def __init__(self, quant_config: Any):
        super().__init__(quant_config)
        config = get_current_vllm_config_or_none()
        self.dummy = config is not None and config.load_config.load_format == "dummy"
        # Whether scales are loaded, and kept. Known when the layer is.
        self.static: bool | None = None
        self.calculated = False
        self.settled = False

    def create_weights(self, layer: torch.nn.Module) -> None:
        """On the host, where vLLM decides by them: nothing waits for the device, and they outlive a sleep that gives
        its memory up. In float32: vLLM makes them of the model's type when it starts, which rounds what is loaded, and
        of float32 when it reloads, for which it calls this anew.
        """
        if self.static is None:
            quantized = kv_cache.is_quantized_kv_cache(layer.kv_cache_dtype)
            dynamic = kv_cache.kv_cache_uses_per_token_head_scales(layer.kv_cache_dtype)
            # Gone after vLLM 0.25.1, which sets it to False at the first prompt.
            self.calculated = quantized and getattr(layer, "calculate_kv_scales", False)
            self.static = quantized and not dynamic and not self.calculated
            if self.calculated:
                logger.warning_once(
                    "fp8rt: calculate_kv_scales: the first prompt decides the scales of the KV cache, for all refits"
                )
        with torch.device("cpu"):
            super().create_weights(layer)
        for kind in KINDS if self.static else ():
            scale = getattr(layer, kind)
            scale.data = scale.data.float()

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """May be called again: what was loaded is still there."""
        if self.dummy:
            # Random numbers, of either sign, in what is loaded and in what is read.
            for kind in KINDS:
                getattr(layer, kind).fill_(ABSENT)
                getattr(layer, f"_{kind}").fill_(1.0)
            self.dummy = False
        if not self.static:
            super().process_weights_after_loading(layer)
            return
        given = loaded(layer)
        self.write(layer, given, self.resolve(layer, given))

    def resolve(self, layer: torch.nn.Module, given: dict[str, float]) -> types.SimpleNamespace:
        """What attention is to read, by vLLM's own rules, which run on a stand-in of the layer on the host. Raises
        before anything is written.
        """
        for kind, value in given.items():
            if value != ABSENT:
                check_scale(f"{layer.layer_name}.{kind}", value)
        if given["v_scale"] != ABSENT == given["k_scale"]:
            raise ValueError(f"fp8rt: {layer.layer_name}: v_scale is {given['v_scale']}, and there is no k_scale")
        host = types.SimpleNamespace(kv_cache_dtype=layer.kv_cache_dtype, calculate_kv_scales=False)
        for kind, value in given.items():
            setattr(host, kind, torch.tensor(value, dtype=torch.float32, device="cpu"))
            for name in (f"_{kind}", f"_{kind}_cpu"):
                setattr(host, name, torch.ones((), dtype=torch.float32, device="cpu"))
        with torch.device("cpu"):
            super().process_weights_after_loading(host)
        if self.settled:
            check_changeable(layer, host)
        return host

    def write(self, layer: torch.nn.Module, given: dict[str, float], host: types.SimpleNamespace) -> None:
        """Enqueues the buffers on torch's current stream; waits for nothing."""
        for kind, value in given.items():
            getattr(layer, kind).fill_(value)
        for name, value in vars(host).items():
            if name.endswith("_scale_float"):
                setattr(layer, name, value)
            elif name.startswith("_") and hasattr(layer, name):
                getattr(layer, name).fill_(value.item())
        self.settled = True


def loaded(layer: torch.nn.Module) -> dict[str, float]:
    return {kind: getattr(layer, kind).item() for kind in KINDS}


def check_scale(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"fp8rt: {name} is {value}, must be positive and finite")


def check_changeable(layer: torch.nn.Module, host: types.SimpleNamespace) -> None:
    """The copies in Python are of the same numbers as the buffers, the one of prob_scale aside, which nobody reads."""
    backend = layer.attn_backend.get_name()
    for kind in ("k_scale", "v_scale", "q_scale"):
        old, new = (getattr(where, f"_{kind}_float") for where in (layer, host))
        if old != new and backend not in READ_ANEW:
            raise NotImplementedError(
                f"fp8rt: {layer.layer_name}: {kind} changes from {old} to {new}, and {backend} would go on with {old}; "
                f"of the attention backends {', '.join(sorted(READ_ANEW))} read a scale anew"
            )


class CacheScales:
    """The scales of a model's KV caches in its refits. They are staged as they arrive, and take effect together:
    checked on the host, with one copy from the device however many there are, before any is written.
    """

    def __init__(self, model: torch.nn.Module):
        self._model = weakref.ref(model)
        methods = {name: getattr(module, "quant_method", None) for name, module in model.named_modules()}
        own = {name: method for name, method in methods.items() if isinstance(method, Fp8rtKVCacheMethod)}
        self._layers = {name: model.get_submodule(name) for name, method in own.items() if method.static}
        self._calculated = any(method.calculated for method in own.values())
        # Numbers of the layers whose scale is 1: vLLM has no parameters for those of MLA.
        self._fixed = {number(name) for name, module in model.named_modules() if fixed(module)}
        # By the checkpoint's names; None: there is none, and it must be 1.
        self.names: dict[str, Slot | None] = {}
        # Those that vLLM drops, whatever they are.
        self._dropped: set[str] = set()
        self._staged: dict[str, torch.Tensor] = {}
        self._arrived: set[str] = set()

    def take(self, items: list, known: Collection[str], protected: Collection[int]) -> list:
        """Stages what is a scale, and returns the rest. `known`: names that are none."""
        scalars = [
            (name, weight) for name, weight, _ in items if weight.numel() == 1 and (self._layers or NAMED.search(name))
        ]
        seen = (known, self.names, self._dropped)
        new = [(name, weight) for name, weight in scalars if not any(name in names for names in seen)]
        self._learn(new, protected)
        for name, weight in scalars:
            if name in self.names:
                # The caller reuses its buffer.
                self._staged[name] = weight.detach().reshape(()).to(torch.float32, copy=True)
                self._arrived.add(name)
        return [item for item in items if item[0] not in self.names and item[0] not in self._dropped]

    def _learn(self, new: list[tuple[str, torch.Tensor]], protected: Collection[int]) -> None:
        """Where the model's own loader puts them, by whatever names."""
        if not new:
            return
        slots = {
            getattr(layer, kind).untyped_storage().data_ptr(): Slot(name, kind)
            for name, layer in self._layers.items()
            for kind in KINDS
        }
        sources = {name: loading.stand_in(weight) for name, weight in new}
        with loading.CopyRecorder(protected) as recorder:
            self._model().load_weights(iter(sources.items()))
        copies = recorder.by_source(sources)
        for name, pairs in copies.items():
            for to, _ in pairs:
                slot = slots.get(to.untyped_storage().data_ptr())
                if name is not None and slot is not None:
                    self.names[name] = slot
        for name in sources.keys() - copies.keys():
            if NAMED.search(name) and not recorder.computed:
                self._drop(name)

    def _drop(self, name: str) -> None:
        """The model's loader does nothing with it."""
        if self._calculated:
            raise ValueError(f"fp8rt: {name} arrived, and calculate_kv_scales is true: one of the two decides")
        if number(name) in self._fixed:
            self.names[name] = None
        else:
            self._dropped.add(name)

    def apply(self) -> None:
        """What was staged takes effect, or nothing of it, and then it stays staged: a better value replaces it."""
        if not self._staged:
            return
        values = on_host(self._staged)
        given: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            check_scale(name, value)
            slot = self.names[name]
            if slot is not None:
                given.setdefault(slot.layer, loaded(self._layers[slot.layer]))[slot.kind] = value
            elif value != 1:
                raise NotImplementedError(f"fp8rt: {name} is {value}; vLLM's attention of this kind has only 1")
        # Its k_scale comes in another bucket.
        early = {name for name, scales in given.items() if scales["v_scale"] != ABSENT == scales["k_scale"]}
        layers = [(self._layers[name], scales) for name, scales in given.items() if name not in early]
        found = [(layer, scales, layer.quant_method.resolve(layer, scales)) for layer, scales in layers]
        for layer, scales, host in found:
            layer.quant_method.write(layer, scales, host)
        self._staged = {
            name: staged for name, staged in self._staged.items() if (slot := self.names[name]) and slot.layer in early
        }

    def finish(self) -> None:
        """Ends a refit. They may stay as they are; but one that brings some of them brings all that ever came."""
        self.apply()
        if self._staged:
            raise RuntimeError(f"fp8rt: {min(self._staged)} arrived without a k_scale")
        places = {self.names[name] for name in self._arrived}
        missing = sorted(name for name, slot in self.names.items() if slot not in places)
        if self._arrived and missing:
            raise RuntimeError(
                f"fp8rt: {missing[0]} did not arrive, and {len(self._arrived)} other scales of the KV cache did; "
                f"{len(missing)} are missing"
            )
        self._arrived.clear()

    def begin(self) -> None:
        """Gives up what did not take effect."""
        self._staged.clear()
        self._arrived.clear()

    def fingerprints(self, device: torch.device) -> dict[str, str]:
        """Of what kernels read: by the checkpoint's names where a refit told them, else by the model's."""
        if not self._layers:
            return {}
        told = {slot: name for name, slot in self.names.items()}
        destinations = [
            Destination(told.get(Slot(name, kind), f"{name}.{kind}"), getattr(layer, f"_{kind}").view(1), partly=True)
            for name, layer in self._layers.items()
            for kind in KINDS
        ]
        return RefitPlan(device, destinations, []).fingerprints()


def on_host(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """The values, by one copy from each device that has some."""
    values: dict[str, float] = {}
    for device in {tensor.device for tensor in tensors.values()}:
        names = [name for name, tensor in tensors.items() if tensor.device == device]
        values |= zip(names, torch.stack([tensors[name] for name in names]).tolist(), strict=True)
    return values


def number(name: str) -> int | None:
    """Of a layer, from a name of the model or of the checkpoint."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def fixed(module: torch.nn.Module) -> bool:
    """Attention over a quantized cache for which vLLM loads no scales."""
    dtype = getattr(module, "kv_cache_dtype", None)
    return hasattr(module, "kv_b_proj") and isinstance(dtype, str) and kv_cache.is_quantized_kv_cache(dtype)
