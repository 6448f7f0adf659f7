#!/usr/bin/env python3
"""vLLM's own linears with our method, on the CPU: what loaders write, on one rank and on two, and what a linear gives."""
import os
import sys
import tempfile
import unittest

from support import GROUPS, HEAD, HEADS, HIDDEN, INTERMEDIATE, torch, version, vllm_config
from vllm.model_executor.layers.linear import (  # noqa: E402
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)

from fp8rt_vllm import library, loading
from fp8rt_vllm.linear import Fp8rtLinearMethod

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
PREFIX = "model.layers.1."
NEMO_RL = 3
OPS = torch.ops.fp8rt


def qkv(config, **more):
    return QKVParallelLinear(HIDDEN, HEAD, HEADS, GROUPS, bias=False, quant_config=config.quant_config,
                             prefix=PREFIX + "self_attn.qkv_proj", params_dtype=BF16, **more)


def gate_up(config, intermediate=INTERMEDIATE):
    return MergedColumnParallelLinear(HIDDEN, [intermediate] * 2, bias=False, quant_config=config.quant_config,
                                      prefix=PREFIX + "mlp.gate_up_proj", params_dtype=BF16)


def down(config):
    return RowParallelLinear(INTERMEDIATE, HIDDEN, bias=False, quant_config=config.quant_config,
                             prefix=PREFIX + "mlp.down_proj", params_dtype=BF16)


def random(rows, columns, seed):
    return torch.randn(rows, columns, dtype=BF16, generator=torch.Generator().manual_seed(seed))


def quantized(weight):
    codes = torch.empty(weight.shape, dtype=FP8)
    scales = torch.empty(loading.blocks(weight.shape[0]), loading.blocks(weight.shape[1]))
    OPS.quantize_weight(weight.contiguous(), codes, scales, NEMO_RL)
    return codes.view(torch.uint8), scales


def load(layer, weight, *shard):
    layer.weight.weight_loader(layer.weight, weight, *shard)


