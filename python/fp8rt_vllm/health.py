"""Whether a model holds one version of its weights. After a refit that failed half-way, or a sleep that discarded the
weights, nothing may be generated from it until everything was filled again. No vllm.
"""

import weakref
from typing import Any

import torch

_ALL: "weakref.WeakSet[Health]" = weakref.WeakSet()


class MixedModelError(RuntimeError):
    """A model of which some weights are of another version than the rest, or of none."""


class Health:
    """Of all layers that one configuration made, on this rank: a model, and drafters that share its configuration."""

    def __init__(self):
        # Nothing happened since the last check. All that a step of the engine asks.
        self.settled = True
        self.refits: weakref.WeakSet[Any] = weakref.WeakSet()
        self._layers: list[weakref.ref[torch.nn.Module]] = []
        _ALL.add(self)

    def __deepcopy__(self, memo: dict) -> "Health":
        """A copy of a configuration makes layers of the same model."""
        return self

    def __reduce__(self) -> tuple:
        """Another process has layers of its own."""
        return Health, ()

    def add(self, layer: torch.nn.Module) -> None:
        """A layer whose `fp8rt` has a LayerState for each of its weights, by name."""
        self._layers.append(weakref.ref(layer))

    @property
    def layers(self) -> list[torch.nn.Module]:
        return [layer for reference in self._layers if (layer := reference()) is not None]

    @property
    def states(self) -> list[Any]:
        return [state for layer in self.layers for state in layer.fp8rt.values()]

    def check(self) -> None:
        """Raises unless the weights are of one version."""
        if self.settled:
            return
        for refit in self.refits:
            refit.settle()
        for state in self.states:
            state.settle()
        self.settled = True

    def discarded(self, reason: str) -> None:
        """The memory of the weights holds nothing."""
        self.settled = False
        for state in self.states:
            state.stale = reason
        for refit in self.refits:
            refit.fail(reason)


def all_models() -> list[Health]:
    """Of this process."""
    return list(_ALL)
