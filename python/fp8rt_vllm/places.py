"""Where this rank's shards lie in the tensors of a checkpoint, for a trainer that compares fingerprints."""

import itertools
from typing import Any

from fp8rt.plan import Box

from . import refit
from .layer import BLOCK
from .parameters import Parameter


def places(model_runner: Any) -> dict[str, Any]:
    """What a trainer must know to compare: `boxes` (first, extent) of names of which this rank has not just all,
    `not_on_blocks` those of them whose boxes are no shards on blocks, `not_told` names without a fingerprint, and why.
    """
    own = refit.of(model_runner)
    if own.plan is None:
        # The first refit has not ended: the fingerprint is by this model's own names.
        return {"boxes": {}, "not_on_blocks": [], "not_told": {}}
    boxes, off_blocks = {}, []
    not_told = dict.fromkeys(sorted(own.record.direct), "the engine's own loader computes it")
    not_told |= dict.fromkeys(sorted(own.scales.names), "a scale of the KV cache")
    for name, held in own.record.boxes.items():
        if not held:
            not_told.setdefault(name, "the engine has no use for it")
            continue
        if name in own.record.transposed:
            not_told[name] = "the engine takes it transposed"
            continue
        shape = (1,) * (3 - len(own.record.shapes[name])) + own.record.shapes[name]
        pieces = [piece for box in held for piece in by_parts(box, own.destinations[box.destination])]
        if len(pieces) > 1 or pieces[0][1] != shape:
            boxes[name] = pieces
        width = BLOCK // own.destinations[held[0].destination].codes.element_size()
        twice = len({first for first, _ in pieces}) < len(pieces)
        if twice or not all(on_blocks(*piece, shape, width) for piece in pieces):
            off_blocks.append(name)
    return {"boxes": boxes, "not_on_blocks": off_blocks, "not_told": not_told}


def by_parts(box: Box, destination: Parameter) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """First and extent in the source of each part that a box fills, as the library quantizes them."""
    expert, row, column = box.source_first
    begin, end = box.destination_first[1], box.destination_first[1] + box.extent[1]
    ends = itertools.accumulate(destination.state.parts) if destination.state is not None else ()
    cuts = [begin, *(cut for cut in ends if begin < cut < end), end]
    return [
        ((expert, row + low - begin, column), (box.extent[0], high - low, box.extent[2]))
        for low, high in itertools.pairwise(cuts)
    ]


def on_blocks(first: tuple[int, ...], extent: tuple[int, ...], shape: tuple[int, ...], width: int) -> bool:
    """Whether a box begins and ends on blocks of its source, or at its ends."""
    return all(
        low % block == 0 and ((low + size) % block == 0 or low + size == whole)
        for low, size, whole, block in zip(first[1:], extent[1:], shape[1:], (BLOCK, width), strict=True)
    )
