"""Routed experts: what their loaders fill, what reaches vLLM's kernel, and what is refused."""

import itertools
import os
import types
import unittest
from unittest import mock

import torch
import toy
import toy_moe
import world
from toy_moe import PREFIX

from fp8rt_vllm import experts


def loaded(weights: dict, config=None, **keys) -> torch.nn.Module:
    model = toy_moe.make(config or world.config(), **keys)
    model.load_weights(weights.items())
    return toy.processed(model)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What a weight becomes."""
    codes, scales = toy_moe.quantized(weight.contiguous())
    return toy_moe.values(codes.view(torch.float8_e4m3fn)[None], scales[None])[0]


class ExpertsTest(unittest.TestCase):
    def setUp(self):
        self.enterContext(world.world())
        self.calls = self.enterContext(toy_moe.cpu_kernel())

    def test_single_experts_and_slabs(self):
        weights = toy_moe.weights(1)
        wanted = toy_moe.expected(weights)
        for transposed in (None, False, True):
            with self.subTest(transposed=transposed):
                brought = weights if transposed is None else toy_moe.slabs(weights, transposed)
                model = loaded(brought, transposed=bool(transposed))
                self.assertEqual(toy_moe.differs(toy_moe.layer_of(model), wanted), [])

    def test_ranks_hold_their_own(self):
        weights = toy_moe.weights(1)
        for rank in range(2):
            for kind in ("tp", "ep"):
                with self.subTest(rank=rank, kind=kind):
                    ranks = {kind: (rank, 2)}
                    model = loaded(weights, ranks=toy_moe.parallel(**ranks))
                    layer, wanted = toy_moe.layer_of(model), toy_moe.expected(weights, **ranks)
                    self.assertEqual(toy_moe.differs(layer, wanted), [])
                    self.assertEqual(layer.w13_weight.shape[0], 4 if kind == "tp" else 2)
                    self.assertEqual(layer.w2_weight.shape[2], 128 if kind == "tp" else 256)

    def test_power_of_two_weights(self):
        weights = toy_moe.weights(1)
        config = world.config({"precision": "fp8", "pow2_weight_scaling_factors": True})
        layer = toy_moe.layer_of(loaded(weights, config))
        self.assertEqual(toy_moe.differs(layer, toy_moe.expected(weights, settings=(0, 1))), [])
        self.assertTrue(torch.equal(layer.w2_weight_scale_inv.log2() % 1, torch.zeros_like(layer.w2_weight_scale_inv)))

    def test_the_loader_answers_as_vllms(self):
        layer = toy_moe.routed(world.config(), toy_moe.parallel(ep=(1, 2)))
        weight = torch.randn(toy_moe.INNER, toy_moe.HIDDEN).bfloat16()
        call = {"weight_name": "w13_weight", "shard_id": "w1"}
        loader = layer.w13_weight.weight_loader
        self.assertIs(loader.__self__, layer)
        self.assertTrue(loader.supports_moe_loading)
        answers = [loader(layer.w13_weight, weight, **call, expert_id=e, return_success=True) for e in (0, 1, 2, 3)]
        self.assertEqual(answers, [False, False, True, True])
        self.assertIsNone(loader(layer.w13_weight, weight, **call, expert_id=0))
        self.assertIsNone(loader(layer.w13_weight, weight, **call, expert_id=3))

    def test_what_reaches_the_kernel(self):
        torch.manual_seed(1)
        for kind in (None, "tp", "ep"):
            with self.subTest(kind=kind):
                ranks = {} if kind is None else {kind: (1, 2)}
                weights = toy_moe.weights(1)
                layer = toy_moe.layer_of(loaded(weights, ranks=toy_moe.parallel(**ranks)))
                x = (torch.randn(5, toy_moe.HIDDEN) / 8).bfloat16()
                routes = torch.tensor([[0, 1], [2, 3], [1, 3], [3, 0], [2, 1]], dtype=torch.int32)
                shares = torch.rand(5, 2)
                y = layer.forward_modular(x, shares, routes).double()
                call = self.calls[-1]
                self.assertEqual(call["w1"].data_ptr(), layer.w13_weight.data_ptr())
                self.assertEqual(call["w2"].data_ptr(), layer.w2_weight.data_ptr())
                self.assertEqual(call["global_num_experts"], toy_moe.EXPERTS)
                config = layer.quant_method.moe_quant_config
                self.assertEqual(list(config.block_shape), [128, 128])
                self.assertTrue(config.use_fp8_w8a8)
                self.assertEqual(config.w1_scale.data_ptr(), layer.w13_weight_scale_inv.data_ptr())
                self.assertEqual(config.w2_scale.data_ptr(), layer.w2_weight_scale_inv.data_ptr())
                self.assertIsNone(config.a1_scale)
                exact, rounded = self.reference(weights, kind, x, shares, routes)
                self.assertLess(float((y - rounded).norm() / rounded.norm()), 0.004)
                self.assertLess(float((y - exact).norm() / exact.norm()), 0.06)

    def reference(self, weights, kind, x, shares, routes) -> tuple[torch.Tensor, torch.Tensor]:
        """In float64, with the trainer's weights, and with the same as a rank holds them."""
        half = slice(128, 256) if kind == "tp" else slice(None)
        sums = torch.zeros(2, *x.shape, dtype=torch.float64)
        for token, slot in itertools.product(range(len(x)), range(toy_moe.TOP)):
            expert, share = int(routes[token, slot]), shares[token, slot].double()
            if kind == "ep" and expert < 2:
                continue
            names = [f"{PREFIX}.{expert}.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
            gate, up, down = (weights[name] for name in names)
            cut = [gate[half], up[half], down[:, half]]
            for index, (gate, up, down) in enumerate((cut, map(rounded, cut))):
                gate_up = torch.cat([gate, up]).double()
                sums[index, token] += share * toy_moe.mlp(x[token].double(), gate_up, down.double())
        return tuple(sums)

    def test_kernels_are_built_once_and_nothing_is_touched_later(self):
        model = loaded(toy_moe.weights(1))
        layer = toy_moe.layer_of(model)
        before, bytes_before = toy.addresses(model), toy.state(model)
        kernel, config = layer.quant_method.moe_kernel, layer.quant_method.moe_quant_config
        toy.processed(toy.processed(model))
        self.assertIs(layer.quant_method.moe_kernel, kernel)
        self.assertIs(layer.quant_method.moe_quant_config, config)
        self.assertEqual(toy.addresses(model), before)
        self.assertEqual(toy.same(bytes_before, toy.state(model)), [])

    def test_a_layer_that_is_filled_in_part_is_named(self):
        for gone, named in (("1.up_proj", "w13_weight"), ("3.down_proj", "w2_weight")):
            weights = toy_moe.weights(1)
            del weights[f"{PREFIX}.{gone}.weight"]
            with self.assertRaisesRegex(RuntimeError, f"{PREFIX}.{named}: of .* elements .* arrived"):
                loaded(weights)

    def test_a_stock_cast_and_a_loader_that_writes_by_an_op(self):
        layer = toy_moe.routed(world.config())
        layer.w2_weight.data.copy_(torch.randn(layer.w2_weight.shape))
        with self.assertRaisesRegex(RuntimeError, "casts without scaling"):
            for name in ("0.gate_proj", "0.up_proj", "0.down_proj"):
                list(layer.load_weights([(f"{name}.weight", toy_moe.weights(1)[f"{PREFIX}.{name}.weight"])]))
            layer.quant_method.process_weights_after_loading(layer)
        layer.fp8rt["w2_weight"].loader = lambda param, *_args, **_keys: param.data.view(torch.uint8).add_(1)
        with self.assertRaisesRegex(RuntimeError, f"{PREFIX}.w2_weight: the weight loader copied nothing"):
            layer.w2_weight.weight_loader(layer.w2_weight, torch.randn(384, 256).bfloat16(), "w2_weight", "w2", 2)

    def test_biases_are_kept(self):
        layer = toy_moe.routed(world.config(), has_bias=True)
        self.assertEqual(layer.w13_bias.shape, (4, 512))
        self.assertEqual(layer.w2_bias.dtype, torch.bfloat16)
        config = layer.quant_method.get_fused_moe_quant_config(layer)
        self.assertIs(config.w1_bias, layer.w13_bias)
        self.assertIs(config.w2_bias, layer.w2_bias)

    def test_the_method_follows_the_policy(self):
        layer = toy_moe.routed(world.config())
        self.assertIsInstance(layer.quant_method, experts.Fp8rtMoEMethod)
        kept = world.config({"precision": "fp8", "quantization_ignored_layer_kws": ["mlp.experts"]})

        def unquantized(moe):
            return types.SimpleNamespace(moe=moe, unquantized_backend=types.SimpleNamespace(name=self.backend))

        with mock.patch.object(experts, "UnquantizedFusedMoEMethod", unquantized):
            self.backend = "TRITON"
            self.assertIs(kept.get_quant_method(layer, PREFIX).moe, layer.moe_config)
            self.backend = "FLASHINFER_CUTLASS"
            with self.assertRaisesRegex(ValueError, f"{PREFIX} .*FLASHINFER_CUTLASS.* needs moe_backend='triton'"):
                kept.get_quant_method(layer, PREFIX)


class RefusalTest(unittest.TestCase):
    def setUp(self):
        self.enterContext(world.world())
        self.enterContext(toy_moe.cpu_kernel())

    def refused(self, pattern: str, config=None, **keys):
        with self.assertRaisesRegex(ValueError, f"{PREFIX}: {pattern}"):
            toy_moe.routed(config or world.config(), **keys)

    def test_deployments(self):
        self.refused("moe_backend is 'flashinfer_cutlass', .* need 'triton'", moe_backend="flashinfer_cutlass")
        self.refused("enable_eplb is true", ranks=toy_moe.parallel(ep=(0, 2), enable_eplb=True))
        self.refused("an intermediate size of 768 over tensor parallel 4 gives 192 a rank, must be a multiple of 128",
                     ranks=toy_moe.parallel(tp=(1, 4)), inner=768)
        self.refused("an intermediate size of 192 over tensor parallel 1 gives 192", inner=192)
        self.refused("the hidden size is 320, must be a multiple of 128", hidden=320)
        batched = toy_moe.parallel(ep=(0, 2), dp_size=2, all2all_backend="deepep_low_latency")
        self.refused("vLLM's Triton experts cannot run here: all2all_backend 'deepep_low_latency'", ranks=batched)
        layer = toy_moe.routed(world.config(), moe_backend="auto")
        with self.assertRaisesRegex(ValueError, f"{PREFIX}: all2all_backend .* pads the hidden size 384 to 512"):
            sizes = {"num_experts": 4, "hidden_size": 512, "intermediate_size_per_partition": 256}
            layer.quant_method.create_weights(
                layer, **sizes, params_dtype=torch.bfloat16, weight_loader=layer.weight_loader
            )
        toy_moe.routed(world.config(), ranks=toy_moe.parallel(tp=(1, 2)), inner=768)

    def test_what_vllms_kernel_says_of_this_machine(self):
        with mock.patch.object(toy_moe.CpuExperts, "_supports_current_device", staticmethod(lambda: False)):
            self.refused("vLLM's Triton experts cannot run here: kernel does not support current device")

    def test_activations_that_vllm_does_not_make(self):
        pow2 = world.config({"precision": "fp8", "pow2_activation_scaling_factors": True})
        self.refused("activation.scale_format is 'POW2', and vLLM's experts make 'FP32'.*VLLM_USE_DEEP_GEMM_E8M0", pow2)
        with mock.patch.object(experts, "is_deep_gemm_e8m0_used", return_value=True):
            layer = toy_moe.routed(pow2)
            self.assertEqual(layer.quant_method.decision.weight_scale_format, 0)
            self.refused("activation.scale_format is 'FP32', and vLLM's experts make 'POW2'")
        packed = {"precision": "fp8", "fp8rt": {"weight": {"scale_format": "ue8m0_packed"}}}
        self.refused("weight.scale_format is 'UE8M0_PACKED', vLLM's experts read float32", world.config(packed))
        own = {"precision": "fp8", "fp8rt": {"activation": {"recipe": "te"}}}
        self.refused("activation.recipe is 'TE', vLLM's experts have 'VLLM'", world.config(own))

    def test_batch_invariance_is_vllms(self):
        config = world.config(batch_invariant=True)
        self.refused("batch_invariant is true, and VLLM_BATCH_INVARIANT.* is 0", config)
        with mock.patch.dict(os.environ, {"VLLM_BATCH_INVARIANT": "1"}):
            toy_moe.routed(config)


if __name__ == "__main__":
    unittest.main()
