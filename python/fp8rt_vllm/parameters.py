"""A model's parameters as a refit plan sees them."""

from dataclasses import dataclass

import torch

from fp8rt.plan import DTYPES, SCALE_SUFFIX, Destination

from . import mla
from .layer import LayerState, states


@dataclass(frozen=True)
class Parameter:
    """A parameter at its address. `state` None: it is kept as the trainer has it."""

    name: str
    codes: torch.Tensor
    scales: torch.Tensor | None
    state: LayerState | None

    def tensors(self) -> list[torch.Tensor]:
        return [self.codes] if self.scales is None else [self.codes, self.scales]

    def described(self, partly: bool) -> Destination:
        """For a plan. What is kept may have padding that no name fills (a vocabulary)."""
        if self.state is None:
            return Destination(self.name, self.codes, partly=True)
        decision = self.state.decision
        return Destination(
            self.name,
            self.codes,
            self.scales,
            tuple(self.state.parts),
            decision.weight_recipe,
            decision.weight_scale_format,
            partly,
        )


def kept(data: torch.Tensor) -> bool:
    """Whether the library can copy it as it is; vLLM's own loader takes the rest."""
    return data.dtype in DTYPES and data.dtype != torch.float8_e4m3fn and 0 < data.dim() <= 3 and data.is_contiguous()


def parameters(model: torch.nn.Module) -> list[Parameter]:
    """Those that the library can fill. The scales of a layer of ours belong to its codes; what vLLM derives from others
    never arrives.
    """
    layers = {
        f"{prefix}.{weight}" if prefix else weight: (getattr(module, f"{weight}{SCALE_SUFFIX}"), state)
        for prefix, module in model.named_modules()
        for weight, state in states(module).items()
    }
    found = []
    for name, parameter in model.named_parameters():
        data = parameter.data
        if name in layers:
            scales, state = layers[name]
            found.append(Parameter(name, data, scales.detach(), state))
        elif name.rpartition(".")[2] in mla.DERIVED:
            continue
        elif kept(data) and name.removesuffix(SCALE_SUFFIX) not in layers:
            found.append(Parameter(name, data, None, None))
    return found
