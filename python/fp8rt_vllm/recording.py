"""What a model's own load_weights does with each name of a checkpoint, seen once, on sources without memory."""

import contextlib
import weakref

import torch

from fp8rt.plan import Box

from . import loading
from .parameters import Parameter


class Record:
    """By name, of all names that came."""

    def __init__(self, model: torch.nn.Module, destinations: list[Parameter]):
        self._model = weakref.ref(model)
        self.destinations = destinations
        self.by_storage = {d.codes.untyped_storage().data_ptr(): i for i, d in enumerate(destinations)}
        self.boxes: dict[str, list[Box]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        # Names whose loader computes, reshapes or casts: it runs every time.
        self.direct: set[str] = set()
        # Names that the loader takes with their last two axes swapped: boxes count them so.
        self.transposed: set[str] = set()

    def learn(self, new: list[tuple[str, torch.Tensor]]) -> None:
        """Runs the model's load_weights on stand-ins of new names, and notes its copies."""
        sources = {name: loading.stand_in(weight) for name, weight in new}
        copies, computed = self._recorded(sources)
        if computed and len(new) > 1:
            # Which of them it was is told by asking for one at a time.
            for one in new:
                self.learn([one])
            return
        claimed = self._claimed({name: source for name, source in sources.items() if name not in copies})
        for name, weight in new:
            self.shapes[name] = tuple(weight.shape)
            self.boxes[name] = []
            boxes = None if computed or name in claimed else self._boxes(name, sources[name], copies.get(name, []))
            if boxes is None:
                self.direct.add(name)
            else:
                self.boxes[name] = boxes

    def _recorded(self, sources: dict[str, torch.Tensor]) -> tuple[dict[str | None, list], bool]:
        """The copies by name, and whether something was computed before it was written."""
        recorder, _ = self._load_stand_ins(sources)
        copies = recorder.by_source(sources)
        return copies, recorder.computed > 0 or None in copies

    def _claimed(self, sources: dict[str, torch.Tensor]) -> set[str]:
        """Those of which the model says that it loaded them, though no copy was seen: then their loaders compute. It is
        asked for many at once: of experts most lie on other ranks.
        """
        if not sources or not self._load_stand_ins(sources)[1]:
            return set()
        if len(sources) == 1:
            return set(sources)
        items, middle = list(sources.items()), len(sources) // 2
        return self._claimed(dict(items[:middle])) | self._claimed(dict(items[middle:]))

    def _load_stand_ins(self, sources: dict[str, torch.Tensor]) -> tuple[loading.CopyRecorder, set[str]]:
        """What the model copies, and what it says that it loaded. vLLM 0.33.0 refuses the name of a tied parameter
        where that of the parameter itself is not beside it; that one came before.
        """
        try:
            with loading.CopyRecorder(self.by_storage) as recorder:
                return recorder, set(self._model().load_weights(iter(sources.items())) or ())
        except ValueError:
            known = self._known_stand_ins()
            if not known:
                raise
        with loading.CopyRecorder(self.by_storage):
            before = set(self._model().load_weights(iter(known.items())) or ())
        with loading.CopyRecorder(self.by_storage) as recorder:
            loaded = set(self._model().load_weights(iter([*known.items(), *sources.items()])) or ())
        recorder.copies = recorder.by_source(known).get(None, [])
        return recorder, loaded - before

    def _known_stand_ins(self) -> dict[str, torch.Tensor]:
        """Of the names whose loaders copy."""
        return {
            name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
            for name, shape in self.shapes.items()
            if self.boxes[name]
        }

    def _boxes(self, name: str, source: torch.Tensor, copies: list) -> list[Box] | None:
        """None: something that the library does not do, so that vLLM's loader must."""
        indices = [self.by_storage.get(to.untyped_storage().data_ptr()) for to, _ in copies]
        if None in indices:
            return None
        found = [self.destinations[index] for index in indices]
        regions = None
        # A slab of experts may have its rows and columns swapped.
        for whole in (source, *([source.transpose(-1, -2)] if source.dim() > 1 else [])):
            with contextlib.suppress(ValueError):
                regions = [
                    loading.region_of(to, destination.codes, come, whole)
                    for (to, come), destination in zip(copies, found, strict=True)
                ]
                break
        if regions is None:
            for destination in found:
                if destination.state is not None:
                    raise ValueError(f"fp8rt: {name} does not fill a box of {destination.name}")
            return None
        if any(destination.state is None and source.dtype != destination.codes.dtype for destination in found):
            return None
        if whole is not source:
            self.transposed.add(name)
        return [
            Box(name, index, region.source_first, region.extent, region.destination_first)
            for index, region in zip(indices, regions, strict=True)
        ]
