"""What is refused becomes torch's exception with the library's own words, writes nothing, and leaks nothing."""
import resource
import unittest

import support
from support import FP8, empty_weight, load, same, torch

OPS = load()


class Errors(unittest.TestCase):
    def setUp(self):
        self.weight, self.codes, self.scales = support.quantized_weight(256, 512)
        self.x = torch.randn(5, 512).bfloat16()

    def refused(self, pattern, op, *arguments, **settings):
        with self.assertRaisesRegex(RuntimeError, pattern):
            op(*arguments, **settings)

    def test_messages_name_op_argument_and_numbers(self):
        x, codes, scales = self.x, self.codes, self.scales
        for pattern, op, arguments, settings in (
            (r"^fp8rt::linear: x has 500 columns, this linear has K = 512$", OPS.linear,
             (x[:, :500], codes, scales), {}),
            (r"^fp8rt::linear: weight_scales has 1 rows, weight with N = 256 needs 2", OPS.linear,
             (x, codes, scales[:1]), {}),
            (r"^fp8rt::linear: weight has dtype bf16, must be e4m3", OPS.linear, (x, self.weight, scales), {}),
            (r"^fp8rt::linear: x has dtype e4m3, must be", OPS.linear, (codes, codes, scales), {}),
            (r"^fp8rt::linear: x has 1 dimensions, must have 2", OPS.linear, (x[0], codes, scales), {}),
            (r"^fp8rt::linear: x has 4 dimensions, must have 1, 2 or 3", OPS.linear,
             (x[None, None], codes, scales), {}),
            (r"^fp8rt::linear: x has a dtype that is none of", OPS.linear, (x.double(), codes, scales), {}),
            (r"^fp8rt::linear: recipe is 9, the recipes are 0 to 4", OPS.linear, (x, codes, scales),
             {"activation_recipe": 9}),
            (r"^fp8rt::linear: scale_format is -1", OPS.linear, (x, codes, scales), {"activation_scale_format": -1}),
            (r"^fp8rt::linear: floor is -1, must be finite", OPS.linear, (x, codes, scales), {"floor": -1.0}),
            (r"^fp8rt::linear: floor is inf, must be finite", OPS.linear, (x, codes, scales), {"floor": float("inf")}),
            (r"^fp8rt::linear: backends is -1", OPS.linear, (x, codes, scales), {"backends": -1}),
            (r"^fp8rt::linear: backends is 0x1000", OPS.linear, (x, codes, scales), {"backends": 1 << 12}),
            (r"^fp8rt::linear: bias has 255 elements, the plan has N = 256", OPS.linear,
             (x, codes, scales, torch.zeros(255)), {}),
            (r"^fp8rt::linear_prepare: max_m is -1", OPS.linear_prepare, (codes, scales, -1), {}),
            (r"^fp8rt::linear_prepare: dtype must be", OPS.linear_prepare, (codes, scales, 1, None, torch.int8), {}),
            (r"^fp8rt::quantize_activation: scale_format is 2: packed", OPS.quantize_activation, (x, 0, 2), {}),
            (r"^fp8rt::quantize_activation: activation has stride", OPS.quantize_activation, (x.t(),), {}),
        ):
            self.refused(pattern, op, *arguments, **settings)

    def test_nothing_is_written_by_a_refused_call(self):
        codes, scales = torch.full((256, 512), 1.0).to(FP8), torch.full((2, 3), 5.0)
        before = codes.clone(), scales.clone()
        self.refused("scales has 3 columns, weight with K = 512 needs 4", OPS.quantize_weight, self.weight, codes,
                     scales)
        y = torch.full((5, 255), 3.0, dtype=torch.bfloat16)
        self.refused("y has 255 columns, this linear has N = 256", OPS.linear_out, self.x, self.codes, self.scales, y)
        good = empty_weight(256, 512)
        good[0].zero_()
        self.refused(r"entries\[1\]: scales has 3 columns", OPS.quantize_weights, [self.weight] * 2, [good[0], codes],
                     [good[1], scales])
        self.assertTrue(same(codes, before[0]) and same(scales, before[1]) and bool((y == 3).all()))
        self.assertEqual(int(good[0].view(torch.uint8).count_nonzero()), 0)

    def test_lists_must_fit(self):
        weights, (codes, scales) = [self.weight], empty_weight(256, 512)
        self.refused("codes has 2 tensors, weights has 1", OPS.quantize_weights, weights, [codes] * 2, [scales])
        self.refused("scales has 0 tensors, weights has 1", OPS.quantize_weights, weights, [codes], [])
        self.refused(r"part_counts\[0\] is 3, part_rows has 2 numbers left", OPS.quantize_weights, weights, [codes],
                     [scales], part_rows=[128, 128], part_counts=[3])

    def test_overlap_and_health(self):
        self.refused("overlap", OPS.linear_out, self.x, self.codes, self.scales, self.x[:, :256])
        for health in (torch.zeros(4), torch.zeros(3, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)[::2]):
            self.refused("health", OPS.quantize_weight, self.weight, *empty_weight(256, 512), health=health)

    def test_other_devices_are_refused(self):
        meta = self.x.to("meta")
        with self.assertRaises((RuntimeError, NotImplementedError)):
            OPS.linear(meta, self.codes, self.scales).tolist()
        sparse = torch.zeros(5, 512).to_sparse()
        with self.assertRaises((RuntimeError, NotImplementedError)):
            OPS.quantize_activation(sparse)

    def test_wrong_types_are_torchs_own_errors(self):
        self.assertRaises(RuntimeError, lambda: OPS.linear(self.x, self.codes))
        self.assertRaises(RuntimeError, lambda: OPS.linear(self.x, self.codes, self.scales, activation_recipe="VLLM"))

    def test_neither_success_nor_failure_leaks(self):
        """Every kind of argument, many times: tensors, optional ones, lists, numbers."""
        bias, health, parts = torch.zeros(256), torch.zeros(4, dtype=torch.int64), [128, 128]
        out = empty_weight(256, 512)
        x = self.x[:1]

        def calls():
            OPS.linear(x, self.codes, self.scales, bias, floor=1e-10, part_rows=parts)
            OPS.quantize_activation(x)
            OPS.linear_prepare(self.codes, self.scales, 1, bias, torch.bfloat16)
            small = [t[:, :1] for t in (self.weight[:8], out[0][:8], out[1][:1])]
            OPS.quantize_weights([small[0]] * 8, [small[1]] * 8, [small[2]] * 8, part_rows=[8] * 8,
                                 part_counts=[1] * 8, health=health)
            self.refused("recipe", OPS.linear, x, self.codes, self.scales, bias, 9, floor=1.0, part_rows=parts)

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        for _ in range(500):
            calls()
        before = peak()
        for _ in range(4000):
            calls()
        # A handle that is lost costs at least 32 bytes, and there are more than 20 a round.
        self.assertLess(peak() - before, 1024, "KiB")
        self.assertEqual(torch._C._storage_Use_Count(bias.untyped_storage()._cdata) <= 2, True)


if __name__ == "__main__":
    torch.manual_seed(0)
    unittest.main()
