"""The ops give the bytes of the C ABI, for every recipe, format, dtype and layout, and write nothing else."""
import ctypes
import itertools
import unittest

import support
from support import FP8, c, c_tensor, column_major, empty_weight, load, quantize_desc, same, torch

OPS = load()
C = support.Reference()
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def random(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape).to(dtype)


def packed(rows, k):
    """Packed exponents, column-major."""
    padded = -(-rows // 4) * 4
    return torch.zeros(-(-k // 512), padded, dtype=torch.int32)[:, :rows].t()


class Quantize(unittest.TestCase):
    def test_weights(self):
        settings = itertools.product(FLOATS, range(5), range(3), (None, 1e-3))
        for dtype, recipe, scale_format, floor in settings:
            n, k = 200, 300
            weight = random(n, k, dtype=dtype)
            ours, theirs = ((torch.zeros(n, k, dtype=FP8), torch.zeros(2, 3) if scale_format < 2 else packed(n, k))
                            for _ in range(2))
            OPS.quantize_weight(weight, *ours, recipe=recipe, scale_format=scale_format, floor=floor)
            C.quantize("fp8rt_quantize_weight", quantize_desc(recipe, scale_format, floor), weight, *theirs)
            for mine, other in zip(ours, theirs):
                self.assertTrue(same(mine, other), (dtype, recipe, scale_format, floor))
                self.assertGreater(int(mine.view(torch.int8 if mine.dtype == FP8 else mine.dtype).count_nonzero()), 0)

    def test_experts_parts_and_windows(self):
        weight = random(3, 256, 384)
        wide = torch.zeros(3, 256, 512, dtype=FP8)
        ours, theirs = (wide.clone()[:, :, 64:448], torch.zeros(3, 2, 3)), (wide[:, :, 64:448], torch.zeros(3, 2, 3))
        OPS.quantize_weight(weight, *ours)
        C.quantize("fp8rt_quantize_weight", quantize_desc(), weight, *theirs)
        self.assertTrue(all(same(a, b) for a, b in zip(ours, theirs)))
        weight, parts = random(300, 128), [200, 100]
        ours, theirs = ((torch.zeros(300, 128, dtype=FP8), torch.zeros(3, 1)) for _ in range(2))
        OPS.quantize_weight(weight, *ours, part_rows=parts)
        C.quantize("fp8rt_quantize_weight", quantize_desc(part_rows=parts), weight, *theirs)
        self.assertTrue(all(same(a, b) for a, b in zip(ours, theirs)))

    def test_health_is_added_to(self):
        weight = random(128, 128)
        weight[0, 0], weight[1, 1], weight[2, 2] = float("nan"), float("inf"), 1e-30
        health = torch.tensor([100, 200, 300, 400])
        OPS.quantize_weight(weight, *empty_weight(128, 128), health=health)
        theirs = torch.zeros(4, dtype=torch.int64)
        C.quantize("fp8rt_quantize_weight", quantize_desc(), weight, *empty_weight(128, 128), health=theirs)
        self.assertEqual((health - torch.tensor([100, 200, 300, 400])).tolist(), theirs.tolist())
        self.assertEqual(theirs[0], 2)
        self.assertGreaterEqual(theirs[2], 1)

    def test_activations(self):
        for m, k, recipe, scale_format in itertools.product((1, 5, 64), (128, 200), range(5), range(2)):
            wide = random(m, k + 24)
            x = wide[:, 8:8 + k]
            theirs = (torch.zeros(m, k, dtype=FP8), torch.zeros(m, -(-k // 128)))
            C.quantize("fp8rt_quantize_activation", quantize_desc(recipe, scale_format), x, *theirs)
            codes, scales = OPS.quantize_activation(x, recipe, scale_format)
            self.assertTrue(same(codes, theirs[0]) and same(scales, theirs[1]))
            self.assertTrue(codes.is_contiguous() and scales.is_contiguous())
            columns = column_major(m, k)
            codes.zero_()
            OPS.quantize_activation_out(x, codes, columns, recipe, scale_format)
            self.assertTrue(same(codes, theirs[0]) and same(columns, theirs[1]))

    def test_many_weights(self):
        shapes, parts = [(256, 128), (300, 256), (128, 512)], [[], [200, 100], [128]]
        weights = [random(*shape, dtype=dtype) for shape, dtype in zip(shapes, FLOATS)]

        def outputs():
            rows = [2, 3, 1]
            return ([torch.zeros(shape, dtype=FP8) for shape in shapes],
                    [torch.zeros(r, k // 128) for r, (_, k) in zip(rows, shapes)])

        ours, theirs, health = outputs(), outputs(), torch.zeros(4, dtype=torch.int64)
        OPS.quantize_weights(weights, *ours, recipe=3, scale_format=1, part_rows=[200, 100, 128],
                             part_counts=[0, 2, 1], health=health)
        for weight, codes, scales, rows in zip(weights, *theirs, parts):
            C.quantize("fp8rt_quantize_weight", quantize_desc(3, 1, part_rows=rows), weight, codes, scales)
        for mine, other in zip(ours[0] + ours[1], theirs[0] + theirs[1]):
            self.assertTrue(same(mine, other))
        self.assertGreater(int(health[3]), 0)


class Linear(unittest.TestCase):
    def test_like_the_c_abi(self):
        for (m, n, k), dtype, bias_dtype in itertools.product(
                ((1, 256, 512), (7, 192, 200), (33, 128, 384), (0, 128, 128)), FLOATS, (None, torch.float32)):
            _, codes, scales = support.quantized_weight(n, k)
            x, bias = random(m, k, dtype=dtype), None if bias_dtype is None else random(n, dtype=bias_dtype)
            y = OPS.linear(x, codes, scales, bias)
            self.assertEqual((y.dtype, y.shape, y.is_contiguous()), (dtype, (m, n), True))
            self.assertTrue(same(y, C.linear(x, codes, scales, bias)), (m, n, k, dtype))

    def test_settings_reach_the_plan(self):
        _, codes, scales = support.quantized_weight(256, 256)
        x = random(6, 256) * 1e-3
        plain = OPS.linear(x, codes, scales)
        for settings in ({"activation_recipe": 2}, {"activation_scale_format": 1}, {"floor": 0.5}):
            fields = {("flags" if key == "floor" else key): (2 if key == "floor" else value)
                      for key, value in settings.items()}
            if "floor" in settings:
                fields["floor"] = settings["floor"]
            y = OPS.linear(x, codes, scales, **settings)
            self.assertTrue(same(y, C.linear(x, codes, scales, **fields)), settings)
            self.assertFalse(same(y, plain), settings)
        for settings in ({"batch_invariant": True}, {"backends": 32}):
            self.assertTrue(same(OPS.linear(x, codes, scales, **settings), plain))
        with self.assertRaisesRegex(RuntimeError, "no backend takes N = 256, K = 256"):
            OPS.linear(x, codes, scales, backends=2)

    def test_out_writes_y_and_nothing_else(self):
        _, codes, scales = support.quantized_weight(128, 256)
        x = random(5, 512)[:, 100:356]
        wide = torch.full((5, 200), 7.0, dtype=torch.bfloat16)
        OPS.linear_out(x, codes, scales, wide[:, 40:168])
        self.assertTrue(same(wide[:, 40:168], OPS.linear(x, codes, scales)))
        self.assertTrue(bool((wide[:, :40] == 7).all() and (wide[:, 168:] == 7).all()))

    def test_parts_and_packed_scales(self):
        weight, parts = random(300, 256), [200, 100]
        codes, scales = torch.zeros(300, 256, dtype=FP8), torch.zeros(3, 2)
        OPS.quantize_weight(weight, codes, scales, part_rows=parts)
        x = random(4, 256)
        y = OPS.linear(x, codes, scales, part_rows=parts)
        self.assertTrue(same(y, C.linear(x, codes, scales, part_rows=parts)))
        exponents = packed(300, 256)
        OPS.quantize_weight(weight, codes, exponents, scale_format=2)
        y = OPS.linear(x, codes, exponents, activation_scale_format=2)
        self.assertTrue(same(y, C.linear(x, codes, exponents, activation_scale_format=2)))

    def test_prepare_says_what_was_planned(self):
        _, codes, scales = support.quantized_weight(384, 256)
        text = OPS.linear_prepare(codes, scales, 100)
        self.assertTrue(text.startswith("linear M <= 100, N = 384, K = 256, bf16 to bf16: cpu; "), text)
        self.assertIn("M <= 100", OPS.linear_prepare(codes, scales, 50))
        bias = torch.zeros(384)
        self.assertIn("fp16 to fp16", OPS.linear_prepare(codes, scales, 8, bias, torch.float16))


class Producers(unittest.TestCase):
    def setUp(self):
        self.m, self.k = 9, 384

    def outputs(self):
        return torch.zeros(self.m, self.k, dtype=FP8), column_major(self.m, self.k)

    def test_silu_and_mul(self):
        for dtype, recipe in itertools.product(FLOATS, range(5)):
            gate_up, ours, theirs = random(self.m, 2 * self.k, dtype=dtype), self.outputs(), self.outputs()
            health, counted = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
            OPS.silu_and_mul_quantize(gate_up, *ours, recipe=recipe, scale_format=1, health=health)
            C.quantize("fp8rt_silu_and_mul_quantize", quantize_desc(recipe, 1), gate_up, *theirs, health=counted)
            self.assertTrue(same(ours[0], theirs[0]) and same(ours[1], theirs[1]))
            self.assertTrue(same(health, counted))

    def test_rms_norm(self):
        for dtype, has_residual in itertools.product(FLOATS, (False, True)):
            x, weight = random(self.m, self.k, dtype=dtype), random(self.k, dtype=dtype)
            ours, theirs = self.outputs(), self.outputs()
            sums = [random(self.m, self.k, dtype=dtype)] * 2 if has_residual else [None, None]
            sums = [None if s is None else s.clone() for s in sums]
            OPS.rms_norm_quantize(x, weight, 1e-6, *ours, residual=sums[0])
            C.quantize("fp8rt_rms_norm_quantize", quantize_desc(), x, sums[1], weight, ctypes.c_float(1e-6), *theirs)
            self.assertTrue(same(ours[0], theirs[0]) and same(ours[1], theirs[1]))
            if has_residual:
                self.assertTrue(same(sums[0], sums[1]))


class Inputs(unittest.TestCase):
    def test_no_input_is_written(self):
        _, codes, scales = support.quantized_weight(128, 256)
        x, bias = random(5, 256), random(128)
        inputs = [x, codes, scales, bias]
        before = [t.clone() for t in inputs]
        OPS.linear(x, codes, scales, bias)
        OPS.linear_out(x, codes, scales, torch.empty(5, 128, dtype=x.dtype), bias)
        OPS.quantize_activation(x)
        OPS.linear_prepare(codes, scales, 9, bias)
        self.assertTrue(all(same(a, b) for a, b in zip(inputs, before)))

    def test_the_view_is_bounded_by_the_storage(self):
        tensor = c_tensor(torch.zeros(8, 8)[2:, 3:])
        self.assertEqual((tensor.bytes, tensor.dtype), (4 * (64 - 19), c.F32))


if __name__ == "__main__":
    torch.manual_seed(0)
    unittest.main()
