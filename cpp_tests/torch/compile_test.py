"""The ops under torch.compile with fullgraph: the numbers of eager, and no copy beside them."""
import unittest

import support
from support import FP8, load, same, torch
from torch._inductor.utils import run_and_get_code
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

OPS = load()
# What inductor writes for a kernel of its own, and for copies by torch.
OTHER_WORK = ("cpp_fused", "aten.copy", "aten.clone", "auto_functionalized", "triton_")
TRACED = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


class Compiled(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()
        self.weight, self.codes, self.scales = support.quantized_weight(256, 512)

    def x(self, m=5):
        return torch.randn(m, 512).bfloat16()

    def check(self, function, make, calls, dynamic=None):
        """Compiled and eager write and return the same; the code has as many calls of ours and nothing beside them."""
        inputs = make()
        copies = [[t.clone() for t in i] if isinstance(i, list) else i.clone() for i in inputs]
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
        results, (code,) = run_and_get_code(compiled, *inputs)
        body = code[code.index("def call("):]
        expected = function(*copies)
        for ours, theirs in zip(flat((results, inputs)), flat((expected, copies)), strict=True):
            self.assertTrue(same(ours, theirs))
        self.assertEqual(body.count("torch.ops.fp8rt.") - body.count("'torch.ops.fp8rt.") -
                         body.count("(op: torch.ops.fp8rt."), calls, body)
        for other in OTHER_WORK:
            self.assertNotIn(other, body)
        return compiled

    def test_linear(self):
        def function(x):
            return OPS.linear(x, self.codes, self.scales)

        for dynamic in (False, True):
            torch._dynamo.reset()
            compiled = self.check(function, lambda: [self.x()], 1, dynamic)
            with torch._dynamo.config.patch(error_on_recompile=dynamic):
                for m in (9, 17, 33):
                    x = self.x(m)
                    self.assertTrue(same(compiled(x), function(x)))

    def test_linear_into_a_new_y(self):
        def function(x):
            y = torch.empty(x.shape[0], 256, dtype=x.dtype)
            OPS.linear_out(x, self.codes, self.scales, y)
            return y

        for dynamic in (False, True):
            torch._dynamo.reset()
            self.check(function, lambda: [self.x()], 1, dynamic)

    def test_two_linears_with_a_bias(self):
        _, codes, scales = support.quantized_weight(512, 256, seed=1)
        bias = torch.randn(256).bfloat16()

        def function(x):
            return OPS.linear(OPS.linear(x, self.codes, self.scales, bias), codes, scales)

        self.check(function, lambda: [self.x()], 2)

    def test_quantize_activation(self):
        for dynamic in (False, True):
            torch._dynamo.reset()
            self.check(lambda x: OPS.quantize_activation(x, 2, 1), lambda: [self.x()], 1, dynamic)

    def test_producers(self):
        def function(gate_up, x, weight, residual):
            codes, scales = torch.empty(5, 512, dtype=FP8), torch.empty(5, 4)
            more = torch.empty(5, 512, dtype=FP8), torch.empty(5, 4)
            OPS.silu_and_mul_quantize(gate_up, codes, scales)
            OPS.rms_norm_quantize(x, weight, 1e-6, *more, residual=residual)
            return codes, scales, *more

        def make():
            return [torch.randn(5, 1024).bfloat16(), self.x(), torch.randn(512).bfloat16(), self.x()]

        self.check(function, make, 2)

    def test_refit(self):
        def function(weights, codes, scales):
            OPS.quantize_weights(weights, codes, scales)

        def make():
            outputs = [support.empty_weight(256, 512) for _ in range(2)]
            return [[torch.randn(256, 512) for _ in range(2)], [o[0] for o in outputs], [o[1] for o in outputs]]

        self.check(function, make, 1)

    def test_a_wrong_shape_fails_while_tracing(self):
        compiled = torch.compile(lambda x: OPS.linear(x, self.codes, self.scales), fullgraph=True)
        with self.assertRaisesRegex(Exception, r"fp8rt::linear: x \[M, K\] and weight \[N, K\] do not fit: aten::mm"):
            compiled(torch.zeros(5, 100).bfloat16())


class Prepare(unittest.TestCase):
    """Plans are made before: there is nothing to plan for tensors without memory, and the text is no tensor."""
    SAYS = "fp8rt::linear_prepare: weight has no memory: call it outside"

    def test_without_memory(self):
        codes, scales = support.empty_weight(256, 512, "meta")
        with self.assertRaisesRegex(RuntimeError, self.SAYS):
            OPS.linear_prepare(codes, scales, 4)
        with FakeTensorMode(), self.assertRaisesRegex(RuntimeError, self.SAYS):
            OPS.linear_prepare(*support.empty_weight(256, 512), 4)

    def test_inside_of_what_is_compiled(self):
        _, codes, scales = support.quantized_weight(256, 512)

        def function(x):
            OPS.linear_prepare(codes, scales, 8)
            return OPS.linear(x, codes, scales)

        torch._dynamo.reset()
        with self.assertRaises(torch._dynamo.exc.TorchDynamoException) as raised:
            torch.compile(function, fullgraph=True)(torch.zeros(5, 512).bfloat16())
        self.assertIn(self.SAYS, str(raised.exception))


class Opcheck(unittest.TestCase):
    """torch's own check. Its schema test does arithmetic on every input, which float8 has not; numbers_test.py compares
    inputs before and after instead."""

    def test_ops(self):
        weight, codes, scales = support.quantized_weight(256, 512)
        x, y = torch.randn(5, 512).bfloat16(), torch.empty(5, 256).bfloat16()
        outputs = torch.empty(5, 512, dtype=FP8), torch.empty(5, 4)
        norm, residual = torch.randn(512).bfloat16(), torch.randn(5, 512).bfloat16()
        health = torch.zeros(4, dtype=torch.int64)
        opcheck(OPS.quantize_activation.default, (x,))
        for op, arguments, settings in (
            (OPS.linear, (x, codes, scales), {}),
            (OPS.linear, (x, codes, scales, norm[:256]), {"part_rows": [128, 128], "floor": 1e-3}),
            (OPS.linear_out, (x, codes, scales, y), {}),
            (OPS.quantize_weight, (weight, codes, scales), {"health": health}),
            (OPS.quantize_activation_out, (x, *outputs), {}),
            (OPS.silu_and_mul_quantize, (torch.randn(5, 1024).bfloat16(), *outputs), {}),
            (OPS.rms_norm_quantize, (x, norm, 1e-6, *outputs), {"residual": residual}),
            (OPS.quantize_weights, ([weight] * 2, [codes, codes.clone()], [scales, scales.clone()]), {}),
        ):
            with self.subTest(op=op):
                opcheck(op.default, arguments, settings, test_utils=TRACED)

    def test_shapes_without_memory(self):
        meta = torch.empty(5, 500, dtype=torch.bfloat16, device="meta")
        codes, scales = OPS.quantize_activation(meta)
        self.assertEqual((codes.shape, codes.dtype, scales.shape, scales.dtype), ((5, 500), FP8, (5, 4), torch.float32))
        weight = torch.empty(256, 500, dtype=FP8, device="meta")
        y = OPS.linear(meta, weight, torch.empty(2, 4, device="meta"))
        self.assertEqual((y.shape, y.dtype, y.stride()), ((5, 256), torch.bfloat16, (256, 1)))


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [] if value is None else [tensor for item in value for tensor in flat(item)]


if __name__ == "__main__":
    torch.manual_seed(0)
    unittest.main()
