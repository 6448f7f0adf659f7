"""New weights into a running model, a bucket at a time."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fp8rt_vllm.loading import bucket


@torch.no_grad()
def load_weights(weights: Iterable[tuple[str, torch.Tensor]], model_runner: Any) -> int:
    """Loads a bucket of (name, tensor) as vLLM would, bf16 weights of FP8 linears quantized together in one launch for each
    recipe and dtype. Gives the number of codes written.

    Everything is enqueued on the current stream before this returns: work that is enqueued on it later may change the
    tensors. Parameters keep identity and address.
    """
    with bucket() as filled:
        model_runner.model.load_weights(weights=weights)
    return filled.filled
