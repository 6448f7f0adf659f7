"""Multi-head latent attention. After loading, vLLM derives from kv_b_proj the matrices that decoding multiplies by, and
CUDA graphs hold their addresses. Here they follow kv_b_proj, in the storage that they had first.
"""

import functools
import weakref
from collections.abc import Collection
from typing import Any

import torch

from .layer import states

# What vLLM derives, by version and backend: tensors or parameters, and views of kv_b_proj where that is not in FP8.
DERIVED = ("W_UV", "W_UK_T", "W_UK_T_dcp_qrep", "W_K", "W_K_scale", "W_V", "W_V_scale")

_KEPT: "weakref.WeakKeyDictionary[torch.nn.Module, dict[str, torch.Tensor]]" = weakref.WeakKeyDictionary()


def follow(layer: torch.nn.Module) -> None:
    """Remembers what an attention layer has derived; what it derives later goes to the same place.

    vLLM asks the configuration for a layer's method once more when it has derived everything, after each load and
    reload: that is when this is called.
    """
    found = derived(layer)
    if not found:
        return
    kept = _KEPT.setdefault(layer, {})
    for name, new in found.items():
        old = kept.setdefault(name, new)
        if same(old, new):
            continue
        if (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
            raise RuntimeError(
                f"fp8rt: {name} of {getattr(layer, 'layer_name', 'an attention layer')} is {list(new.shape)} of "
                f"{new.dtype}, was {list(old.shape)} of {old.dtype}"
            )
        old.data.copy_(new)
        setattr(layer, name, old)
    state = states(projection(layer)).get("weight")
    if state is not None:
        state.after_load = functools.partial(loaded, weakref.ref(layer))


def check(layer: torch.nn.Module, quantized: bool, attention_config: Any) -> None:
    """When the layer is made. `quantized`: its cache is in FP8."""
    if not (quantized and getattr(attention_config, "use_prefill_query_quantization", False)):
        return
    if states(projection(layer)):
        raise ValueError(
            f"fp8rt: {layer.layer_name}: use_prefill_query_quantization is true, by which vLLM casts the input of "
            "kv_b_proj to E4M3 without a scale, and kv_b_proj takes 16 bits; keep it false, or keep kv_b_proj by a rule"
        )


def derived(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: getattr(layer, name, None) for name in DERIVED}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they are the same memory, seen in the same way."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())


def projection(layer: torch.nn.Module) -> torch.nn.Module:
    """Its kv_b_proj, without what LoRA puts around it."""
    linear = layer.kv_b_proj
    return getattr(linear, "base_layer", linear)


def refresh(layer: torch.nn.Module) -> None:
    """Derives anew by vLLM's own code, into the old storage."""
    layer.process_weights_after_loading(projection(layer).params_dtype)
    # Of a layer that does not ask this plugin's configuration.
    follow(layer)


def loaded(layer: weakref.ref) -> None:
    """A loader has filled kv_b_proj. Amid vLLM's reload the layer has no memory, and is processed at its end."""
    attention = layer()
    if attention is not None and not any(tensor.is_meta for tensor in (*attention.parameters(), *attention.buffers())):
        refresh(attention)


class Derivations:
    """The attention layers of a model that derive matrices, by the names of the parameters they derive them from."""

    def __init__(self, model: torch.nn.Module):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._layers: dict[str, list[torch.nn.Module]] = {}
        for layer in model.modules():
            if hasattr(layer, "kv_b_proj") and hasattr(layer, "process_weights_after_loading") and derived(layer):
                follow(layer)
                for parameter in projection(layer).parameters():
                    if id(parameter) in names:
                        self._layers.setdefault(names[id(parameter)], []).append(layer)

    def refresh(self, filled: Collection[str] | None) -> None:
        """After a bucket that filled these parameters; None: nobody knows which. A parameter comes whole, so that a
        layer is derived once a refit.
        """
        # In the same order on every rank: what is derived may be gathered from all of them.
        names = [name for name in self._layers if filled is None or name in filled]
        layers = {id(layer): layer for name in names for layer in self._layers[name]}
        for layer in layers.values():
            refresh(layer)
