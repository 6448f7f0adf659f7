"""What the tests of the torch ops share: torch with the library loaded, and the same calls through the C ABI.

The library is the one that FP8RT_LIBRARY names, or libfp8rt.so.0 beside this file, or the tree's. Exits 77 without
torch.
"""
import ctypes
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Beside this file in a bundle, in the tree elsewhere.
for directory in (HERE, HERE.parent / "peers"):
    if (directory / "fp8rt_ctypes.py").is_file():
        sys.path.insert(0, str(directory))
        break

try:
    import torch
except ImportError as error:
    print(f"no torch: {error}")
    sys.exit(77)

import fp8rt_ctypes as c  # noqa: E402

BUNDLED = HERE / "libfp8rt.so.0"
LIBRARY = os.environ.get("FP8RT_LIBRARY") or str(
    BUNDLED if BUNDLED.is_file() else HERE.parents[1] / "target/release/libfp8rt.so")
FP8 = torch.float8_e4m3fn
DTYPES = {torch.bfloat16: c.BF16, torch.float16: c.F16, torch.float32: c.F32, FP8: c.E4M3, torch.int32: c.INT32}


def load():
    torch.ops.load_library(LIBRARY)
    return torch.ops.fp8rt


def c_tensor(tensor):
    """The view that the C ABI takes."""
    shape, stride = (ctypes.c_int64 * 3)(*tensor.shape), (ctypes.c_int64 * 3)(*tensor.stride())
    size = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    device = -1 if tensor.device.type == "cpu" else tensor.device.index
    return c.Tensor(tensor.data_ptr(), size, DTYPES[tensor.dtype], device, tensor.dim(), 0, shape, stride)


def quantize_desc(recipe=0, scale_format=0, floor=None, part_rows=()):
    rows = (ctypes.c_int64 * len(part_rows))(*part_rows)
    flags, value = (0, 0.0) if floor is None else (1, floor)
    pointer = ctypes.cast(rows, ctypes.c_void_p) if part_rows else None
    desc = c.QuantizeDesc(ctypes.sizeof(c.QuantizeDesc), flags, recipe, scale_format, value, len(part_rows), pointer)
    desc.kept = rows
    return desc


class Reference:
    """The C ABI on one device, for tensors of torch. `stream` is a cudaStream_t."""

    def __init__(self, device=-1, stream=None):
        self.library = ctypes.CDLL(LIBRARY)
        self.library.fp8rt_last_error.restype = ctypes.c_char_p
        self.context, self.stream = ctypes.c_void_p(), ctypes.c_void_p(stream)
        desc = c.ContextDesc(ctypes.sizeof(c.ContextDesc), 0, device, 0)
        self.call("fp8rt_context_create", ctypes.byref(desc), ctypes.byref(self.context))

    def call(self, function, *arguments):
        status = getattr(self.library, function)(*arguments)
        if status != 0:
            raise RuntimeError(f"status {status}: {self.library.fp8rt_last_error().decode()}")

    def quantize(self, function, desc, *tensors, health=None):
        """`tensors` in the order of the C function; a number is passed as it is, None as NULL."""
        kept = [c_tensor(t) if isinstance(t, torch.Tensor) else t for t in tensors]
        arguments = [ctypes.byref(k) if isinstance(k, c.Tensor) else k for k in kept]
        counters = None if health is None else ctypes.c_void_p(health.data_ptr())
        self.call(function, self.context, ctypes.byref(desc), *arguments, counters, self.stream)

    def plan(self, max_m, weight, scales, dtype, bias=None, output_stride=0, part_rows=(), **fields):
        n, k = weight.shape
        rows = (ctypes.c_int64 * len(part_rows))(*part_rows)
        if part_rows:
            fields.update(num_parts=len(part_rows), part_rows=ctypes.cast(rows, ctypes.c_void_p))
        plan = c.LinearPlan(
            self.call, self.context, max_m, n, k, input_dtype=DTYPES[dtype], output_dtype=DTYPES[dtype],
            bias_dtype=0 if bias is None else DTYPES[bias.dtype], output_stride=output_stride,
            weight_stride=weight.stride(0), weight_scale_format=2 if scales.dtype == torch.int32 else 0, **fields)
        tensors = [c_tensor(weight), c_tensor(scales), None if bias is None else c_tensor(bias)]
        self.call("fp8rt_linear_plan_prepare", plan.plan, *map(reference, tensors), self.stream)
        return plan

    def linear(self, x, weight, scales, bias=None, y=None, **fields):
        m, n = x.shape[0], weight.shape[0]
        y = torch.empty(m, n, dtype=x.dtype, device=x.device) if y is None else y
        plan = self.plan(m, weight, scales, x.dtype, bias, output_stride=y.stride(0) if m > 1 else 0, **fields)
        size = plan.workspace(m)
        memory = torch.empty(size + 256, dtype=torch.uint8, device=x.device)
        address = ctypes.c_void_p(-(-memory.data_ptr() // 256) * 256)
        tensors = [None if t is None else c_tensor(t) for t in (x, weight, scales, bias, y)]
        self.call("fp8rt_linear", plan.plan, *map(reference, tensors), address, ctypes.c_uint64(size), self.stream)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        plan.close()
        return y


def reference(tensor):
    return None if tensor is None else ctypes.byref(tensor)


def same(a, b):
    """Whether two tensors hold the same bytes."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    packed = [t.clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (a, b)]
    return torch.equal(*packed)


def quantized_weight(n, k, dtype=torch.bfloat16, seed=0, device="cpu"):
    """A random weight with codes and scales that the C ABI made."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator).to(dtype).to(device)
    codes, scales = empty_weight(n, k, device)
    load().quantize_weight(weight, codes, scales)
    return weight, codes, scales


def empty_weight(n, k, device="cpu"):
    return (torch.empty(n, k, dtype=FP8, device=device),
            torch.empty(-(-n // 128), -(-k // 128), dtype=torch.float32, device=device))


def column_major(m, k, device="cpu"):
    """Activation scales as TMA reads them."""
    rows = -(-m // 4) * 4
    return torch.empty(-(-k // 128), rows, dtype=torch.float32, device=device)[:, :m].t()
