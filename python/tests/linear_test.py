"""The linear method: which layers get it, shapes that vLLM refuses, both kinds of checkpoints, and its errors."""

import unittest

import torch
import toy
import world


def layer(parts: list[int], columns: int, **keys):
    """A merged layer of ours."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    return MergedColumnParallelLinear(
        columns,
        parts,
        bias=keys.pop("bias", False),
        quant_config=world.config(**keys),
        params_dtype=torch.bfloat16,
        prefix="model.layers.0.mlp.gate_up_proj",
    )


class LinearTest(unittest.TestCase):
    def test_the_v2_loaders_are_chosen(self):
        with world.world():
            made = layer([256, 256], 256)
            loader = made.weight.weight_loader
            self.assertIs(loader.__self__, made)
            self.assertEqual(made.fp8rt["weight"].loader, made.weight_loader_v2)
            self.assertFalse(made.quant_method.use_marlin or made.quant_method.use_deep_gemm)
            self.assertIsNone(made.quant_method.fp8_linear)

    def test_unaligned_parts_and_columns(self):
        for parts, columns in (([256, 256], 256), ([130, 200, 72], 144), ([16, 16], 80), ([128], 4112)):
            for bias in (False, True):
                with self.subTest(parts=parts, columns=columns, bias=bias), world.world():
                    made = layer(parts, columns, bias=bias)
                    weights = [torch.randn(rows, columns).bfloat16() for rows in parts]
                    for index, weight in enumerate(weights):
                        made.weight.weight_loader(made.weight, weight, index)
                    whole = torch.cat(weights)
                    if bias:
                        made.bias.data.copy_(torch.randn(sum(parts)))
                    made.quant_method.process_weights_after_loading(made)
                    x = torch.randn(2, 5, columns).bfloat16()
                    y = made(x)[0]
                    exact = torch.nn.functional.linear(x.float(), whole.float(), made.bias.float() if bias else None)
                    self.assertEqual(y.shape, exact.shape)
                    self.assertLess(((y - exact).norm() / exact.norm()).item(), 0.06)
                    # Each part has its own blocks.
                    row, scale = 0, 0
                    for weight in weights:
                        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
                        scales = torch.empty(-(-weight.shape[0] // 128), -(-columns // 128))
                        torch.ops.fp8rt.quantize_weight(weight, codes, scales)
                        self.assertTrue(
                            torch.equal(
                                made.weight[row : row + weight.shape[0]].view(torch.uint8), codes.view(torch.uint8)
                            )
                        )
                        self.assertTrue(torch.equal(made.weight_scale_inv[scale : scale + scales.shape[0]], scales))
                        row, scale = row + weight.shape[0], scale + scales.shape[0]

    def test_eager_and_compiled_agree(self):
        with world.world():
            made = layer([256, 256], 256)
            for index in range(2):
                made.weight.weight_loader(made.weight, torch.randn(256, 256).bfloat16(), index)
            made.quant_method.process_weights_after_loading(made)
            compiled = torch.compile(made.quant_method.apply, fullgraph=True, backend="aot_eager")
            x = torch.randn(3, 256).bfloat16()
            self.assertTrue(torch.equal(compiled(made, x, None), made.quant_method.apply(made, x, None)))

    def test_nothing_arrived(self):
        with world.world("auto"):
            made = layer([256, 256], 256)
            with self.assertRaisesRegex(RuntimeError, "0 arrived"):
                made.quant_method.process_weights_after_loading(made)
        with world.world("dummy"):
            made = layer([256, 256], 256)
            made.quant_method.process_weights_after_loading(made)
            self.assertEqual(made(torch.ones(1, 256).bfloat16())[0].abs().sum(), 0)

    def test_processing_again_changes_nothing(self):
        with world.world():
            model = toy.make(world.config())
            model.load_weights(toy.values(1).items())
            before = toy.state(toy.processed(model))
            self.assertEqual(toy.same(before, toy.state(toy.processed(toy.processed(model)))), [])

    def test_kept_modules_are_vllms(self):
        from vllm.model_executor.layers.linear import ReplicatedLinear, UnquantizedLinearMethod

        with world.world():
            made = ReplicatedLinear(
                256,
                256,
                bias=False,
                quant_config=world.config({"precision": "fp8", "num_first_layers_in_bf16": 1}),
                prefix="model.layers.0.mlp.down_proj",
            )
            self.assertIsInstance(made.quant_method, UnquantizedLinearMethod)


if __name__ == "__main__":
    unittest.main()
