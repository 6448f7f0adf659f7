"""A small model of vLLM's own routed experts, whose load_weights is vLLM's, and a kernel for them without a GPU."""

import contextlib
import dataclasses
import functools
from unittest import mock

import torch
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

PREFIX = "layers.0.mlp.experts"
# Ops live as long as their library.
KEPT = []
EXPERTS, HIDDEN, INNER, TOP = 4, 384, 256, 2


class CpuExperts(TritonExperts):
    """In TritonExperts' place: takes what that would, unquantized, and computes in float64 with the given scales."""

    calls = []

    @staticmethod
    def _supports_current_device() -> bool:
        return True

    @staticmethod
    def _supports_quant_scheme(weight_key, activation_key) -> bool:
        return True

    @property
    def expects_unquantized_inputs(self) -> bool:
        return True

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, **keys):
        self.calls.append({"w1": w1, "w2": w2, "topk_ids": topk_ids, **keys})
        gates, downs = (values(*pair) for pair in ((w1, self.w1_scale), (w2, self.w2_scale)))
        sums = torch.zeros_like(output, dtype=torch.float64)
        for token, (weights, experts) in enumerate(zip(topk_weights.double(), topk_ids.tolist(), strict=True)):
            for weight, expert in zip(weights, experts, strict=True):
                local = expert if keys["expert_map"] is None else int(keys["expert_map"][expert])
                if local >= 0:
                    sums[token] += weight * mlp(hidden_states[token].double(), gates[local], downs[local])
        output.copy_(sums)


def mlp(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = (gate_up @ x).chunk(2)
    return down @ (torch.nn.functional.silu(gate) * up)


def values(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What codes in whole blocks stand for."""
    return codes.double() * scales.double().repeat_interleave(128, 1).repeat_interleave(128, 2)


@contextlib.contextmanager
def cpu_kernel():
    """Our method takes CpuExperts for vLLM's Triton experts. Nothing of vLLM changes."""
    from vllm.v1.worker import workspace

    from fp8rt_vllm import experts

    if not workspace.is_workspace_manager_initialized():
        workspace.init_workspace_manager(torch.device("cpu"))
    CpuExperts.calls.clear()
    with mock.patch.object(experts, "TritonExperts", CpuExperts):
        yield CpuExperts.calls


@functools.cache
def cpu_routing() -> None:
    """The op that chooses experts, which vLLM's build for the CPU lacks."""
    library = torch.library.Library("_moe_C", "FRAGMENT")
    library.define(
        "topk_softmax(Tensor(a!) weights, Tensor(b!) indices, Tensor(c!) rows, Tensor logits, bool renormalize, "
        "Tensor? bias=None) -> ()"
    )

    def topk_softmax(weights, indices, rows, logits, renormalize, bias=None):
        found = logits.float().softmax(-1).topk(weights.shape[-1])
        shares = found.values / found.values.sum(-1, keepdim=True) if renormalize else found.values
        weights.copy_(shares)
        indices.copy_(found.indices)

    library.impl("topk_softmax", topk_softmax, "CPU")
    KEPT.append(library)


def shapes(inner: int = INNER, hidden: int = HIDDEN, experts: int = EXPERTS) -> dict[str, tuple[int, ...]]:
    """Names of a checkpoint with single experts."""
    found = {"layers.0.mlp.gate.weight": (experts, hidden)}
    for expert in range(experts):
        found[f"{PREFIX}.{expert}.gate_proj.weight"] = (inner, hidden)
        found[f"{PREFIX}.{expert}.up_proj.weight"] = (inner, hidden)
        found[f"{PREFIX}.{expert}.down_proj.weight"] = (hidden, inner)
    return found


def weights(seed: int, **sizes) -> dict[str, torch.Tensor]:
    """A version of the trainer's weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes(**sizes).items()
    }


def slabs(single: dict[str, torch.Tensor], transposed: bool) -> dict[str, torch.Tensor]:
    """The same, all experts of a kind in one tensor: [E, 2I, H] and [E, H, I], or with the last axes swapped."""
    count = sum(name.endswith("up_proj.weight") for name in single)

    def stacked(kind: str) -> torch.Tensor:
        return torch.stack([single[f"{PREFIX}.{expert}.{kind}.weight"] for expert in range(count)])

    found = {f"{PREFIX}.gate_up_proj": torch.cat([stacked("gate_proj"), stacked("up_proj")], 1)}
    found[f"{PREFIX}.down_proj"] = stacked("down_proj")
    if transposed:
        found = {name: slab.transpose(1, 2).contiguous() for name, slab in found.items()}
    return {"layers.0.mlp.gate.weight": single["layers.0.mlp.gate.weight"], **found}


def parallel(tp: tuple[int, int] = (0, 1), ep: tuple[int, int] = (0, 1), **keys):
    """Rank and ranks."""
    from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig

    alone = FusedMoEParallelConfig.make_no_parallel()
    ranks = {"tp_rank": tp[0], "tp_size": tp[1], "ep_rank": ep[0], "ep_size": ep[1], "use_ep": ep[1] > 1}
    return dataclasses.replace(alone, **ranks, **keys)


def routed(config, ranks=None, inner=INNER, hidden=HIDDEN, experts=EXPERTS, transposed=False, **keys):
    """vLLM's layer of experts, within `world`."""
    from vllm.model_executor.layers.fused_moe import RoutedExperts
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, RoutingMethodType
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager

    ranks = ranks or parallel()
    manager = ExpertMapManager(64, TOP, experts, 0, None, ranks, "linear", False)
    moe = FusedMoEConfig(
        num_experts=experts,
        experts_per_token=TOP,
        hidden_dim=hidden,
        intermediate_size=inner,
        num_local_experts=manager.local_num_experts,
        num_logical_experts=experts,
        activation=keys.pop("activation", MoEActivation.SILU),
        device="cpu",
        routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=ranks,
        in_dtype=torch.bfloat16,
        moe_backend=keys.pop("moe_backend", "triton"),
        **keys,
    )
    # vLLM 0.25.1 tells by the shape.
    named = {"is_fused_checkpoint_transposed": True} if transposed and told() else {}
    return RoutedExperts(PREFIX, torch.bfloat16, moe, config, manager, **named)


def told() -> bool:
    """Whether vLLM is told that a checkpoint's slabs are transposed."""
    import inspect

    from vllm.model_executor.layers.fused_moe import RoutedExperts

    return "is_fused_checkpoint_transposed" in inspect.signature(RoutedExperts).parameters


def make(config, **keys) -> torch.nn.Module:
    """A model with the names of a real one."""
    from vllm.model_executor.models.utils import AutoWeightsLoader

    class Runner(torch.nn.Module):
        """As vLLM's runner hands weights on."""

        def __init__(self):
            super().__init__()
            self.routed_experts = routed(config, **keys)

        def load_weights(self, weights):
            return self.routed_experts.load_weights(weights)

    class Mlp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            experts = keys.get("experts", EXPERTS)
            self.gate = torch.nn.Linear(keys.get("hidden", HIDDEN), experts, bias=False, dtype=torch.bfloat16)
            self.gate.requires_grad_(False)
            self.experts = Runner()

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = Mlp()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer()])

        def load_weights(self, weights) -> set[str]:
            return AutoWeightsLoader(self).load_weights(weights)

    return Model()


