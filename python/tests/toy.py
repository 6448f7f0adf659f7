"""A small Llama-like model of vLLM's own layers, with the usual load_weights."""

from collections.abc import Iterable

import torch

from fp8rt_vllm.layer import states

HIDDEN, HEAD, HEADS, KEYS, INNER, VOCABULARY = 256, 64, 4, 2, 384, 320
STACKED = (
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 0),
    ("gate_up_proj", "up_proj", 1),
)


def shapes(inner: int = INNER) -> dict[str, tuple[int, ...]]:
    """Names of the checkpoint."""
    found = {"embed.weight": (VOCABULARY, HIDDEN), "norm.weight": (HIDDEN,)}
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
            "self_attn.k_proj": (KEYS * HEAD, HIDDEN),
            "self_attn.v_proj": (KEYS * HEAD, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
            "mlp.gate_proj": (inner, HIDDEN),
            "mlp.up_proj": (inner, HIDDEN),
            "mlp.down_proj": (HIDDEN, inner),
        }.items():
            found[f"layers.{layer}.{name}.weight"] = shape
        found[f"layers.{layer}.self_attn.q_proj.bias"] = (HEADS * HEAD,)
        found[f"layers.{layer}.self_attn.k_proj.bias"] = (KEYS * HEAD,)
        found[f"layers.{layer}.self_attn.v_proj.bias"] = (KEYS * HEAD,)
    return found


def values(seed: int, inner: int = INNER) -> dict[str, torch.Tensor]:
    """A version of the trainer's weights."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes(inner).items()}


def make(config, inner: int = INNER, tp: dict | None = None) -> torch.nn.Module:
    """Within `world`."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    keys = {"quant_config": config, "params_dtype": torch.bfloat16}

    class Attention(torch.nn.Module):
        def __init__(self, prefix: str):
            super().__init__()
            self.qkv_proj = QKVParallelLinear(HIDDEN, HEAD, HEADS, KEYS, bias=True, prefix=f"{prefix}.qkv_proj", **keys)
            self.o_proj = RowParallelLinear(HEADS * HEAD, HIDDEN, bias=False, prefix=f"{prefix}.o_proj", **keys)

    class Mlp(torch.nn.Module):
        def __init__(self, prefix: str):
            super().__init__()
            self.gate_up_proj = MergedColumnParallelLinear(
                HIDDEN, [inner, inner], bias=False, prefix=f"{prefix}.gate_up_proj", **keys
            )
            self.down_proj = RowParallelLinear(inner, HIDDEN, bias=False, prefix=f"{prefix}.down_proj", **keys)

    class Layer(torch.nn.Module):
        def __init__(self, prefix: str):
            super().__init__()
            self.self_attn, self.mlp = Attention(f"{prefix}.self_attn"), Mlp(f"{prefix}.mlp")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            kept = {"dtype": torch.bfloat16}
            self.embed = torch.nn.Embedding(VOCABULARY, HIDDEN, **kept).requires_grad_(False)
            self.norm = torch.nn.LayerNorm(HIDDEN, bias=False, **kept).requires_grad_(False)
            self.layers = torch.nn.ModuleList(Layer(f"layers.{i}") for i in range(2))

        def load_weights(self, weights) -> set[str]:
            parameters, loaded = dict(self.named_parameters()), set()
            for name, weight in weights:
                for fused, part, shard in STACKED:
                    if f".{part}." in name:
                        name = name.replace(part, fused)
                        parameter = parameters[name]
                        parameter.weight_loader(parameter, weight, shard)
                        break
                else:
                    if name.endswith("rotary.inv_freq"):
                        continue
                    parameter = parameters[name]
                    getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)
                loaded.add(name)
            return loaded

    return Model()


def processed(model: torch.nn.Module, attentions: Iterable[torch.nn.Module] = ()) -> torch.nn.Module:
    """As vLLM does after loading: methods first, attention after them."""
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if hasattr(method, "process_weights_after_loading"):
            method.process_weights_after_loading(module)
    for attention in attentions:
        attention.process_weights_after_loading(torch.bfloat16)
    return model


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and of the scales beside them, as bytes."""
    return {
        name: tensor.detach().contiguous().view(-1).view(torch.uint8).clone() for name, tensor in tensors(model).items()
    }


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        for weight in states(module):
            found[f"{prefix}.{weight}_scale_inv"] = getattr(module, f"{weight}_scale_inv")
    return found


def addresses(model: torch.nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors(model).items()}


def same(one: dict, other: dict) -> list[str]:
    """Names whose bytes differ."""
    return [name for name in one if not torch.equal(one[name], other[name])]
