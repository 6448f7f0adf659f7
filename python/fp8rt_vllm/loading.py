"""Weight loaders around vLLM's own: its copies are recorded with a source without memory, and quantized into place."""

from collections.abc import Collection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import sleeping
from .layer import BLOCK, Axes, LayerState, Region, blocks, view

PADDING = (torch.ops.aten.fill_.Scalar, torch.ops.aten.zero_.default)


class CopyRecorder(TorchDispatchMode):
    """Holds back every copy from a meta tensor, and notes it as (destination, source). Other ops run, but not those
    that compute what they write to a protected storage: `computed` counts them. Filling with a constant is padding.
    """

    def __init__(self, protected: Collection[int] = ()):
        super().__init__()
        self.protected = protected
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.computed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.copy_.default and args[1].is_meta:
            self.copies.append((args[0], args[1]))
            return args[0]
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("dtype") in (None, args[0].dtype):
            # To another device: the stand-in stays what it is.
            return args[0].detach()
        if func._schema.is_mutable and func not in PADDING and self._is_protected(args):
            self.computed += 1
            return args[0]
        return func(*args, **kwargs)

    def by_source(self, sources: dict[str, torch.Tensor]) -> dict[str | None, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The copies by the name of their source; under None those from none of these."""
        names = {source.untyped_storage()._cdata: name for name, source in sources.items()}
        found: dict[str | None, list] = {}
        for to, come in self.copies:
            found.setdefault(names.get(come.untyped_storage()._cdata), []).append((to, come))
        return found

    def _is_protected(self, args: tuple) -> bool:
        target = args[0] if args else None
        return (
            isinstance(target, torch.Tensor)
            and not target.is_meta
            and target.untyped_storage().data_ptr() in self.protected
        )


class CastGuard(TorchDispatchMode):
    """Refuses a copy of values into codes: torch would cast them without a scale. `codes`: storage to name."""

    def __init__(self, codes: dict[int, str]):
        super().__init__()
        self.codes = codes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and args[0].dtype == torch.float8_e4m3fn != args[1].dtype:
            name = None if args[0].is_meta else self.codes.get(args[0].untyped_storage().data_ptr())
            if name is not None:
                raise RuntimeError(f"fp8rt: {name}: a loader casts {args[1].dtype} to codes without scales")
        return func(*args, **(kwargs or {}))


def stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """A packed tensor of the same shape and type without memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def box(part: torch.Tensor, whole: torch.Tensor) -> tuple[Axes, Axes] | None:
    """Where a view of a packed tensor begins, and its extents; None if it is no box of the same axes."""
    if whole.dim() > 3 or part.dim() > 3 or not packed(whole) or not part.numel():
        return None
    limit, steps = three_axes(whole)
    extent, stride = three_axes(part)
    offset, first = part.storage_offset() - whole.storage_offset(), [0, 0, 0]
    for axis in sorted((axis for axis in range(3) if limit[axis] > 1), key=lambda axis: -steps[axis]):
        first[axis], offset = divmod(offset, steps[axis])
    straight = all(
        first[axis] + extent[axis] <= limit[axis] and (extent[axis] == 1 or stride[axis] == steps[axis])
        for axis in range(3)
    )
    return (tuple(first), extent) if straight else None


def packed(tensor: torch.Tensor) -> bool:
    """Whether it fills its memory without gaps, in any order of its axes."""
    return tensor.permute(sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))).is_contiguous()


def three_axes(tensor: torch.Tensor) -> tuple[Axes, Axes]:
    """Extents and strides as (experts, rows, columns): a vector is one row."""
    missing = 3 - tensor.dim()
    return (1,) * missing + tuple(tensor.shape), (0,) * missing + tuple(tensor.stride())


def region_of(destination: torch.Tensor, parameter: torch.Tensor, source: torch.Tensor, whole: torch.Tensor) -> Region:
    """What a copy does, or ValueError."""
    to, come = box(destination, parameter), box(source, whole)
    if to is None or come is None or to[1] != come[1]:
        raise ValueError("the loader copies something that is not a box of the tensor")
    return Region(come[0], to[1], to[0])


