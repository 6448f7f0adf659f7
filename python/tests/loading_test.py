"""The wrapped loaders: what they record, and what they refuse."""

import unittest

import torch
import toy
import world

from fp8rt_vllm import refit


def row_parallel(columns: int = 512, **keys):
    from vllm.model_executor.layers.linear import RowParallelLinear

    return RowParallelLinear(
        columns,
        256,
        bias=False,
        quant_config=world.config(**keys),
        params_dtype=torch.bfloat16,
        prefix="model.layers.0.mlp.down_proj",
    )


class LoadingTest(unittest.TestCase):
    def test_a_view_that_is_no_box_is_not_taken_for_one(self):
        from fp8rt_vllm.loading import box, stand_in

        whole = stand_in(torch.empty(6, 8))
        self.assertEqual(box(whole[2:5, 1:4], whole), ((0, 2, 1), (1, 3, 3)))
        self.assertEqual(box(whole[4], whole), ((0, 4, 0), (1, 1, 8)))
        for view in (whole.t(), whole[::2], whole[:, ::2], whole.view(12, 4), whole.view(-1)[4:12], whole[:, :0]):
            self.assertIsNone(box(view, whole), (view.shape, view.stride()))

    def test_each_rank_quantizes_its_own_slice(self):
        weight = torch.randn(256, 520).bfloat16()
        for rank in range(2):
            with world.world(rank=rank, ranks=2):
                made = row_parallel(520)
                made.weight.weight_loader(
                    made.weight,
                    weight,
                )
                mine = weight[:, 260 * rank : 260 * (rank + 1)].contiguous()
                codes, scales = torch.empty(mine.shape, dtype=torch.float8_e4m3fn), torch.empty(2, 3)
                torch.ops.fp8rt.quantize_weight(mine, codes, scales)
                self.assertTrue(torch.equal(made.weight.view(torch.uint8), codes.view(torch.uint8)))
                self.assertTrue(torch.equal(made.weight_scale_inv, scales))

    def test_replicated_heads(self):
        """Two ranks hold each key head."""
        from vllm.model_executor.layers.linear import QKVParallelLinear

        weight = torch.randn(128, 256).bfloat16()
        for rank in range(4):
            with world.world(rank=rank, ranks=4):
                made = QKVParallelLinear(
                    256,
                    64,
                    8,
                    2,
                    bias=False,
                    quant_config=world.config(),
                    prefix="l.0.qkv_proj",
                    params_dtype=torch.bfloat16,
                )
                made.weight.weight_loader(made.weight, weight, "k")
                (region,) = made.fp8rt["weight"].weights
                self.assertEqual(
                    (region.source_first, region.extent, region.destination_first),
                    ((0, 64 * (rank // 2), 0), (1, 64, 256), (0, 128, 0)),
                )

    def test_a_loader_that_writes_by_an_op(self):
        with world.world():
            made = row_parallel()
            made.fp8rt["weight"].loader = lambda param, weight: param.data.view(torch.uint8).add_(1)
            with self.assertRaisesRegex(RuntimeError, "down_proj: the weight loader copied nothing"):
                made.weight.weight_loader(made.weight, torch.randn(256, 512).bfloat16())

    def test_a_stock_cast_is_noticed(self):
        """A loader that replaces ours casts without scales: at the first start, and in a refit."""
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        with world.world():
            made = row_parallel()
            made.weight.weight_loader = default_weight_loader
            default_weight_loader(made.weight, torch.randn(256, 512).bfloat16())
            with self.assertRaisesRegex(RuntimeError, "casts without scaling"):
                made.quant_method.process_weights_after_loading(made)
        with world.world("dummy"):
            model = toy.processed(toy.make(world.config()))
            model.layers[0].mlp.down_proj.weight.weight_loader = lambda param, weight: param.data.copy_(-weight)
            with self.assertRaisesRegex(RuntimeError, "layers.0.mlp.down_proj.weight: a loader casts"):
                refit.load_weights(toy.values(1).items(), model)

    def test_a_replaced_loader_that_copies_is_quantized_all_the_same(self):
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        with world.world("dummy"):
            models = [toy.processed(toy.make(world.config())) for _ in range(2)]
            models[0].layers[0].mlp.down_proj.weight.weight_loader = default_weight_loader
            for model in models:
                refit.load_weights(toy.values(1).items(), model)
                refit.receipt(model)
            self.assertEqual(toy.same(toy.state(models[0]), toy.state(models[1])), [])

    def test_integers_and_cut_scales_are_refused(self):
        with world.world():
            made = row_parallel()
            with self.assertRaisesRegex(TypeError, "a weight of torch.int8"):
                made.weight.weight_loader(made.weight, torch.zeros(256, 512, dtype=torch.int8))
        with world.world(rank=1, ranks=2):
            made = row_parallel(520, serialized=True)
            made.weight.weight_loader(made.weight, torch.zeros(256, 520).to(torch.float8_e4m3fn))
            with self.assertRaisesRegex(ValueError, "inside of a block"):
                made.weight_scale_inv.weight_loader(made.weight_scale_inv, torch.ones(2, 5))

    def test_scales_before_codes(self):
        with world.world():
            made = row_parallel(serialized=True)
            codes, scales = torch.randn(256, 512).to(torch.float8_e4m3fn), torch.rand(2, 4)
            made.weight_scale_inv.weight_loader(made.weight_scale_inv, scales)
            with self.assertRaisesRegex(RuntimeError, "1 scales lack codes"):
                made.quant_method.process_weights_after_loading(made)
            made.weight.weight_loader(made.weight, codes)
            made.quant_method.process_weights_after_loading(made)
            self.assertTrue(torch.equal(made.weight.view(torch.uint8), codes.view(torch.uint8)))
            self.assertTrue(torch.equal(made.weight_scale_inv, scales))


if __name__ == "__main__":
    unittest.main()
