"""What a trainer sent against what the engine says that it holds. Fingerprints are texts of 32 hexadecimal digits. No
torch, no vllm: the process that compares need not be one that holds weights.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .library import Policy

BITS = 128
# Of a whole tensor; of each rank's cut, where ranks cut through blocks; None where nothing can be said.
Expected = str | tuple[str, ...] | None


class MismatchError(RuntimeError):
    """Trainer and engine differ. `difference` is the first in the trainer's order."""

    def __init__(self, message: str, difference: "Difference | None" = None):
        super().__init__(message)
        self.difference = difference


@dataclass(frozen=True)
class Difference:
    """A parameter, or the policy, of which the two sides say different things. An empty side has none."""

    name: str
    expected: str
    found: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@dataclass
class Comparison:
    """What was compared; `different` in the trainer's order, the policy first."""

    compared: int = 0
    different: list[Difference] = field(default_factory=list)
    # Names of which nothing can be said, and why.
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Difference | None:
        return self.different[0] if self.different else None

    def check(self) -> "Comparison":
        """Raises MismatchError that names the first difference."""
        if self.first is not None:
            count = len(self.different)
            raise MismatchError(f"fp8rt: {self.first}" + (f" ({count} differ)" if count > 1 else ""), self.first)
        return self


def added(values: Iterable[str]) -> str:
    """The sum of fingerprints, modulo 2^128: that of the whole where shards are cut on blocks."""
    return f"{sum(int(value, 16) for value in values) % (1 << BITS):032x}"


def holds(shards: Sequence[str], whole: str) -> bool:
    """Whether ranks hold a tensor of this fingerprint: each all of it, or each a shard that as many ranks hold as any
    other (of keys and values, where there are more ranks than heads).
    """
    copies = [count for count in range(1, len(shards) + 1) if len(shards) % count == 0]
    total = added(shards)
    return any(added([whole] * count) == total for count in copies)


def compare(expected: Mapping[str, Expected], found: Mapping[str, Any], policy: Policy | None = None) -> Comparison:
    """`found` is what `fp8rt_vllm.fingerprint(llm)` returned, `policy` the trainer's."""
    result = Comparison()
    if policy is not None and (difference := policy_difference(policy, found)):
        result.different.append(difference)
    weights = found["weights"]
    check_total(weights, found.get("total"))
    for name, value in expected.items():
        compare_one(result, name, value, weights.get(name), found)
    for name in weights.keys() - expected.keys():
        shards = shown(weights[name])
        result.different.append(Difference(name, "", shards, f"the engine holds {shards}, the trainer sent none"))
    return result


def compare_one(
    result: Comparison, name: str, value: Expected, shards: Sequence[str] | None, found: Mapping[str, Any]
) -> None:
    """Adds a name to what is compared, left out or different."""
    if shards is None:
        if name in (unknown := found.get("not_told", {})):
            result.left_out[name] = unknown[name]
            return
        why = f"the trainer sent {shown(value)}, the engine holds nothing of this name since its last whole refit"
        result.different.append(Difference(name, shown(value), "", why))
    elif value is None:
        result.left_out[name] = "the trainer's shard is cut inside a block, or of a type that has no fingerprint"
    elif isinstance(value, str) and name in found.get("cuts", {}):
        result.left_out[name] = "the engine's ranks cut it inside a block, and the trainer was not told where"
    else:
        result.compared += 1
        if not (holds(shards, value) if isinstance(value, str) else tuple(shards) == value):
            why = f"the trainer expects {shown(value)}, the engine holds {shown(shards)}"
            result.different.append(Difference(name, shown(value), shown(shards), why))


def shown(value: Expected | Sequence[str]) -> str:
    """One value, or those of the ranks."""
    if value is None or isinstance(value, str):
        return value or "something"
    return value[0] if len(value) == 1 else f"[{', '.join(value)}]"


def policy_difference(policy: Policy, found: Mapping[str, Any]) -> Difference | None:
    """In words where the engine said its policy's text."""
    if policy.fingerprint == found["policy"]:
        return None
    lines = policy.difference(found["policy_text"]) if "policy_text" in found else []
    why = f"the trainer's is {policy.fingerprint}, the engine's {found['policy']}"
    return Difference("policy", policy.fingerprint, found["policy"], "; ".join([why, *lines]))


def check_total(weights: Mapping[str, Sequence[str]], total: str | None) -> None:
    """An answer that lost something on its way is no answer."""
    sums = added(value for shards in weights.values() for value in shards)
    if total is not None and sums != total:
        raise MismatchError(f"fp8rt: the engine's answer is damaged: its values add up to {sums}, its total is {total}")


def check_receipts(receipts: Sequence[Mapping[str, int] | None]) -> None:
    """Raises unless every rank was refitted and filled everything. As `fp8rt_vllm.receipts(llm)` returns them."""
    if not receipts:
        raise MismatchError("fp8rt: no rank gave a receipt")
    for rank, receipt in enumerate(receipts):
        if receipt is None:
            raise MismatchError(f"fp8rt: rank {rank} had no refit")
        for what, filled, total in (
            ("parameters", receipt["destinations_filled"], receipt["num_destinations"]),
            ("blocks", receipt["blocks_filled"], receipt["blocks_total"]),
        ):
            if filled != total or not total:
                raise MismatchError(f"fp8rt: rank {rank} filled {filled} of {total} {what}")


@dataclass(frozen=True)
class Piece:
    """A box of a tensor that a rank of the trainer holds, in experts, rows and columns, and its fingerprint."""

    shape: tuple[int, int, int]
    first: tuple[int, int, int]
    extent: tuple[int, int, int]
    value: Expected


def merged(ranks: Iterable[Mapping[str, Sequence[Piece]]]) -> dict[str, Expected]:
    """The pieces of the trainer's ranks, put together by name. Boxes that several ranks hold must be equal, and count
    once. Raises, naming the tensor, where they differ, or where the boxes are not all of it.
    """
    places: dict[str, dict[tuple, Piece]] = {}
    for rank in ranks:
        for name, pieces in rank.items():
            for piece in pieces:
                place = places.setdefault(name, {}).setdefault((piece.first, piece.extent), piece)
                if place != piece:
                    raise MismatchError(
                        f"fp8rt: {name}: ranks of the trainer hold different values of the box that begins at "
                        f"{list(piece.first)}: {shown(place.value)} and {shown(piece.value)}"
                    )
    return {name: whole(name, list(held.values())) for name, held in places.items()}


def whole(name: str, pieces: list[Piece]) -> Expected:
    """The value of a tensor from those of its boxes."""
    shape = pieces[0].shape
    if other := next((piece for piece in pieces if piece.shape != shape), None):
        raise MismatchError(f"fp8rt: {name} has shape {list(shape)} and {list(other.shape)} in ranks of the trainer")
    held = sum(math.prod(piece.extent) for piece in pieces)
    if held != math.prod(shape):
        raise MismatchError(f"fp8rt: {name}: the trainer's ranks hold {held} of {math.prod(shape)} elements")
    values = [piece.value for piece in pieces]
    if len(values) == 1:
        return values[0]
    return added(values) if all(isinstance(value, str) for value in values) else None
