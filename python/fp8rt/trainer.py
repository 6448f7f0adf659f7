"""The trainer's side of a refit: quantizes what it sends, and knows what the engine must then hold.

    outgoing = trainer.Outgoing(policy)
    for name, tensor in outgoing.tensors(model.named_parameters()):   # codes, and name + "_scale_inv"
        send(name, tensor)
    comparison.check_receipts(fp8rt_vllm.receipts(llm))
    comparison.compare(outgoing.expected(), fp8rt_vllm.fingerprint(llm), policy).check()

Everything runs on torch's current stream of the tensor's device; `expected` and `pieces` wait for it. Needs torch.
"""

import ctypes
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from . import abi, comparison, library
from .comparison import Expected, Piece
from .library import Decision, Fp8rtError, Policy
from .plan import BLOCK, SCALE_SUFFIX, Box, Destination, RefitPlan, context, stream, tensor

VALUES = (torch.bfloat16, torch.float16, torch.float32)
# Sums are made this many at a time.
CHUNK = 256

Sizes = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Where a tensor lies in the one that its name means: the whole's shape, and the first element, axis by axis."""

    shape: tuple[int, ...]
    first: tuple[int, ...]


def quantize(
    name: str, weight: torch.Tensor, policy: Policy, shard: Shard | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Codes and scales of a parameter [N, K] or of experts [E, N, K], or of a shard; without scales what the policy
    keeps, as it is. The bits are those that the engine would make of the values.

    A shard must be cut on blocks: codes and scales of its neighbors can then be put beside its own.
    """
    return Request(name, weight, policy, shard).quantize()


class Request:
    """A tensor, where it lies in the one that is named, and what the policy says of it."""

    def __init__(self, name: str, weight: torch.Tensor, policy: Policy, shard: Shard | None = None):
        shard = shard or Shard(tuple(weight.shape), (0,) * weight.dim())
        self.name, self.weight = name, weight.detach()
        self.decision = policy.decide(name, shard.shape)
        self.shape, self.extent = padded(shard.shape, 1), padded(weight.shape, 1)
        self.first = padded(shard.first, 0)
        self.whole = self.shape == self.extent
        if not len(shard.shape) == len(shard.first) == weight.dim():
            raise ValueError(
                f"fp8rt: {name}: a shard of {weight.dim()} axes in a shape of {len(shard.shape)}, at {len(shard.first)}"
            )
        for axis, (first, extent, size) in enumerate(zip(self.first, self.extent, self.shape, strict=True)):
            if first < 0 or first + extent > size:
                what = ("experts", "rows", "columns")[axis]
                raise ValueError(f"fp8rt: {name}: {what} {first} to {first + extent} of {size}")

    @property
    def has_fingerprint(self) -> bool:
        """Of what the policy quantizes, always: else it is an error there."""
        return self.decision.fp8 or (self.weight.dtype in VALUES and 0 < self.weight.dim() <= 3 and not self.cut())

    def cut(self) -> str:
        """Where the tensor is cut inside a block, in words; empty if nowhere. A block of what is kept has 128 rows of
        128 bytes.
        """
        width = BLOCK if self.decision.fp8 else BLOCK // self.weight.element_size()
        for what, block, first, extent, size in zip(
            ("row", "column"), (BLOCK, width), self.first[1:], self.extent[1:], self.shape[1:], strict=True
        ):
            if first % block:
                return f"begins at {what} {first}, inside of a block of {block}"
            if (first + extent) % block and first + extent != size:
                return f"ends at {what} {first + extent} of {size}, inside of a block of {block}"
        return ""

    def quantize(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.decision.fp8:
            return self.weight, None
        if cut := self.cut():
            raise ValueError(
                f"fp8rt: {self.name}: the shard {cut}; its scales would not be the whole tensor's. Send it as values"
            )
        try:
            return quantize_as(self.weight, self.decision)
        except Fp8rtError as error:
            raise Fp8rtError(f"{self.name}: {error}") from None


def padded(sizes: Iterable[int], filler: int) -> Sizes:
    """Experts, rows and columns. What has more axes (a convolution) is never told apart: it counts as one element."""
    sizes = tuple(sizes)
    return (filler,) * (3 - len(sizes)) + sizes if len(sizes) <= 3 else (filler,) * 3


def quantize_as(weight: torch.Tensor, decision: Decision) -> tuple[torch.Tensor, torch.Tensor]:
    """New codes and scales, by the decision's recipe."""
    if decision.weight_scale_format == abi.UE8M0_PACKED:
        raise Fp8rtError("scales in UE8M0_PACKED do not travel: a checkpoint has float32, and POW2 the same values")
    if weight.dtype not in VALUES or weight.dim() not in (2, 3):
        raise Fp8rtError(f"a weight of {weight.dtype} and {weight.dim()} axes is not quantized")
    if weight.stride(-1) != 1:
        weight = weight.contiguous()
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    rows, columns = (-(-size // BLOCK) for size in weight.shape[-2:])
    scales = torch.empty(*weight.shape[:-2], rows, columns, dtype=torch.float32, device=weight.device)
    desc = abi.QuantizeDesc(recipe=decision.weight_recipe, scale_format=decision.weight_scale_format)
    views = [ctypes.byref(tensor(part)) for part in (weight, codes, scales)]
    library.call(
        "fp8rt_quantize_weight", context(weight.device), ctypes.byref(desc), *views, None, stream(weight.device)
    )
    return codes, scales


class Outgoing:
    """The tensors of one refit on their way out, and the fingerprints of what the engine makes of them. Holds 32 bytes
    a tensor, and no tensor.

    `cuts`: of `fp8rt_vllm.fingerprint(llm)`, where the engine's ranks cut tensors inside of blocks: these are sent as
    values, and what each rank makes of its cut is expected. `send_values`: everything is sent as values, and the
    engine quantizes it. `keep_cut_shards`: a shard that is cut inside a block is sent as values instead of refused.
    `as_bytes`: codes are sent as uint8, which a refit takes for codes: torch 2.11's pickle does not carry their type.
    """

    def __init__(
        self,
        policy: Policy,
        cuts: Mapping[str, Sequence] | None = None,
        send_values: bool = False,
        keep_cut_shards: bool = False,
        as_bytes: bool = False,
    ):
        self.policy = policy
        self.cuts = cuts or {}
        self.send_values, self.keep_cut_shards, self.as_bytes = send_values, keep_cut_shards, as_bytes
        self._sums: dict[torch.device, Sums] = {}
        # For each name its boxes, with the place of a sum, the values of cuts, or None.
        self._pieces: dict[str, list[tuple[Piece, tuple[Sums, int] | None]]] = {}

    def tensors(self, weights: Iterable[tuple]) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) or (name, tensor, Shard) in, (name, tensor) out, one at a time."""
        for name, weight, *shard in weights:
            first, scales = self.add(name, weight, *shard)
            yield name, first.view(torch.uint8) if self.as_bytes and scales is not None else first
            if scales is not None:
                yield f"{name}{SCALE_SUFFIX}", scales
            del weight, first, scales

    def add(
        self, name: str, weight: torch.Tensor, shard: Shard | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What to send of one tensor: codes and scales, or values."""
        request = Request(name, weight, self.policy, shard)
        if name in self.cuts:
            values = self._of_cuts(request) if request.whole else None
            self._note(request, values, None)
            return request.weight, None
        if not request.has_fingerprint or (self.keep_cut_shards and request.cut()):
            self._note(request, None, None)
            return request.weight, None
        codes, scales = request.quantize()
        device = codes.device
        sums = self._sums.setdefault(device, Sums(device))
        self._note(request, None, (sums, sums.add(request, codes, scales)))
        return (request.weight, None) if self.send_values else (codes, scales)

    def pieces(self) -> dict[str, list[Piece]]:
        """What this rank sent, by name and place, for `comparison.merged`. Plain values, to be gathered."""
        read = {device: sums.read() for device, sums in self._sums.items()}
        return {
            name: [
                piece if place is None else dataclasses.replace(piece, value=read[place[0].device][place[1]])
                for piece, place in held
            ]
            for name, held in self._pieces.items()
        }

    def expected(self) -> dict[str, Expected]:
        """Of whole tensors, by name, for `comparison.compare`. Of a trainer whose ranks have shards: `pieces`."""
        return comparison.merged([self.pieces()])

    def _note(self, request: Request, value: Expected, place: "tuple[Sums, int] | None") -> None:
        piece = Piece(request.shape, request.first, request.extent, value)
        held = self._pieces.setdefault(request.name, [])
        if any(other.first == piece.first and other.extent == piece.extent for other, _ in held):
            raise ValueError(f"fp8rt: {request.name} was sent twice; an Outgoing is for one refit")
        held.append((piece, place))

    def _of_cuts(self, request: Request) -> tuple[str, ...]:
        """What each rank of the engine makes of its boxes of a tensor."""
        return tuple(of_boxes(request, boxes) for boxes in self.cuts[request.name])


def of_boxes(request: Request, boxes: Sequence | None) -> str:
    """The fingerprint of boxes of a tensor, each quantized by itself: what a rank does. None: of all of it."""
    boxes = boxes if boxes is not None else [((0, 0, 0), request.shape)]
    weight, fp8 = request.weight, request.decision.fp8
    destinations = []
    for index, (_, extent) in enumerate(boxes):
        shape = tuple(extent)[3 - weight.dim() :]
        codes = torch.empty(shape, dtype=torch.float8_e4m3fn if fp8 else weight.dtype, device=weight.device)
        grid = (*shape[:-2], *(-(-size // BLOCK) for size in shape[-2:]))
        scales = torch.empty(grid, dtype=torch.float32, device=weight.device) if fp8 else None
        recipe, scale_format = request.decision.weight_recipe, request.decision.weight_scale_format
        destinations.append(Destination(str(index), codes, scales, (), recipe, scale_format))
    regions = [
        Box(request.name, index, tuple(first), tuple(extent), (0, 0, 0)) for index, (first, extent) in enumerate(boxes)
    ]
    plan = RefitPlan(weight.device, destinations, regions)
    plan.begin()
    plan.run([(request.name, weight, None)])
    return plan.fingerprints()[request.name]


class Sums:
    """Sums of hashes in the memory of a device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._chunks: list[torch.Tensor] = []
        self._count = 0

    def add(self, request: Request, codes: torch.Tensor, scales: torch.Tensor | None) -> int:
        """Enqueues the fingerprint of a tensor that is cut on blocks; its index."""
        index = self._count
        if index % CHUNK == 0:
            self._chunks.append(torch.zeros(CHUNK, 4, dtype=torch.int64, device=self.device))
        expert, row, column = request.first
        desc = abi.FingerprintDesc(
            name=request.name.encode(),
            scale_format=request.decision.weight_scale_format,
            expert=expert,
            first_block_row=row // BLOCK,
            first_block_column=column * codes.element_size() // BLOCK,
        )
        if codes.stride(-1) != 1:
            codes = codes.contiguous()
        library.call(
            "fp8rt_fingerprint_weight",
            context(self.device),
            ctypes.byref(desc),
            ctypes.byref(tensor(codes)),
            None if scales is None else ctypes.byref(tensor(scales)),
            ctypes.c_void_p(self._chunks[-1][index % CHUNK].data_ptr()),
            stream(self.device),
        )
        self._count += 1
        return index

    def read(self) -> list[str]:
        """Waits for the stream."""
        found = []
        for chunk in self._chunks:
            count = min(CHUNK, self._count - len(found))
            values = (abi.Fingerprint * count)()
            library.call(
                "fp8rt_fingerprint_read",
                context(self.device),
                ctypes.c_void_p(chunk.data_ptr()),
                ctypes.c_uint32(count),
                values,
                None,
                stream(self.device),
            )
            found += [value.hex() for value in values]
        return found
