"""Weights of bf16 into codes and scales, through vLLM's own loaders.

At a weight's first arrival vLLM's loader runs once on stand-ins without memory, and the copies that it makes are recorded:
which slice of the source goes to which region of the parameter. That covers tensor parallelism, fused weights and whatever
else a loader does, with no table of names. Later arrivals replay the record.
"""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fp8rt_vllm.library import Decision

BLOCK = 128


def blocks(extent: int) -> int:
    return -(-extent // BLOCK)


class Grid:
    """Blocks of a merged weight: parts that are no multiples of 128 rows have a grid each."""

    def __init__(self, parts: list[int], columns: int) -> None:
        self.rows, self.columns = sum(parts), columns
        aligned = all(part % BLOCK == 0 for part in parts[:-1])
        # What the ops take: None is one grid.
        self.part_rows = None if aligned else list(parts)
        self.parts = [self.rows] if aligned else list(parts)
        self.scale_rows, self.scale_columns = sum(map(blocks, self.parts)), blocks(columns)

    def scale_row(self, row: int, count: int) -> int:
        """The row of scales of weight row `row`, from which on `count` rows are one region: of one part, on blocks."""
        first, bands = 0, 0
        for part in self.parts:
            if row < first + part:
                inside = row - first
                if inside % BLOCK or inside + count > part or ((inside + count) % BLOCK and inside + count != part):
                    raise ValueError(f"rows {row} to {row + count} cut through a block of the part at rows {first} to "
                                     f"{first + part}")
                return bands + inside // BLOCK
            first, bands = first + part, bands + blocks(part)
        raise ValueError(f"row {row} is beyond the weight's {self.rows} rows")


@dataclass(frozen=True)
class Region:
    """A slice of the source, as a strided view, and the rows and columns that it fills."""

    shape: tuple[int, ...]
    source_offset: int
    source_stride: tuple[int, ...]
    row: int
    column: int


class Recorder(TorchDispatchMode):
    """Sees the copies that a loader makes from one tensor into another, both without memory."""

    def __init__(self, target: torch.Tensor, source: torch.Tensor) -> None:
        super().__init__()
        self.target, self.source = target.untyped_storage()._cdata, source.untyped_storage()._cdata
        self.columns, self.regions = target.shape[-1], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default and self._is(args[0], self.target):
            self._copied(*args[:2])
            return args[0]
        if func._schema.is_mutable and args and self._is(args[0], self.target):
            raise ValueError(f"a loader writes a weight by {func}, fp8rt records copies alone")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _is(tensor: Any, storage: int) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata == storage

    def _copied(self, into: torch.Tensor, source: torch.Tensor) -> None:
        if not self._is(source, self.source):
            raise ValueError("a loader copies something else than a slice of the weight that came")
        if into.shape != source.shape or into.dim() != 2 or into.stride() != (self.columns, 1):
            raise ValueError(f"a loader copies {tuple(source.shape)} into {tuple(into.shape)}, strides {into.stride()}")
        row, column = divmod(into.storage_offset(), self.columns)
        self.regions.append(Region(tuple(source.shape), source.storage_offset(), source.stride(), row, column))


def record(loader: Callable, param: torch.Tensor, weight: torch.Tensor, args: tuple, kwargs: dict) -> list[Region]:
    """The copies that vLLM's loader would make of this weight into this parameter."""
    meta = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="meta")
    target = torch.empty(param.shape, dtype=weight.dtype, device="meta")
    stand_in = type(param)(data=target, input_dim=1, output_dim=0, weight_loader=loader)
    stand_in.__dict__.update({key: value for key, value in param.__dict__.items() if key != "_weight_loader"})
    with torch.no_grad(), Recorder(stand_in.data, meta) as recorder:
        loader(stand_in, meta, *args, **kwargs)
    if not recorder.regions:
        raise ValueError(f"a loader copied nothing of a weight of shape {tuple(weight.shape)}")
    return recorder.regions


@dataclass
class Bucket:
    """What is to be quantized together: one launch for each recipe, format and dtype."""

    groups: dict[tuple, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = field(default_factory=dict)
    filled: int = 0

    def add(self, decision: Decision, source: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
        key = decision.weight_recipe, decision.weight_scale_format
        self.groups.setdefault(key, []).append((source, codes, scales))
        self.filled += codes.numel()

    def flush(self) -> None:
        """Enqueues on torch's current stream; the sources may be changed by what is enqueued after."""
        for (recipe, scale_format), entries in self.groups.items():
            sources, codes, scales = map(list, zip(*entries))
            torch.ops.fp8rt.quantize_weights(sources, codes, scales, recipe, scale_format)
        self.groups = {}


_open: list[Bucket] = []


@contextlib.contextmanager
def bucket() -> Iterator[Bucket]:
    """Until this ends, weights that arrive are quantized together."""
    own = Bucket()
    _open.append(own)
    try:
        yield own
        own.flush()
    finally:
        _open.pop()


def quantizing_loader(layer: torch.nn.Module, decision: Decision, theirs: Callable) -> Callable:
    """A weight_loader: codes go the way of vLLM's own, anything else is quantized from its own slice."""
    records: dict[tuple, list[Region]] = {}

    @functools.wraps(theirs)
    def load(param: torch.Tensor, loaded_weight: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if loaded_weight.dtype == torch.float8_e4m3fn:
            return theirs(param, loaded_weight, *args, **kwargs)
        key = (tuple(loaded_weight.shape), loaded_weight.stride(), args, tuple(sorted(kwargs.items())))
        if key not in records:
            records[key] = record(theirs, param, loaded_weight, args, kwargs)
        if param.is_meta:
            # vLLM's layerwise reload counts copies on tensors without memory before it loads.
            for region in records[key]:
                rows, columns = region.shape
                param.data[region.row:region.row + rows, region.column:region.column + columns].copy_(
                    torch.empty(region.shape, dtype=param.dtype, device="meta"))
            return None
        into = _open[-1] if _open else Bucket()
        for region in records[key]:
            fill(into, layer, decision, param, loaded_weight, region)
        if not _open:
            into.flush()
        return None

    return load


def fill(into: Bucket, layer: torch.nn.Module, decision: Decision, param: torch.Tensor, weight: torch.Tensor,
         region: Region) -> None:
    rows, columns = region.shape
    grid, scales = layer.fp8rt_grid, layer.weight_scale_inv
    if region.column % BLOCK or (columns % BLOCK and region.column + columns != grid.columns):
        raise ValueError(f"columns {region.column} to {region.column + columns} cut through a block")
    scale_row, scale_column = grid.scale_row(region.row, rows), region.column // BLOCK
    source = weight.detach().as_strided(region.shape, region.source_stride, weight.storage_offset() + region.source_offset)
    into.add(decision, source.to(param.device),
             param.data[region.row:region.row + rows, region.column:region.column + columns],
             scales.data[scale_row:scale_row + blocks(rows), scale_column:scale_column + blocks(columns)])
