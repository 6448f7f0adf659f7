"""The part of the C ABI that the scripts beside this file call, through ctypes.

The library is the one that FP8RT_LIBRARY names, or target/release/libfp8rt.so. Memory comes as addresses, so that numpy
arrays and torch tensors serve alike.
"""
import ctypes
import os
import pathlib

BF16, F16, F32, E4M3, INT32 = 1, 2, 3, 4, 5
DEFAULT, VLLM, DEEPGEMM, NEMO_RL, TE = range(5)
FP32, POW2, UE8M0_PACKED = range(3)
COLUMN_MAJOR, ROW_MAJOR = 0, 1
BACKENDS = {"any": 0, "deepgemm": 2, "cutlass": 4, "cublaslt": 8, "plain": 16, "cpu": 32}
BYTES = {BF16: 2, F16: 2, F32: 4, E4M3: 1, INT32: 4}


class ContextDesc(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("device", ctypes.c_int32),
                ("num_threads", ctypes.c_uint32)]


class QuantizeDesc(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("recipe", ctypes.c_uint32),
                ("scale_format", ctypes.c_uint32), ("floor", ctypes.c_float), ("num_parts", ctypes.c_uint32),
                ("part_rows", ctypes.c_void_p)]


class Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64), ("dtype", ctypes.c_uint32),
                ("device", ctypes.c_int32), ("rank", ctypes.c_uint32), ("reserved", ctypes.c_uint32),
                ("shape", ctypes.c_int64 * 3), ("stride", ctypes.c_int64 * 3)]


class LinearDesc(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("max_m", ctypes.c_int64),
                ("n", ctypes.c_int64), ("k", ctypes.c_int64)]
    _fields_ += [(name, ctypes.c_uint32) for name in (
        "input_dtype", "output_dtype", "bias_dtype", "activation_recipe", "activation_scale_format",
        "activation_scale_layout", "weight_scale_format", "backends")]
    _fields_ += [("floor", ctypes.c_float), ("num_parts", ctypes.c_uint32), ("part_rows", ctypes.c_void_p),
                 ("input_stride", ctypes.c_int64), ("weight_stride", ctypes.c_int64), ("output_stride", ctypes.c_int64)]


def load():
    root = pathlib.Path(__file__).resolve().parents[2]
    library = ctypes.CDLL(os.environ.get("FP8RT_LIBRARY") or str(root / "target/release/libfp8rt.so"))
    library.fp8rt_last_error.restype = ctypes.c_char_p
    return library


def matrix(address, dtype, rows, columns):
    """A compact view."""
    shape, stride = (ctypes.c_int64 * 3)(rows, columns), (ctypes.c_int64 * 3)(columns, 1)
    return Tensor(address, rows * columns * BYTES[dtype], dtype, -1, 2, 0, shape, stride)


class Library:
    """A host context. Every method raises with the library's message where a call fails."""

    def __init__(self, num_threads=0):
        self.library = load()
        self.context = ctypes.c_void_p()
        desc = ContextDesc(ctypes.sizeof(ContextDesc), 0, -1, num_threads)
        self.call("fp8rt_context_create", ctypes.byref(desc), ctypes.byref(self.context))

    def call(self, function, *arguments):
        status = getattr(self.library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"status {status}: {self.library.fp8rt_last_error().decode()}")

    def close(self):
        self.call("fp8rt_context_destroy", self.context)

    def num_threads(self):
        count = ctypes.c_uint32()
        self.call("fp8rt_context_query", self.context, None, ctypes.byref(count))
        return count.value

    def quantize_weight(self, recipe, scale_format, weight, codes, scales):
        """The three are addresses and shapes as `matrix` makes them."""
        self.quantize("fp8rt_quantize_weight", recipe, scale_format, weight, codes, scales)

    def quantize_activation(self, recipe, scale_format, activation, codes, scales):
        self.quantize("fp8rt_quantize_activation", recipe, scale_format, activation, codes, scales)

    def quantize(self, function, recipe, scale_format, source, codes, scales):
        desc = QuantizeDesc(ctypes.sizeof(QuantizeDesc), 0, recipe, scale_format, 0.0, 0, None)
        by_reference = (ctypes.byref(tensor) for tensor in (source, codes, scales))
        self.call(function, self.context, ctypes.byref(desc), *by_reference, None, None)

    def linear(self, max_m, n, k, input_dtype, output_dtype):
        return Linear(self, max_m, n, k, input_dtype, output_dtype)


class LinearPlan:
    """A linear with its backend chosen. `call` calls a function of the library by name and raises where it fails."""

    def __init__(self, call, context, max_m, n, k, **fields):
        self.call, self.plan = call, ctypes.c_void_p()
        desc = LinearDesc(struct_size=ctypes.sizeof(LinearDesc), max_m=max_m, n=n, k=k, **fields)
        call("fp8rt_linear_plan_create", context, ctypes.byref(desc), ctypes.byref(self.plan))

    def workspace(self, m):
        size = ctypes.c_uint64()
        self.call("fp8rt_linear_plan_workspace", self.plan, ctypes.c_int64(m), ctypes.byref(size))
        return size.value

    def describe(self):
        text = ctypes.create_string_buffer(1024)
        self.call("fp8rt_linear_plan_describe", self.plan, text, ctypes.c_uint64(len(text)), None)
        return text.value.decode()

    def prepare(self, weight, scales, stream=None):
        self.call("fp8rt_linear_plan_prepare", self.plan, ctypes.byref(weight), ctypes.byref(scales), None, stream)

    def close(self):
        self.call("fp8rt_linear_plan_destroy", self.plan)


class Linear(LinearPlan):
    """A plan on the host with its workspace."""

    def __init__(self, owner, max_m, n, k, input_dtype, output_dtype):
        super().__init__(owner.call, owner.context, max_m, n, k, input_dtype=input_dtype, output_dtype=output_dtype)
        self.bytes = self.workspace(max_m)
        self.memory = ctypes.create_string_buffer(self.bytes + 256)
        self.address = ctypes.c_void_p(-(-ctypes.addressof(self.memory) // 256) * 256)

    def run(self, x, weight, scales, y):
        references = [ctypes.byref(tensor) for tensor in (x, weight, scales)]
        self.call("fp8rt_linear", self.plan, *references, None, ctypes.byref(y), self.address,
                  ctypes.c_uint64(self.bytes), None)
