"""A model of vLLM's own attention layers with a linear beside each, loaded by vLLM's own loader of checkpoints."""

import types

import torch
import toy

HIDDEN, HEAD, HEADS, KEYS = 256, 64, 4, 2
LAYERS = 2


def shapes() -> dict[str, tuple[int, ...]]:
    found = {"model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        found[f"model.layers.{layer}.self_attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD)
    return found


def values(seed: int) -> dict[str, torch.Tensor]:
    """A version of the trainer's weights, without scales of the cache."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes().items()}


def scales(first: float, kinds: str = "qkv") -> dict[str, torch.Tensor]:
    """Those of NeMo-RL, under its names: each another value."""
    found = {}
    for layer in range(LAYERS):
        for place, kind in enumerate(kinds):
            module = "self_attn.attn" if kind == "q" else "self_attn"
            name = f"model.layers.{layer}.{module}.{kind}_scale"
            found[name] = torch.tensor([first + layer + place / 8])
    return found


def backend(name: str) -> type:
    """An attention backend of this name, without kernels."""

    class Impl:
        supports_quant_query_input = False
        head_size = HEAD

        def __init__(self, *_args, **_keys):
            pass

        def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
            pass

    class Backend:
        forward_includes_kv_cache_update = True

        @staticmethod
        def get_name() -> str:
            return name

        @staticmethod
        def get_impl_cls() -> type:
            return Impl

        @staticmethod
        def supports_alibi_sqrt() -> bool:
            return False

    return Backend


def make(config, dtype: str = "fp8", kind: str = "TRITON_ATTN", calculate: bool = False) -> torch.nn.Module:
    """Within `world`: a model as vLLM's initialize_model leaves it."""
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import RowParallelLinear
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
    from vllm.model_executor.models.utils import AutoWeightsLoader

    current = get_current_vllm_config()
    current.model_config = types.SimpleNamespace(dtype=torch.bfloat16, is_mm_prefix_lm=False)
    current.compilation_config.static_forward_context.clear()
    cache = types.SimpleNamespace(
        cache_dtype=dtype,
        calculate_kv_scales=calculate,
        sliding_window=None,
        kv_cache_dtype_skip_layers=None,
        enable_prefix_caching=False,
        block_size=16,
    )

    class SelfAttention(torch.nn.Module):
        def __init__(self, prefix: str):
            super().__init__()
            self.o_proj = RowParallelLinear(
                HEADS * HEAD,
                HIDDEN,
                bias=False,
                quant_config=config,
                params_dtype=torch.bfloat16,
                prefix=f"{prefix}.o_proj",
            )
            self.attn = Attention(
                HEADS,
                HEAD,
                HEAD**-0.5,
                num_kv_heads=KEYS,
                cache_config=cache,
                quant_config=config,
                prefix=f"{prefix}.attn",
                attn_backend=backend(kind),
            )

    class Layer(torch.nn.Module):
        def __init__(self, prefix: str):
            super().__init__()
            self.self_attn = SelfAttention(f"{prefix}.self_attn")

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(HIDDEN, bias=False, dtype=torch.bfloat16).requires_grad_(False)
            self.layers = torch.nn.ModuleList(Layer(f"model.layers.{i}") for i in range(LAYERS))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quant_config = config
            self.model = Inner()

        def load_weights(self, weights) -> set[str]:
            return AutoWeightsLoader(self).load_weights(weights)

    model = Model()
    record_metadata_for_reloading(model)
    return model


def attentions(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer.self_attn.attn for layer in model.model.layers]


def processed(model: torch.nn.Module) -> torch.nn.Module:
    return toy.processed(model, attentions(model))


def read(model: torch.nn.Module) -> list[dict[str, float]]:
    """What attention reads, layer by layer."""
    names = [f"_{kind}_scale" for kind in ("k", "v", "q", "prob")]
    return [
        {name: getattr(layer, name).item() for name in names}
        | {name: getattr(layer, name) for name in vars(layer) if name.endswith("_scale_float")}
        | {name: getattr(layer, name).item() for name in vars(layer) if name.endswith("_scale_cpu")}
        for layer in attentions(model)
    ]


def addresses(model: torch.nn.Module) -> list[int]:
    names = [f"_{kind}_scale" for kind in ("k", "v", "q", "prob")]
    return [getattr(layer, name).data_ptr() for layer in attentions(model) for name in names]
