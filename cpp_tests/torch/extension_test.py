"""An extension that was built against fp8rt_torch.hpp and this torch gives what the ops give."""
import os
import sys
import unittest

import support
from support import FP8, load, same, torch

EXTENSION = os.environ.get("FP8RT_TEST_EXTENSION")
if not EXTENSION:
    print("the extension was not built: no headers of torch")
    sys.exit(77)
OPS = load()
torch.ops.load_library(EXTENSION)
THEIRS = torch.ops.fp8rt_extension


class Extension(unittest.TestCase):
    def test_numbers(self):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            weight = torch.randn(300, 500).to(dtype)
            ours, theirs = support.empty_weight(300, 500), support.empty_weight(300, 500)
            OPS.quantize_weight(weight, *ours)
            THEIRS.quantize_weight(weight, *theirs)
            self.assertTrue(same(ours[0], theirs[0]) and same(ours[1], theirs[1]))
            x = torch.randn(7, 600).to(dtype)[:, 50:550]
            self.assertTrue(same(OPS.linear(x, *ours), THEIRS.linear(x, *ours)))
            self.assertEqual(THEIRS.linear(x[:0], *ours).shape, (0, 300))

    def test_errors(self):
        weight, (codes, scales) = torch.randn(128, 128), support.empty_weight(128, 128)
        for pattern, arguments in (
            ("^fp8rt_quantize_weight: scales has 0 rows, weight with N = 128 needs 1", (weight, codes, scales[:0])),
            ("fp8rt takes tensors of 1 to 3 dimensions, this one has 4", (weight[None, None], codes, scales)),
            ("fp8rt takes bfloat16, .* this tensor is Double", (weight.double(), codes, scales)),
            ("fp8rt takes strided tensors, this one is Sparse", (weight.to_sparse(), codes, scales)),
            ("fp8rt takes tensors on the CPU or a CUDA device, this one is on meta",
             (weight.to("meta"), codes.to("meta"), scales.to("meta"))),
        ):
            with self.assertRaisesRegex(RuntimeError, pattern):
                THEIRS.quantize_weight(*arguments)
        self.assertEqual(codes.dtype, FP8)


if __name__ == "__main__":
    torch.manual_seed(0)
    unittest.main()
