"""Refit: `load_weights(weights, model_runner)`. At its first arrival a name goes through the model's own load_weights
with a source without memory, and what that would copy is recorded; from then on the library replays the record.

A refit is not begun, open, or over: all of it arrived, or it failed. One that fails after something was written leaves
a mixed model. Then `failure` says why, nothing is generated (see health.py), and the next bucket begins a new refit.
"""

import dataclasses
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from vllm.logger import init_logger

from fp8rt import abi
from fp8rt.plan import SCALE_SUFFIX, Box, Receipt, RefitPlan

from . import loading, sleeping
from .health import Health, MixedModelError
from .kv_cache import CacheScales
from .mla import Derivations
from .parameters import parameters
from .peers import Peers, several
from .recording import Record

logger = init_logger(f"vllm.{__name__}")

_REFITS: "weakref.WeakKeyDictionary[torch.nn.Module, ModelRefit]" = weakref.WeakKeyDictionary()


class ModelRefit:
    """The refit of one model on one rank."""

    def __init__(self, model: torch.nn.Module):
        self._model = weakref.ref(model)
        self.destinations = parameters(model)
        self.record = Record(model, self.destinations)
        self._fp8 = {d.codes.untyped_storage().data_ptr(): d.name for d in self.destinations if d.state is not None}
        self.device = self.destinations[0].codes.device
        # Codes without scales, and scales without codes, until the other arrives.
        self._waiting: dict[str, torch.Tensor] = {}
        self.plan: RefitPlan | None = None
        self.receipt: Receipt | None = None
        # The first refit: names that came, and plans of single buckets.
        self._first: list[Receipt] = []
        self._arrived: set[str] = set()
        self._open = False
        # Parameters that vLLM's own loader fills, as it says.
        self._by_loader: set[str] = set()
        # Whether this refit changed something.
        self._written = False
        # Why the model is mixed, empty if it is not.
        self.failure = ""
        # Refits are numbered, as all ranks take part in each: of the newest that failed in another, and why.
        self._number = 0
        self._lost = (0, "")
        self._peers = Peers(type(model).__qualname__)
        self._states = [d.state for d in self.destinations if d.state is not None]
        self._health = {id(state.health): state.health for state in self._states} or {0: Health()}
        for health in self._health.values():
            health.refits.add(self)
        # Neither counts for a refit's end: scales of the KV cache may come before the weights, after, or not at all.
        self.scales = CacheScales(model)
        self.derivations = Derivations(model)

    def load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """One bucket. Everything is enqueued on torch's current stream when this returns. If it raises, the refit has
        failed, in all ranks.
        """
        self.check_awake("a refit")
        self._hear()
        self._unsettle()
        number = self._number if self._open else self._number + 1
        try:
            self._load(list(weights))
        except BaseException as error:
            # A bucket that failed before it began a refit was to begin this one.
            self._number = max(self._number, number)
            self._failed(f"a bucket failed: {type(error).__name__}: {error}")
            raise

    def _load(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        if self._open and self._is_lost() and any(name in self._arrived for name, _ in weights):
            # What failed elsewhere is sent anew.
            self.fail(self._lost[1])
        items = self.scales.take(self.pair(weights), self.record.shapes, self.record.by_storage)
        if items and (self._open or self._starts(items)):
            self._fill(items)
        else:
            self._check_shapes(items)
        complete = self.plan is not None and self._open and self._complete()
        if complete or self.plan is None or not self._open:
            self.scales.apply()
        if complete:
            self._close(self.plan.finish())

    def _fill(self, items: list[tuple[str, torch.Tensor, torch.Tensor | None]]) -> None:
        if self._open and self.plan is None and any(name in self._arrived for name, _, _ in items):
            self.finish()
        if not self._open:
            self._begin()
        new = [(name, weight) for name, weight, _ in items if name not in self.record.shapes]
        if new:
            self._grow(new)
        self._check_shapes(items)
        self._arrived.update(name for name, _, _ in items)
        self._run([item for item in items if self.record.boxes[item[0]]])
        filled = {self.destinations[box.destination].name for name, _, _ in items for box in self.record.boxes[name]}
        direct = [(name, weight) for name, weight, _ in items if name in self.record.direct]
        if direct:
            with loading.CastGuard(self._fp8):
                # What it wrote before it failed is not known.
                self._written = True
                loaded = self._model().load_weights(iter(direct))
            self._by_loader.update(loaded or ())
            filled = filled | loaded if loaded is not None else None
        self.derivations.refresh(filled)

    def _starts(self, items: list) -> bool:
        """Whether a bucket begins a refit. Experts of other ranks, or a tied head, may come when this rank has all."""
        return any(self.record.boxes.get(name, True) or name in self.record.direct for name, _, _ in items)

    def check(self) -> None:
        """Raises MixedModelError if the model is mixed, or those that share its configuration are."""
        for health in self._health.values():
            health.check()

    def check_awake(self, what: str) -> None:
        """The memory of every parameter is there."""
        sleeping.check_awake(what, ((d.name, part) for d in self.destinations for part in d.tensors()))

    def settle(self) -> None:
        """Ends an open refit; raises if something is missing, or one failed that no layer remembers."""
        self._hear()
        if self._open or self._waiting:
            try:
                self.finish()
            except RuntimeError as error:
                raise MixedModelError(
                    f"fp8rt: nothing is generated amid a refit (begin() gives it up): {error}"
                ) from error
        # Layers of ours know by themselves, since vLLM's own loaders may have filled them since.
        if self.failure and not self._states:
            raise MixedModelError(f"fp8rt: nothing is generated until a full refit: {self.failure}")

    def fail(self, reason: str) -> None:
        """The model is mixed; an open refit is given up."""
        self.failure = reason
        self.receipt = None
        self._give_up()
        self._unsettle()
        for state in self._states:
            state.stale = reason

    def _failed(self, reason: str) -> None:
        """On this rank. Others may have written their part of what failed here."""
        if self._written or several():
            self.fail(reason)
            self._peers.tell(self._number, reason)
        self._give_up()

    def _give_up(self) -> None:
        """Everything is awaited again."""
        self._open = False
        self._waiting.clear()
        self.scales.begin()

    def _hear(self) -> None:
        """Whether another rank failed: in a refit that is over here, is open, or was not begun yet."""
        news = self._peers.news()
        if news is None:
            return
        self._lost = max(self._lost, news)
        self._unsettle()
        if not self._open:
            self.fail(news[1])

    def _is_lost(self) -> bool:
        """Whether this refit failed in another rank. The rest of it may come here nevertheless."""
        return self._lost[0] >= self._number

    def _unsettle(self) -> None:
        for health in self._health.values():
            health.settled = False

    def _grow(self, new: list[tuple[str, torch.Tensor]]) -> None:
        """Names that no refit had. Not amid one that is counted by a plan of all names."""
        if self.plan is not None and self._arrived:
            # The next refit learns it.
            self.plan = None
            raise RuntimeError(f"fp8rt: {new[0][0]} came amid a refit, and no earlier one had it")
        self.record.learn(new)
        self.plan = None

    def _run(self, items: list) -> None:
        if not items:
            return
        if self.plan is None:
            # Not all names are known yet: a plan of this bucket.
            plan = self._plan([name for name, _, _ in items], True)
            plan.begin()
            self._run_plan(plan, items)
            self._first.append(plan.finish())
        else:
            self._run_plan(self.plan, items)

    def _run_plan(self, plan: RefitPlan, items: list) -> None:
        try:
            plan.run(self._on_device(items))
        except Exception:
            # Unless the library says otherwise, it enqueued nothing.
            self._written = self._written or plan.query().state == abi.REFIT_FAILED
            raise
        self._written = True

    def pair(self, weights: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor, torch.Tensor | None]]:
        """Codes with their scales; one that comes without the other is copied and waits for it."""
        items, arrived = [], {name: as_codes(weight) for name, weight in weights}
        halves = {
            name
            for name, weight in arrived.items()
            if name.endswith(SCALE_SUFFIX) or weight.dtype == torch.float8_e4m3fn
        }
        for name, weight in arrived.items():
            if name not in halves:
                items.append((name, weight, None))
                # Values take the place of half of a pair.
                for half in (name, name + SCALE_SUFFIX):
                    self._waiting.pop(half, None)
        for name in halves:
            codes, scales = name.removesuffix(SCALE_SUFFIX), name.removesuffix(SCALE_SUFFIX) + SCALE_SUFFIX
            both = [arrived[half] if half in arrived else self._waiting.pop(half, None) for half in (codes, scales)]
            if both[0] is None or both[1] is None:
                self._waiting[name] = arrived[name].clone()
            elif name == codes or codes not in halves:
                items.append((codes, *both))
        return items

    def finish(self) -> Receipt:
        """Ends a refit; raises, naming what is missing. After the last bucket completed it: its receipt again."""
        self.scales.finish()
        if self.failure and not self._open:
            raise MixedModelError(f"fp8rt: the refit failed: {self.failure}")
        missing = sorted(self._waiting) or sorted(self.record.direct - self._arrived)
        if missing:
            raise RuntimeError(f"fp8rt: {missing[0]} did not arrive whole, of {len(missing)} that did not")
        if not self._open:
            if self.receipt is None:
                raise RuntimeError("fp8rt: no refit was begun")
            return self.receipt
        if self.plan is not None:
            self._close(self.plan.finish())
        else:
            self._check_names()
            # Refused by the library if something of an FP8 weight is not filled by any name.
            self.plan = self._plan(list(self.record.boxes), False)
            self._close(self._sum_of_first())
        if self.receipt is None:
            raise MixedModelError(f"fp8rt: the refit failed: {self.failure}")
        return self.receipt

    def _check_names(self) -> None:
        """Every parameter is filled by some name: a start with dummy weights leaves none that may stay."""
        filled = {box.destination for boxes in self.record.boxes.values() for box in boxes}
        for index, destination in enumerate(self.destinations):
            if destination.name in self._by_loader and destination.state is not None:
                destination.state.check(False)
            elif index not in filled and destination.name not in self._by_loader:
                raise RuntimeError(f"fp8rt: nothing that arrived fills {destination.name}")

    def _sum_of_first(self) -> Receipt:
        """The receipt of a first refit, whose buckets each had a plan."""
        info = self.plan.query()
        sums = [
            sum(getattr(part, key) for part in self._first)
            for key in ("blocks_filled", "items", "regions_written", "bytes_read", "bytes_written")
        ]
        if sums[0] != info.blocks_total:
            self.plan = None
            raise RuntimeError(f"fp8rt: {sums[0]} of {info.blocks_total} blocks are filled")
        return Receipt(info.num_destinations, info.num_destinations, sums[0], info.blocks_total, *sums[1:])

    def begin(self) -> None:
        """Gives up an open refit, so that everything is awaited again."""
        if self._open and self._written:
            self.fail("a refit was given up")
        self._give_up()

    def _begin(self) -> None:
        self._written = False
        for destination in self.destinations:
            if destination.codes.data_ptr() != self._address(destination.name):
                raise RuntimeError(
                    f"fp8rt: {destination.name} is at another address than when its refits were recorded"
                )
        self._first.clear()
        self._arrived.clear()
        if self.plan is not None:
            self.plan.begin()
        self._number += 1
        self._open = True

    def _close(self, receipt: Receipt) -> None:
        self.receipt, self.failure = receipt, ""
        self._open = self._written = False
        for state in self._states:
            state.filled()
        if self._is_lost():
            self.fail(self._lost[1])

    def _complete(self) -> bool:
        info = self.plan.query()
        return info.blocks_filled == info.blocks_total and self.record.direct <= self._arrived

    @property
    def begun(self) -> bool:
        """Whether there was a refit."""
        return self._open or self.receipt is not None or bool(self._waiting or self.failure)

    def _address(self, name: str) -> int:
        return self._model().get_parameter(name).data_ptr()

    def _on_device(self, items: list) -> list:
        return [(name, self._brought(name, weight), self._brought(name, scales)) for name, weight, scales in items]

    def _brought(self, name: str, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """As the boxes of a name count it."""
        if tensor is None:
            return None
        tensor = tensor.to(self.device, non_blocking=True)
        return tensor.transpose(-1, -2).contiguous() if name in self.record.transposed else tensor

    def _check_shapes(self, items: list) -> None:
        """A name keeps its shape: the record is of that shape."""
        for name, weight, _ in items:
            if tuple(weight.shape) != self.record.shapes[name]:
                raise ValueError(
                    f"fp8rt: {name} has shape {list(weight.shape)}, and had {list(self.record.shapes[name])}"
                )

    def _plan(self, names: list[str], partly: bool) -> RefitPlan:
        boxes = [box for name in names for box in self.record.boxes[name]]
        used = sorted({box.destination for box in boxes})
        index = {old: new for new, old in enumerate(used)}
        found = [self.destinations[old] for old in used]
        described = [destination.described(partly or destination.name in self._by_loader) for destination in found]
        moved = [Box(b.source, index[b.destination], b.source_first, b.extent, b.destination_first) for b in boxes]
        return RefitPlan(self.device, described, moved)


def as_codes(weight: torch.Tensor) -> torch.Tensor:
    """Codes may come as bytes: torch's pickle does not carry their type."""
    return weight.view(torch.float8_e4m3fn) if weight.dtype == torch.uint8 else weight


def model_of(model_runner: Any) -> torch.nn.Module:
    """The model of a runner, or the module itself."""
    if isinstance(model_runner, torch.nn.Module):
        return model_runner
    return model_runner.get_model() if hasattr(model_runner, "get_model") else model_runner.model


def of(model_runner: Any) -> ModelRefit:
    """The refits of a runner's model."""
    model = model_of(model_runner)
    if model not in _REFITS:
        _REFITS[model] = ModelRefit(model)
    return _REFITS[model]


@torch.no_grad()
def load_weights(weights: Iterable[tuple[str, torch.Tensor]], model_runner: Any) -> None:
    """One bucket of a refit: names of the checkpoint, with values, or with codes and their `weight_scale_inv`."""
    of(model_runner).load(weights)


def begin(model_runner: Any) -> None:
    """Gives up a refit that was not completed."""
    of(model_runner).begin()


def check(model_runner: Any) -> None:
    """Raises MixedModelError if weights of different versions, or of none, are in the model."""
    of(model_runner).check()


def receipt(model_runner: Any) -> dict[str, int] | None:
    """Ends a refit and says what it did; raises, naming what did not arrive. None before the first."""
    refit = of(model_runner)
    return dataclasses.asdict(refit.finish()) if refit.begun else None


def fingerprint(model_runner: Any) -> dict[str, str]:
    """Of what this rank holds, 32 hexadecimal digits each: by the names of the checkpoint once a refit told them, as
    the trainer has them; before that by this model's own names.
    """
    refit = of(model_runner)
    refit.check_awake("a fingerprint")
    plan = refit.plan or RefitPlan(refit.device, [d.described(False) for d in refit.destinations], [])
    return plan.fingerprints()


def cache_fingerprint(model_runner: Any) -> dict[str, str]:
    """Of the scales of an FP8 KV cache, as kernels read them; by the checkpoint's names where a refit told them."""
    refit = of(model_runner)
    refit.check_awake("a fingerprint")
    return refit.scales.fingerprints(refit.device)
