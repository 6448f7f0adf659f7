"""Multi-head latent attention: what vLLM derives from kv_b_proj follows it in place, however it is filled."""

import types
import unittest
from unittest import mock

import torch
import toy
import world

from fp8rt_vllm import mla, refit

# Moonlight's heads and ranks, few of them; and a head size that makes kv_b_proj end inside a block, as of some models
# whose heads are split among many ranks.
HEADS, NOPE, VALUE, RANK = 2, 128, 128, 512
ODD = {"nope": 96, "value": 64, "rank": 448}


def values(seed: int, nope: int = NOPE, value: int = VALUE, rank: int = RANK) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"norm.weight": (256,)}
    for layer in range(2):
        shapes[f"layers.{layer}.self_attn.kv_b_proj.weight"] = (HEADS * (nope + value), rank)
    return {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in shapes.items()}


def make(config, nope: int = NOPE, value: int = VALUE, rank: int = RANK, dtype: str = "auto") -> torch.nn.Module:
    """vLLM's own attention module without what needs a device: its constructor asks for a backend."""
    from vllm.model_executor.layers.attention import MLAAttention
    from vllm.model_executor.layers.attention.attention import _init_kv_cache_quant
    from vllm.model_executor.layers.linear import ColumnParallelLinear
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    class Attention(MLAAttention):
        def __init__(self, kv_b_proj, prefix: str):
            torch.nn.Module.__init__(self)
            self.num_heads, self.qk_nope_head_dim, self.v_head_dim, self.kv_lora_rank = HEADS, nope, value, rank
            self.kv_b_proj, self.quant_config, self.layer_name = kv_b_proj, config, prefix
            self.kv_cache_dtype, self.calculate_kv_scales = dtype, False
            self.is_aiter_triton_fp4_bmm_enabled = self.is_aiter_triton_fp8_bmm_enabled = False
            self.is_amx_bmm_enabled = self.dcp_q_replicate = False
            self.impl = types.SimpleNamespace(process_weights_after_loading=lambda act_dtype: None)
            self.processed = 0
            _init_kv_cache_quant(self, config, prefix)

        def process_weights_after_loading(self, act_dtype):
            self.processed += 1
            super().process_weights_after_loading(act_dtype)

    class SelfAttention(torch.nn.Module):
        def __init__(self, prefix: str):
            super().__init__()
            self.kv_b_proj = ColumnParallelLinear(
                rank,
                HEADS * (nope + value),
                bias=False,
                quant_config=config,
                params_dtype=torch.bfloat16,
                prefix=f"{prefix}.kv_b_proj",
            )
            self.mla_attn = Attention(self.kv_b_proj, f"{prefix}.attn")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(256, bias=False, dtype=torch.bfloat16).requires_grad_(False)
            self.layers = torch.nn.ModuleList()
            for layer in range(2):
                module = torch.nn.Module()
                module.self_attn = SelfAttention(f"layers.{layer}.self_attn")
                self.layers.append(module)

        def load_weights(self, weights) -> set[str]:
            parameters, loaded = dict(self.named_parameters()), set()
            for name, weight in weights:
                if name.endswith(".k_scale"):
                    continue
                parameter = parameters[name]
                getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)
                loaded.add(name)
            return loaded

    model = Model()
    record_metadata_for_reloading(model)
    return model


def attentions(model: torch.nn.Module) -> list:
    return [layer.self_attn.mla_attn for layer in model.layers]


def processed(model: torch.nn.Module) -> torch.nn.Module:
    return toy.processed(model, attentions(model))


def fresh(seed: int, config, dtype: str = "auto", **shape) -> torch.nn.Module:
    model = make(config, dtype=dtype, **shape)
    model.load_weights(values(seed, **shape).items())
    return processed(model)