def layer_of(model: torch.nn.Module):
    return model.layers[0].mlp.experts.routed_experts


def expected(single: dict[str, torch.Tensor], tp=(0, 1), ep=(0, 1), settings=(0, 0)) -> dict[str, torch.Tensor]:
    """What a rank must hold: each half of each expert quantized by itself."""
    count = sum(name.endswith("up_proj.weight") for name in single)
    mine = range(count * ep[0] // ep[1], count * (ep[0] + 1) // ep[1])
    found = {name: [] for name in ("w13_weight", "w13_weight_scale_inv", "w2_weight", "w2_weight_scale_inv")}
    for expert in mine:
        cut = {
            kind: single[f"{PREFIX}.{expert}.{kind}.weight"].chunk(tp[1], int(kind == "down_proj"))[tp[0]].contiguous()
            for kind in ("gate_proj", "up_proj", "down_proj")
        }
        pairs = {kind: quantized(weight, *settings) for kind, weight in cut.items()}
        for index, suffix in enumerate(("", "_scale_inv")):
            found[f"w13_weight{suffix}"].append(torch.cat([pairs["gate_proj"][index], pairs["up_proj"][index]]))
            found[f"w2_weight{suffix}"].append(pairs["down_proj"][index])
    return {name: torch.stack(tensors) for name, tensors in found.items()}


def quantized(weight: torch.Tensor, *settings) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
    torch.ops.fp8rt.quantize_weight(weight, codes, scales, *settings)
    # Codes are compared, stacked and joined as bytes.
    return codes.view(torch.uint8), scales


def differs(layer, wanted: dict[str, torch.Tensor]) -> list[str]:
    """Names of what a layer holds otherwise."""
    held = {name: getattr(layer, name).detach() for name in wanted}
    held = {name: t.view(torch.uint8) if t.dtype == torch.float8_e4m3fn else t for name, t in held.items()}
    return [name for name in wanted if not torch.equal(held[name], wanted[name])]
