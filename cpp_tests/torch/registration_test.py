"""The ops are there after load_library, with schemas that say what each writes."""
import ctypes
import re
import unittest

from support import LIBRARY, load, torch

OPS = load()
WRITES = {
    "quantize_weight": {"codes", "scales", "health"},
    "quantize_weights": {"codes", "scales", "health"},
    "quantize_activation": set(),
    "quantize_activation_out": {"codes", "scales", "health"},
    "linear": set(),
    "linear_out": {"y"},
    "linear_prepare": set(),
    "silu_and_mul_quantize": {"codes", "scales", "health"},
    "rms_norm_quantize": {"codes", "scales", "residual", "health"},
}


class Registration(unittest.TestCase):
    def test_every_op_is_there_and_no_other(self):
        names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
                 if name.startswith("fp8rt::")}
        self.assertEqual(names, set(WRITES))

    def test_what_an_op_writes_is_in_its_schema(self):
        for name, expected in WRITES.items():
            schema = getattr(OPS, name).default._schema
            writes = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
            self.assertEqual(writes, expected, schema)
            letters = re.findall(r"\((\w)!\)", str(schema))
            self.assertEqual(len(set(letters)), len(expected), f"each output is a memory of its own: {schema}")

    def test_results_are_new(self):
        for name in WRITES:
            schema = getattr(OPS, name).default._schema
            self.assertTrue(all(r.alias_info is None for r in schema.returns), schema)

    def test_kernels_for_memory_and_for_tracing(self):
        for name in WRITES:
            for key in ("CPU", "CUDA", "Meta"):
                self.assertTrue(torch._C._dispatch_has_kernel_for_dispatch_key(f"fp8rt::{name}", key), (name, key))

    def test_registering_again_does_nothing(self):
        library = ctypes.CDLL(LIBRARY)
        for _ in range(3):
            self.assertEqual(library.fp8rt_torch_register(), 0)
        torch.ops.load_library(LIBRARY)


if __name__ == "__main__":
    unittest.main()