class Cases(unittest.TestCase):
    """What one rank of `ranks` holds; run in every process."""

    rank, ranks = 0, 1

    def expect_parts(self, layer, parts):
        """The layer's weight is these bf16 parts, each quantized by itself."""
        codes, scales = zip(*map(quantized, parts))
        self.assertTrue(torch.equal(layer.weight.data.view(torch.uint8), torch.cat(codes)))
        self.assertTrue(torch.equal(layer.weight_scale_inv.data, torch.cat(scales)))

    def share(self, weight, dimension=0, ranks=None):
        ranks = ranks or self.ranks
        return weight.chunk(ranks, dimension)[self.rank * ranks // self.ranks]

    def check_qkv(self, config):
        layer = qkv(config)
        q, k, v = random(HIDDEN, HIDDEN, 1), random(GROUPS * HEAD, HIDDEN, 2), random(GROUPS * HEAD, HIDDEN, 3)
        for weight, shard in ((v, "v"), (q, "q"), (k, "k")):
            load(layer, weight, shard)
        self.expect_parts(layer, [self.share(one) for one in (q, k, v)])
        return layer

    def check_gate_up(self, config):
        layer = gate_up(config)
        gate, up = random(INTERMEDIATE, HIDDEN, 4), random(INTERMEDIATE, HIDDEN, 5)
        load(layer, up, 1), load(layer, gate, 0)
        self.expect_parts(layer, [self.share(gate), self.share(up)])
        return layer

    def check_down(self, config):
        layer = down(config)
        weight = random(HIDDEN, INTERMEDIATE, 6)
        load(layer, weight)
        self.expect_parts(layer, [self.share(weight, 1)])
        return layer

    def check_all(self, config):
        for layer in (self.check_qkv(config), self.check_gate_up(config), self.check_down(config)):
            layer.quant_method.process_weights_after_loading(layer)
            x = random(5, layer.weight.shape[1], 7)
            y = layer.quant_method.apply(layer, x)
            # Dequantized by its parts, in float32.
            weight, row, band = [], 0, 0
            for part in layer.fp8rt_grid.parts:
                scales = layer.weight_scale_inv[band:band + loading.blocks(part)]
                scales = scales.repeat_interleave(128, 0)[:part].repeat_interleave(128, 1)[:, :x.shape[1]]
                weight.append(layer.weight[row:row + part].float() * scales)
                row, band = row + part, band + loading.blocks(part)
            want = x.float() @ torch.cat(weight).T
            self.assertLess(((y.float() - want).norm() / want.norm()).item(), 0.04)


class OneRank(Cases):
    def setUp(self):
        self.enterContext(vllm_config())
        from vllm.config import get_current_vllm_config

        self.config = get_current_vllm_config()

    def test_every_kind_of_linear(self):
        self.check_all(self.config)

    def test_parts_that_are_no_multiples_of_128_rows(self):
        layer = gate_up(self.config, 448)
        weights = random(448, HIDDEN, 1), random(448, HIDDEN, 2)
        load(layer, weights[0], 0), load(layer, weights[1], 1)
        self.assertEqual(layer.weight_scale_inv.shape[0], 8)
        self.expect_parts(layer, weights)

    def test_a_bucket_is_what_single_weights_are_and_keeps_addresses(self):
        one, other = gate_up(self.config), gate_up(self.config)
        addresses = other.weight.data_ptr(), other.weight_scale_inv.data_ptr()
        for seed in (1, 2):
            weights = random(INTERMEDIATE, HIDDEN, seed), random(INTERMEDIATE, HIDDEN, seed + 10)
            for shard, weight in enumerate(weights):
                load(one, weight, shard)
            with loading.bucket() as filled:
                for shard, weight in enumerate(weights):
                    load(other, weight, shard)
            self.assertEqual(filled.filled, 2 * INTERMEDIATE * HIDDEN)
            self.assertTrue(torch.equal(one.weight.view(torch.uint8), other.weight.view(torch.uint8)))
            self.assertTrue(torch.equal(one.weight_scale_inv, other.weight_scale_inv))
        self.assertEqual((other.weight.data_ptr(), other.weight_scale_inv.data_ptr()), addresses)

    def test_weights_that_are_quantized_already(self):
        layer = gate_up(self.config)
        for shard, seed in enumerate((1, 2)):
            codes, scales = quantized(random(INTERMEDIATE, HIDDEN, seed))
            load(layer, codes.view(FP8), shard)
            layer.weight_scale_inv.weight_loader(layer.weight_scale_inv, scales, shard)
        self.expect_parts(layer, [random(INTERMEDIATE, HIDDEN, seed) for seed in (1, 2)])

    def test_a_loader_that_writes_by_an_op_is_refused(self):
        layer = down(self.config)

        def by_an_op(param, loaded_weight):
            param.data.add_(loaded_weight)

        loader = loading.quantizing_loader(layer, layer.quant_method.decision, by_an_op)
        with self.assertRaisesRegex(ValueError, "writes a weight by aten.add_"):
            loader(layer.weight, random(HIDDEN, INTERMEDIATE, 1))

    def test_a_cut_through_a_block_is_refused_with_its_rows(self):
        grid = loading.Grid([448, 448], HIDDEN)
        self.assertEqual([grid.scale_row(0, 448), grid.scale_row(448, 128), grid.scale_row(832, 64)], [0, 4, 7])
        for row, count in ((64, 128), (448, 100), (0, 512)):
            with self.assertRaisesRegex(ValueError, f"rows {row} to {row + count} cut through a block"):
                grid.scale_row(row, count)


class Settings(unittest.TestCase):
    def test_the_policy_chooses_the_method_of_each_layer(self):
        with vllm_config({"precision": "fp8", "num_first_layers_in_bf16": 1, "use_deep_gemm": False}) as config:
            quant = config.quant_config
            layer = qkv(config)
            self.assertIsInstance(layer.quant_method, Fp8rtLinearMethod)
            self.assertIsInstance(quant.get_quant_method(layer, "model.layers.0.self_attn.qkv_proj"),
                                  UnquantizedLinearMethod)
            self.assertIsInstance(quant.get_quant_method(layer, "model.layers.10.self_attn.qkv_proj"), Fp8rtLinearMethod)
            self.assertIsInstance(quant.get_quant_method(layer, "lm_head"), UnquantizedLinearMethod)
            self.assertIsNone(quant.get_quant_method(torch.nn.Identity(), "model.layers.1.self_attn.attn"))
            # N6: neither ours nor vLLM's.
            self.assertEqual(quant.policy.info["backends"] & 2, 0)
            self.assertFalse(layer.quant_method.use_deep_gemm)
            self.assertEqual(layer.quant_method.backends, quant.policy.info["backends"])

    def test_powers_of_two_reach_weights_and_activations(self):
        settings = {"precision": "fp8", "pow2_weight_scaling_factors": True, "pow2_activation_scaling_factors": True}
        with vllm_config(settings) as config:
            layer = down(config)
            load(layer, random(HIDDEN, INTERMEDIATE, 1))
            mantissas, _ = torch.frexp(layer.weight_scale_inv)
            self.assertTrue(torch.all(mantissas == 0.5))
            self.assertEqual(layer.quant_method.decision.activation_scale_format, 1)

    def test_a_mistyped_setting_stops_the_start_with_the_key_that_is_meant(self):
        with vllm_config({"precision": "fp8", "num_first_layer_in_bf16": 1}) as config:
            with self.assertRaisesRegex(library.Fp8rtError, "num_first_layers_in_bf16"):
                qkv(config)

    def test_unknown_keys_of_the_configuration_are_refused(self):
        with self.assertRaisesRegex(ValueError, "block_size"):
            with vllm_config(block_size=64):
                pass


def run_rank(rank, store, results):
    os.environ["FP8RT_TEST_STORE"] = f"file://{store}"
    Cases.rank, Cases.ranks = rank, 2
    with vllm_config(rank=rank, ranks=2) as config:
        Cases("check_all").check_all(config)
    results.put(rank)


class TwoRanks(unittest.TestCase):
    def test_each_rank_quantizes_its_own_slice(self):
        context = torch.multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory() as folder:
            results = context.Queue()
            ranks = [context.Process(target=run_rank, args=(rank, folder + "/store", results)) for rank in (0, 1)]
            for one in ranks:
                one.start()
            for one in ranks:
                one.join(timeout=300)
            self.assertEqual([one.exitcode for one in ranks], [0, 0])
            self.assertEqual(sorted(results.get(timeout=5) for _ in ranks), [0, 1])


if __name__ == "__main__":
    print(f"vLLM {version()}, torch {torch.__version__}")
    sys.exit(not unittest.main(exit=False).result.wasSuccessful())
