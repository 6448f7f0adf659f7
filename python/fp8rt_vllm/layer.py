"""How a layer is filled: parts, blocks, and what has arrived. No vllm."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fp8rt.plan import BLOCK

from .health import Health, MixedModelError

# (experts, rows, columns) in elements. A matrix is one expert.
Axes = tuple[int, int, int]


@dataclass(frozen=True)
class Region:
    """A box of a source that fills a box of a destination."""

    source_first: Axes
    extent: Axes
    destination_first: Axes


def blocks(extent: int) -> int:
    return -(-extent // BLOCK)


def scale_rows(parts: list[int]) -> int:
    """Rows of the scales of a merged weight: each part begins a block of its own."""
    return sum(blocks(rows) for rows in parts)


def view(tensor: torch.Tensor, first: Axes, extent: Axes) -> torch.Tensor:
    """A box of a matrix or of a slab, as [experts, rows, columns]."""
    whole = tensor[(None,) * (3 - tensor.dim())]
    return whole[tuple(slice(begin, begin + size) for begin, size in zip(first, extent, strict=True))]


@dataclass
class LayerState:
    """What a layer of ours keeps beside a weight."""

    prefix: str
    # Rows of the merged parts, in order; the same in every expert.
    parts: list[int]
    columns: int
    decision: object
    # vLLM's own loader, which knows tensor parallelism and fused names.
    loader: Callable
    health: Health
    experts: int = 1
    # Arguments of a call of the loader, to what it copied.
    regions: dict = field(default_factory=dict)
    # Destinations that values or codes have filled, and scales, since the last check.
    weights: dict[Region, None] = field(default_factory=dict)
    scales: dict[Region, None] = field(default_factory=dict)
    # Scales that came before their codes.
    waiting: dict = field(default_factory=dict)
    # Arguments of a call, to whether the loader was given a transposed view.
    turned: dict = field(default_factory=dict)
    complete: bool = False
    # Why what the layer holds is not to be used; empty if it is.
    stale: str = ""
    # What linear_prepare said.
    prepared: str = ""
    # Called when a loader has filled the layer: others derive tensors from it (see mla).
    after_load: Callable[[], None] | None = None

    def block_rows(self, region: Region) -> tuple[int, int, list[int]]:
        """First row and number of rows in the scales, and the rows of the parts that the region holds."""
        first, last = region.destination_first[1], region.destination_first[1] + region.extent[1]
        begin, row, held, scale_first = 0, 0, [], None
        for rows in self.parts:
            low, high = max(first, begin), min(last, begin + rows)
            if low < high:
                held.append(high - low)
                if scale_first is None:
                    scale_first = row + (low - begin) // BLOCK
                if (low - begin) % BLOCK or ((high - begin) % BLOCK and high != begin + rows):
                    raise ValueError(f"{self.prefix}: rows {first} to {last} cut a block of the part at row {begin}")
            begin, row = begin + rows, row + blocks(rows)
        left, right = region.destination_first[2], region.destination_first[2] + region.extent[2]
        if left % BLOCK or (right % BLOCK and right != self.columns):
            raise ValueError(f"{self.prefix}: columns {left} to {right} cut a block")
        return scale_first or 0, scale_rows(held), held

    def scale_view(self, scales: torch.Tensor, region: Region) -> torch.Tensor:
        """The scales of a region's blocks, for each of its experts."""
        row, rows, _ = self.block_rows(region)
        first = (region.destination_first[0], row, region.destination_first[2] // BLOCK)
        return view(scales, first, (region.extent[0], rows, blocks(region.extent[2])))

    def check(self, may_be_empty: bool) -> None:
        """Raises if something of the layer did not arrive since the last check; nothing at all may, once complete."""
        if not self.arrived() and (self.complete or may_be_empty):
            return
        if missing := self.missing():
            raise RuntimeError(
                f"fp8rt: {self.prefix}: {missing}. A loader that writes past this layer's casts without scaling"
            )
        self.filled()

    def settle(self) -> None:
        """Raises if the layer is not to be used: it was filled in part, or not since it became stale."""
        missing = self.missing() if self.arrived() else self.stale
        if missing:
            raise MixedModelError(
                f"fp8rt: nothing is generated until all weights were filled again: {self.prefix}: {missing}"
            )
        if self.arrived():
            self.filled()

    def touched(self) -> None:
        """Something is about to arrive."""
        self.health.settled = False

    def arrived(self) -> bool:
        """Whether something came since the last check."""
        return bool(self.weights or self.scales or self.waiting)

    def missing(self) -> str:
        """What of the layer did not arrive since the last check; empty if all of it did."""
        total = self.experts * sum(self.parts) * self.columns
        weights, scales = (sum(math.prod(r.extent) for r in filled) for filled in (self.weights, self.scales))
        if not self.waiting and weights == total and scales == total:
            return ""
        return (
            f"of {total} elements {weights} arrived, and scales for {scales}; {len(self.waiting)} scales lack codes"
        )

    def filled(self) -> None:
        """Everything arrived, and is awaited anew."""
        self.weights.clear()
        self.scales.clear()
        self.turned.clear()
        self.complete = True
        self.stale = ""


def states(module: torch.nn.Module) -> dict[str, LayerState]:
    """What a module keeps of its weights, by name: a linear of one, experts of two; empty if it is not ours."""
    return getattr(module, "fp8rt", {})