class Graph:
    """What a captured graph has of a model: addresses, with the layout at capture, whatever the attributes become."""

    def __init__(self, model: torch.nn.Module):
        self.held = [
            tensor.detach().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            for attention in attentions(model)
            for tensor in (attention.W_UV, attention.W_UK_T)
        ]

    def replay(self) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        vectors = [torch.randn(t.shape[0], 3, t.shape[1], generator=generator).to(t.dtype) for t in self.held]
        return [torch.bmm(one, held) for one, held in zip(vectors, self.held, strict=True)]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


KEPT = {"fp8rt": {"rules": [{"glob": "*.kv_b_proj", "decision": "keep"}]}}


def kinds() -> dict[str, tuple]:
    """Configurations and shapes."""
    return {
        "blocks": (world.config(), {}),
        "edges": (world.config(), ODD),
        "kept": (world.config({"precision": "fp8", **KEPT}), {}),
    }


def reload(model: torch.nn.Module, weights: dict) -> None:
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    initialize_layerwise_reload(model)
    model.load_weights(weights.items())
    finalize_layerwise_reload(model, types.SimpleNamespace(dtype=torch.bfloat16))


def by_refit(model: torch.nn.Module, weights: dict) -> None:
    for name, weight in weights.items():
        refit.load_weights([(name, weight)], model)
    refit.receipt(model)


def plain(model: torch.nn.Module, weights: dict) -> None:
    model.load_weights(weights.items())


def processed_again(model: torch.nn.Module, weights: dict) -> None:
    """As NeMo-RL does after a refit."""
    refit.load_weights(weights.items(), model)
    processed(model)