def record(
    state: LayerState, param: torch.Tensor, loaded_weight: torch.Tensor, args: tuple, kwargs: dict
) -> list[Region]:
    """The copies that vLLM's loader makes for this call, recorded at the first one."""
    key = (tuple(loaded_weight.shape), args, tuple(sorted(kwargs.items())))
    if key not in state.regions:
        # Of the codes' type: vLLM warns of loaders that cast.
        source = torch.empty(loaded_weight.shape, dtype=param.dtype, device="meta")
        with CopyRecorder() as recorder:
            state.loader(param, source, *args, **kwargs)
        if not recorder.copies:
            raise RuntimeError(
                f"fp8rt: {state.prefix}: the weight loader copied nothing; one that writes by another "
                "op cannot be quantized"
            )
        state.regions[key] = [region_of(to, param.data, come, source) for to, come in recorder.copies]
    return state.regions[key]


def load_weight(
    self: torch.nn.Module, param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any
) -> None:
    """The loader of a linear's weight."""
    fill(self.fp8rt["weight"], self.weight_scale_inv, param, loaded_weight, args, kwargs)


def load_scales(
    self: torch.nn.Module, param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any
) -> None:
    """The loader of a serialized linear's scales."""
    fill_scales(self.fp8rt["weight"], param, loaded_weight, args, kwargs)


def fill(
    state: LayerState, scales: torch.Tensor, param: torch.Tensor, loaded_weight: torch.Tensor, args: tuple, kwargs: dict
) -> None:
    """Values are quantized, codes copied, to where vLLM's loader would. A parameter on meta is counted by vLLM."""
    if param.is_meta or loaded_weight.is_meta:
        state.loader(param, loaded_weight, *args, **kwargs)
        return
    sleeping.check_awake("a weight is loaded", [(state.prefix, param), (state.prefix, scales)])
    state.touched()
    regions = record(state, param, loaded_weight, args, kwargs)
    codes = loaded_weight.dtype == torch.float8_e4m3fn
    if not codes and loaded_weight.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"fp8rt: {state.prefix}: a weight of {loaded_weight.dtype}")
    for region in regions:
        source = view(loaded_weight, region.source_first, region.extent).to(param.device)
        target = view(param.data, region.destination_first, region.extent)
        state.weights[region] = None
        if codes:
            target.copy_(source)
            continue
        held = state.block_rows(region)[2]
        torch.ops.fp8rt.quantize_weight(
            # A slab may be stored with its rows and columns swapped.
            source if source.stride(-1) == 1 else source.contiguous(),
            target,
            state.scale_view(scales.data, region),
            state.decision.weight_recipe,
            state.decision.weight_scale_format,
            None,
            held if len(held) > 1 else None,
        )
        state.scales[region] = None
    waiting = state.waiting.pop(call_of(args, kwargs), None)
    if waiting is not None:
        fill_scales(state, scales, waiting, args, kwargs)
    elif state.after_load is not None:
        state.after_load()


def fill_scales(state: LayerState, param: torch.Tensor, loaded_weight: torch.Tensor, args: tuple, kwargs: dict) -> None:
    """They go where the codes of the same call went."""
    grid = tuple(loaded_weight.shape)
    regions = next(
        (
            regions
            for (shape, *call), regions in state.regions.items()
            if tuple(call) == call_of(args, kwargs) and grid_of(shape) == grid
        ),
        None,
    )
    if regions is None and param.is_meta:
        state.loader(param, loaded_weight, *args, **kwargs)
        return
    if regions is None:
        state.waiting[call_of(args, kwargs)] = loaded_weight.clone()
        return
    for region in regions:
        expert, row, column = region.source_first
        if row % BLOCK or column % BLOCK:
            raise ValueError(
                f"fp8rt: {state.prefix}: this rank's codes begin at {(row, column)}, inside of a "
                "block; a checkpoint that is quantized already cannot be cut there"
            )
        target = state.scale_view(param.data, region)
        target.copy_(view(loaded_weight, (expert, row // BLOCK, column // BLOCK), tuple(target.shape)))
        if not param.is_meta:
            state.scales[region] = None
    if state.after_load is not None and not param.is_meta:
        state.after_load()


def grid_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight's scales."""
    return (*shape[:-2], *map(blocks, shape[-2:]))


def call_of(args: tuple, kwargs: dict) -> tuple:
    """What tells one call of a loader from another."""
    return args, tuple(sorted(kwargs.items()))
