"""vLLM's own Qwen3-MoE, attention left out: its load_weights, its runner of experts, its router that stays in BF16."""

import types
import unittest
from unittest import mock

import torch
import toy
import toy_moe
import world

HIDDEN, INNER, EXPERTS, VOCABULARY = 256, 128, 4, 300


def values(seed: int) -> dict[str, torch.Tensor]:
    """The trainer's weights, by the names of a checkpoint."""
    shapes = {"model.embed_tokens": (VOCABULARY, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)}
    for layer in range(2):
        own = {
            "self_attn.q_proj": (256, HIDDEN),
            "self_attn.k_proj": (128, HIDDEN),
            "self_attn.v_proj": (128, HIDDEN),
            "self_attn.o_proj": (HIDDEN, 256),
            "self_attn.q_norm": (64,),
            "self_attn.k_norm": (64,),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "mlp.gate": (EXPERTS, HIDDEN),
        }
        for expert in range(EXPERTS):
            own |= {f"mlp.experts.{expert}.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")}
            own[f"mlp.experts.{expert}.down_proj"] = (HIDDEN, INNER)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(seed)
    return {f"{n}.weight": torch.randn(s, generator=generator).to(torch.bfloat16) for n, s in shapes.items()}


def qwen3_moe(config) -> torch.nn.Module:
    from transformers import Qwen3MoeConfig
    from vllm.model_executor.models import qwen3_moe

    hf = Qwen3MoeConfig(
        hidden_size=HIDDEN,
        intermediate_size=512,
        moe_intermediate_size=INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    config.model_config = types.SimpleNamespace(
        dtype=torch.bfloat16,
        head_dtype=torch.bfloat16,
        hf_config=hf,
        hf_text_config=hf,
        quantization="fp8rt",
        is_moe=True,
        is_mm_prefix_lm=False,
        is_encoder_decoder=False,
        runner_type="generate",
        max_model_len=128,
    )
    config.quant_config = world.config()
    config.kernel_config.moe_backend = "triton"
    with mock.patch.object(qwen3_moe, "Attention", world.NoAttention), world.building():
        return qwen3_moe.Qwen3MoeForCausalLM(vllm_config=config)


class Qwen3MoeTest(unittest.TestCase):
    def test_refits_as_its_own_loader_loads(self):
        from fp8rt_vllm import experts, refit

        with world.world("dummy") as config, toy_moe.cpu_kernel():
            model = toy.processed(qwen3_moe(config))
            routed = model.get_submodule("model.layers.1.mlp.experts.routed_experts")
            self.assertIsInstance(routed.quant_method, experts.Fp8rtMoEMethod)
            self.assertEqual(model.get_submodule("model.layers.1.mlp.gate").weight.dtype, torch.bfloat16)
            before = toy.addresses(model)
            for seed in (1, 2):
                items = list(values(seed).items())
                for begin in range(0, len(items), 7):
                    refit.load_weights(items[begin : begin + 7], model)
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
