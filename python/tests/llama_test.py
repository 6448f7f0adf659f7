"""vLLM's own Llama, attention left out: its load_weights, fused names, padded and tied vocabulary."""

import types
import unittest
from unittest import mock

import torch
import toy
import world

HIDDEN, INNER, VOCABULARY = 256, 384, 300


def values(seed: int, tied: bool) -> dict[str, torch.Tensor]:
    """The trainer's weights, by the names of a checkpoint."""
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,)}
    if not tied:
        shapes["lm_head"] = (VOCABULARY, HIDDEN)
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": (256, HIDDEN),
            "self_attn.k_proj": (128, HIDDEN),
            "self_attn.v_proj": (128, HIDDEN),
            "self_attn.o_proj": (HIDDEN, 256),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    generator = torch.Generator().manual_seed(seed)
    return {f"{n}.weight": torch.randn(s, generator=generator).to(torch.bfloat16) for n, s in shapes.items()}


class NoAttention(torch.nn.Module):
    """Attention asks for a device."""

    def __init__(self, *_args, **_keys):
        super().__init__()


def llama(config, tied: bool) -> torch.nn.Module:
    from transformers import LlamaConfig
    from vllm.model_executor.models import llama

    hf = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
    )
    config.model_config = types.SimpleNamespace(
        dtype=torch.bfloat16,
        head_dtype=torch.bfloat16,
        hf_config=hf,
        hf_text_config=hf,
        quantization="fp8rt",
        is_moe=False,
        is_mm_prefix_lm=False,
        is_encoder_decoder=False,
        runner_type="generate",
        max_model_len=128,
    )
    config.quant_config = world.config()
    world.distributed()
    with mock.patch.object(llama, "Attention", NoAttention):
        # As vLLM does while it builds a model.
        torch.set_default_dtype(torch.bfloat16)
        try:
            return llama.LlamaForCausalLM(vllm_config=config)
        finally:
            torch.set_default_dtype(torch.float32)


class LlamaTest(unittest.TestCase):
    def test_refits_as_its_own_loader_loads(self):
        from fp8rt_vllm import refit

        for tied in (False, True):
            with self.subTest(tied=tied), world.world("dummy") as config:
                model = toy.processed(llama(config, tied))
                before = toy.addresses(model)
                for seed in (1, 2):
                    items = list(values(seed, tied).items())
                    for begin in range(0, len(items), 4):
                        refit.load_weights(items[begin : begin + 4], model)
                    receipt = refit.receipt(model)
                    self.assertEqual(receipt["items"], len(items))
                    self.assertEqual(receipt["destinations_filled"], len(list(model.named_parameters())))
                    self.assertEqual(refit.of(model).record.direct, set())
                    refitted = toy.state(model)
                    model.load_weights(items)
                    self.assertEqual(toy.same(refitted, toy.state(model)), [])
                    self.assertEqual(toy.addresses(model), before)


if __name__ == "__main__":
    unittest.main()
