"""vLLM's own models of several classes: made with the plugin's configuration, and refitted in buckets of any size."""

import importlib
import json
import pathlib
import tempfile
import unittest
from unittest import mock

import torch
import toy
import world

from fp8rt_vllm import plugin, refit, vllm_kwargs

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Where each class is, and how its configuration differs: biases; a tied head and norms of heads; fused names on disk.
MODELS = {
    "LlamaForCausalLM": ("llama", {}),
    "Qwen2ForCausalLM": ("qwen2", {"model_type": "qwen2"}),
    "Qwen3ForCausalLM": ("qwen3", {"model_type": "qwen3", "tie_word_embeddings": True}),
    "Phi3ForCausalLM": ("phi3", {"model_type": "phi3", "pad_token_id": 0, "rope_theta": 10000.0}),
}
SETTINGS = {"precision": "fp8", "num_last_layers_in_bf16": 1}


def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """A checkpoint, with the head of tied models too and with a name that fills nothing, as some trainers send them."""
    hidden, inner, vocabulary = LLAMA["hidden_size"], LLAMA["intermediate_size"], LLAMA["vocab_size"]
    keys = LLAMA["num_key_value_heads"] * LLAMA["head_dim"]
    found = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(LLAMA["num_hidden_layers"]):
        lead = f"model.layers.{layer}"
        if architecture == "Phi3ForCausalLM":
            found[f"{lead}.self_attn.qkv_proj.weight"] = (hidden + 2 * keys, hidden)
            found[f"{lead}.mlp.gate_up_proj.weight"] = (2 * inner, hidden)
        else:
            for part, rows in (("q", hidden), ("k", keys), ("v", keys)):
                found[f"{lead}.self_attn.{part}_proj.weight"] = (rows, hidden)
                if architecture == "Qwen2ForCausalLM":
                    found[f"{lead}.self_attn.{part}_proj.bias"] = (rows,)
            found |= {f"{lead}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        if architecture == "Qwen3ForCausalLM":
            found |= {f"{lead}.self_attn.{part}_norm.weight": (LLAMA["head_dim"],) for part in "qk"}
        if architecture == "LlamaForCausalLM":
            found[f"{lead}.self_attn.rotary_emb.inv_freq"] = (16,)
        found[f"{lead}.self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{lead}.mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{lead}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def values(architecture: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes(architecture).items()}


class ModelsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from vllm.model_executor.models import ModelRegistry

        plugin.register()
        for architecture, (module, _) in MODELS.items():
            # vLLM looks at a class by its name in a process of its own.
            found = importlib.import_module(f"vllm.model_executor.models.{module}")
            ModelRegistry.register_model(architecture, getattr(found, architecture))
            if hasattr(found, "Attention"):
                cls.enterClassContext(mock.patch.object(found, "Attention", world.NoAttention))

    def configuration(self, architecture: str):
        from vllm.config import DeviceConfig, LoadConfig, ModelConfig, VllmConfig

        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        config = LLAMA | {"architectures": [architecture]} | MODELS[architecture][1]
        pathlib.Path(folder.name, "config.json").write_text(json.dumps(config))
        keywords, _ = vllm_kwargs(SETTINGS, config)
        # An argument of LLM(...) that no ModelConfig has.
        del keywords["moe_backend"]
        model = ModelConfig(
            model=folder.name,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=64,
            enforce_eager=True,
            **keywords,
        )
        dummy = LoadConfig(load_format="dummy")
        return VllmConfig(model_config=model, device_config=DeviceConfig(device="cpu"), load_config=dummy)

    def model(self, config) -> torch.nn.Module:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.utils import initialize_model

        config.compilation_config.static_forward_context.clear()
        with set_current_vllm_config(config), world.building():
            return toy.processed(initialize_model(vllm_config=config))

    def test_methods(self):
        """The last of three layers is kept."""
        for architecture in MODELS:
            model = self.model(self.configuration(architecture))
            methods = {
                name: type(layer.quant_method).__name__
                for name, layer in model.named_modules()
                if name.endswith("_proj") and hasattr(layer, "quant_method")
            }
            self.assertEqual(len(methods), 12, architecture)
            for name, method in methods.items():
                expected = "UnquantizedLinearMethod" if ".layers.2." in name else "Fp8rtLinearMethod"
                self.assertEqual(method, expected, f"{architecture}: {name}")

    def test_refits(self):
        for architecture in MODELS:
            with self.subTest(architecture):
                config = self.configuration(architecture)
                model = self.model(config)
                before = toy.addresses(model)
                for size, seed in ((4, 1), (7, 2), (100, 3)):
                    items = list(values(architecture, seed).items())
                    expected = self.model(config)
                    expected.load_weights(items)
                    for begin in range(0, len(items), size):
                        refit.load_weights(items[begin : begin + size], model)
                    receipt = refit.receipt(model)
                    self.assertEqual(toy.same(toy.state(model), toy.state(expected)), [])
                    self.assertEqual(receipt["blocks_filled"], receipt["blocks_total"])
                    self.assertEqual(toy.addresses(model), before)
                    self.assertEqual(refit.of(model).record.direct, set())


if __name__ == "__main__":
    unittest.main()
