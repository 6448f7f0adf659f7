"""What a rank tells the others of its world when its refit failed. Nobody waits: a number in the store of the world's
CPU group counts failures, and each rank asks for it when it matters.
"""

from typing import Any

import torch


class Peers:
    """The failures of one model, which has the same name in all ranks."""

    def __init__(self, model: str):
        self._key = f"fp8rt/failures/{model}"
        self._known = 0

    def tell(self, refit: int, reason: str) -> None:
        """This rank failed in its refit of that number."""
        if (store := world_store()) is None:
            return
        self._known = store.add(self._key, 1)
        store.set(f"{self._key}/{self._known}", f"{refit} rank {torch.distributed.get_rank()}: {reason}")

    def news(self) -> tuple[int, str] | None:
        """Of the newest refit that failed: its number, and what the rank said. None if none has failed since this was
        asked, or since this rank told.
        """
        if (store := world_store()) is None:
            return None
        count, first = store.add(self._key, 0), self._known + 1
        self._known = count
        said = [store.get(f"{self._key}/{index}").decode().split(" ", 1) for index in range(first, count + 1)]
        return max(((int(refit), reason) for refit, reason in said), default=None)


def several() -> bool:
    """Whether the model has other ranks."""
    return world_store() is not None


def world_store() -> Any:
    """None: a model of one rank."""
    from vllm.distributed import parallel_state

    if not torch.distributed.is_initialized() or parallel_state._WORLD is None:
        return None
    world = parallel_state.get_world_group()
    return world.cpu_group.get_group_store() if world.world_size > 1 else None