class Follows(unittest.TestCase):
    def test_in_the_old_storage(self):
        for way in (by_refit, plain, reload, processed_again):
            for kind in ("blocks", "edges", "kept"):
                with self.subTest(way=way.__name__, kind=kind), world.world():
                    config, shape = kinds()[kind]
                    model = fresh(1, config, **shape)
                    graph = Graph(model)
                    for seed in (2, 3):
                        way(model, values(seed, **shape))
                        expected = Graph(fresh(seed, config, **shape)).replay()
                        self.assertTrue(equal(graph.replay(), expected))
                        self.assertTrue(equal(Graph(model).replay(), expected))
                        self.assertFalse(equal(graph.replay(), Graph(fresh(1, config, **shape)).replay()))

    def test_ways_in_turns(self):
        with world.world():
            config = world.config()
            model = fresh(1, config)
            graph = Graph(model)
            for seed, way in enumerate((by_refit, reload, by_refit, plain, reload, processed_again, by_refit), 2):
                way(model, values(seed))
                self.assertTrue(equal(graph.replay(), Graph(fresh(seed, config)).replay()), way.__name__)

    def test_after_a_start_on_random_weights(self):
        with world.world("dummy"):
            config = world.config()
            model = processed(make(config))
            graph = Graph(model)
            for seed in (1, 2):
                by_refit(model, values(seed))
                self.assertTrue(equal(graph.replay(), Graph(fresh(seed, config)).replay()))

    def test_codes_and_scales(self):
        with world.world():
            config, plain_config = world.config(serialized=True), world.config()
            checkpoints = []
            for seed in (1, 2):
                weights = values(seed)
                for name in [name for name in weights if "kv_b" in name]:
                    codes = torch.empty(weights[name].shape, dtype=torch.float8_e4m3fn)
                    scales = torch.empty(*(-(-size // 128) for size in weights[name].shape))
                    torch.ops.fp8rt.quantize_weight(weights[name], codes, scales)
                    weights |= {name: codes, f"{name}_scale_inv": scales}
                checkpoints.append(weights)
            for way in (by_refit, plain, reload):
                for turned in (False, True):
                    model = make(config)
                    model.load_weights(checkpoints[0].items())
                    graph = Graph(processed(model))
                    self.assertTrue(equal(graph.replay(), Graph(fresh(1, plain_config)).replay()))
                    items = list(checkpoints[1].items())
                    way(model, dict(reversed(items)) if turned else dict(items))
                    self.assertTrue(equal(graph.replay(), Graph(fresh(2, plain_config)).replay()), way.__name__)

    def test_once_a_refit(self):
        with world.world():
            config = world.config()
            model = fresh(1, config)
            by_refit(model, values(2))
            before = [attention.processed for attention in attentions(model)]
            by_refit(model, values(3))
            self.assertEqual([attention.processed - 1 for attention in attentions(model)], before)

    def test_what_is_derived_is_no_parameter_of_a_refit(self):
        """With one head vLLM's 0.33.0 makes a parameter of it that looks like any other."""
        with world.world(), mock.patch(f"{__name__}.HEADS", 1):
            config = world.config({"precision": "fp8", **KEPT})
            model = fresh(1, config)
            graph = Graph(model)
            by_refit(model, values(2))
            self.assertTrue(equal(graph.replay(), Graph(fresh(2, config)).replay()))
            self.assertEqual({d.name for d in refit.of(model).destinations}, set(values(1)))


class Numbers(unittest.TestCase):
    def test_derived_from_what_the_linear_holds(self):
        """Whole blocks are dequantized exactly. At an edge vLLM multiplies by the identity, whose own quantization may
        cost a last bit of float32 before it is rounded to 16 bits.
        """
        with world.world():
            for kind, allowed in (("blocks", 0), ("edges", 1e-3)):
                config, shape = kinds()[kind]
                attention = attentions(fresh(1, config, **shape))[0]
                linear = attention.kv_b_proj
                rows, columns = linear.weight.shape
                scales = linear.weight_scale_inv.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
                exact = (linear.weight.float() * scales).to(torch.bfloat16)
                exact = exact.T.view(columns, HEADS, -1)
                nope = attention.qk_nope_head_dim
                pairs = (
                    (attention.W_UK_T, exact[..., :nope].permute(1, 2, 0)),
                    (attention.W_UV, exact[..., nope:].transpose(0, 1)),
                )
                for found, expected in pairs:
                    self.assertEqual(found.shape, expected.shape)
                    differ = (found != expected).float().mean().item()
                    self.assertLessEqual(differ, allowed)
                    # By one in the last place of bfloat16, where at all.
                    gap = (found.float() - expected.float()).abs()
                    self.assertTrue((gap <= expected.float().abs() / 128).all())


class Refused(unittest.TestCase):
    def test_scales_of_its_cache(self):
        with world.world():
            model = fresh(1, world.config(), dtype="fp8")
            name = "layers.1.self_attn.k_scale"
            for seed, value in ((2, 1.0), (3, 1.0)):
                by_refit(model, {**values(seed), name: torch.tensor([value])})
            with self.assertRaisesRegex(NotImplementedError, f"{name} is 0.5"):
                by_refit(model, {**values(4), name: torch.tensor([0.5])})
            refit.begin(model)
            # Of a layer on another rank.
            by_refit(model, {**values(5), "layers.7.self_attn.k_scale": torch.tensor([0.5])})

    def test_queries_of_prefill_in_fp8(self):
        with world.world() as config:
            config.attention_config.use_prefill_query_quantization = True
            make(world.config({"precision": "fp8", **KEPT}), dtype="fp8")
            make(world.config(), dtype="auto")
            with self.assertRaisesRegex(ValueError, "layers.0.self_attn.attn: use_prefill_query_quantization is true"):
                make(world.config(), dtype="fp8")

    def test_another_shape_than_before(self):
        with world.world():
            attention = attentions(fresh(1, world.config()))[0]
            # A parameter with one vLLM, a tensor with the other.
            other = torch.zeros(2, 3)
            attention.W_UV = torch.nn.Parameter(other) if isinstance(attention.W_UV, torch.nn.Parameter) else other
            with self.assertRaisesRegex(RuntimeError, "W_UV of layers.0.self_attn.attn is .2, 3."):
                mla.follow(attention)


if __name__ == "__main__":
    unittest.main()
