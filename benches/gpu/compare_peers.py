#!/usr/bin/env python3
"""Compare fp8rt with its peers on this GPU, in bytes and in time.

    compare_peers.py PEERS_DIR [bytes] [producers] [weights] [refit] [activations] [fused] [host]

PEERS_DIR holds vllm_ops.so (vLLM's op library) and the Python package deep_gemm. fp8rt is the library that
FP8RT_LIBRARY names. `bytes`: how many scale words and codes differ from the peer's, on finite input, and the first that
do. `producers`: how many differ from vLLM's unfused pair. The other sections time both in this run, ours first, and
give each peer's time and its ratio to ours. Needs torch for CUDA and Triton. A section that fails prints its
exception and the rest goes on; then, or if bytes differ, the exit
code is 1.
"""
import ctypes
import pathlib
import sys
import time
import traceback

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parents[1] / "cpp_tests/peers")]
import fp8rt_ctypes as fp8rt  # noqa: E402

FP8, BF16, F16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32
DTYPES = {BF16: fp8rt.BF16, F16: fp8rt.F16, F32: fp8rt.F32, FP8: fp8rt.E4M3, torch.uint8: fp8rt.E4M3}
LLAMA = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)]
LAYERS = 32
EPSILON = 1e-5


class WeightEntry(ctypes.Structure):
    _fields_ = [("weight", fp8rt.Tensor), ("codes", fp8rt.Tensor), ("scales", fp8rt.Tensor),
                ("part_rows", ctypes.c_void_p), ("num_parts", ctypes.c_uint32), ("reserved", ctypes.c_uint32)]


def view(tensor):
    """A view of a tensor on the GPU. Column-major scales include their padding."""
    rank = tensor.dim()
    shape, stride = (ctypes.c_int64 * 3)(*tensor.shape), (ctypes.c_int64 * 3)(*tensor.stride())
    reach = tensor.untyped_storage().nbytes() - tensor.storage_offset() * tensor.element_size()
    return fp8rt.Tensor(tensor.data_ptr(), reach, DTYPES[tensor.dtype], tensor.device.index, rank, 0, shape, stride)


class Gpu:
    """A context on the current device. Calls go to torch's current stream, which a capture changes."""

    def __init__(self):
        self.library, self.context = fp8rt.load(), ctypes.c_void_p()
        self.library.fp8rt_build_info.restype = ctypes.c_char_p
        desc = fp8rt.ContextDesc(ctypes.sizeof(fp8rt.ContextDesc), 0, torch.cuda.current_device(), 0)
        self.check(self.library.fp8rt_context_create(ctypes.byref(desc), ctypes.byref(self.context)))
        self.check(self.library.fp8rt_context_prepare(self.context, stream()))

    def check(self, status):
        if status != 0:
            raise RuntimeError(f"status {status}: {self.library.fp8rt_last_error().decode()}")

    def bind(self, name, recipe, scale_format, *arguments):
        """A call with everything but the stream decided. Tensors are kept alive by it."""
        function = getattr(self.library, name)
        desc = fp8rt.QuantizeDesc(ctypes.sizeof(fp8rt.QuantizeDesc), 0, recipe, scale_format, 0.0, 0, None)
        views = [view(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        passed = [ctypes.byref(v) if isinstance(v, fp8rt.Tensor) else v for v in views]

        def call(kept=(desc, views, arguments)):
            self.check(function(self.context, ctypes.byref(kept[0]), *passed, None, stream()))
        return call

    def weight(self, source, codes, scales, recipe=fp8rt.DEFAULT, scale_format=fp8rt.FP32):
        return self.bind("fp8rt_quantize_weight", recipe, scale_format, source, codes, scales)

    def activation(self, source, codes, scales, recipe=fp8rt.DEFAULT, scale_format=fp8rt.FP32):
        return self.bind("fp8rt_quantize_activation", recipe, scale_format, source, codes, scales)

    def silu(self, gate_up, codes, scales):
        return self.bind("fp8rt_silu_and_mul_quantize", fp8rt.DEFAULT, fp8rt.FP32, gate_up, codes, scales)

    def norm(self, x, residual, weight, codes, scales):
        return self.bind("fp8rt_rms_norm_quantize", fp8rt.DEFAULT, fp8rt.FP32, x, residual, weight,
                         ctypes.c_float(EPSILON), codes, scales)

    def entries(self, weights):
        return (WeightEntry * len(weights))(*[WeightEntry(*map(view, weight), None, 0, 0) for weight in weights])

    def refit(self, weights):
        entries, count = self.entries(weights), ctypes.c_uint32(len(weights))
        quantize = self.library.fp8rt_quantize_weights
        return lambda: self.check(quantize(self.context, None, entries, count, None, stream()))

    def table(self, weights):
        table, count = ctypes.c_void_p(), ctypes.c_uint32(len(weights))
        create = self.library.fp8rt_weight_table_create
        self.check(create(self.context, None, self.entries(weights), count, ctypes.byref(table)))
        return lambda: self.check(self.library.fp8rt_weight_table_run(table, None, stream()))


def stream():
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


# Timers: how the peers' own bench times.

def graph_us(calls, repeats=15):
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / len(calls) * 1e3)
    return sorted(times[3:])[repeats // 2]


def stream_us(call):
    from triton.testing import do_bench
    call()
    return do_bench(call, warmup=10, rep=60, return_mode="median") * 1e3


def host_us(call, calls=200):
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - begin)
    torch.cuda.synchronize()
    return best / calls * 1e6


def attempt(timer, subject):
    """Microseconds, or None where this one refuses."""
    try:
        return timer(subject)
    except Exception as error:
        print(f"  refused: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None


def table_row(label, ours, peers, moved_bytes=None):
    """Our time, then each peer's with its ratio to ours."""
    rate = f" {moved_bytes / ours / 1e6:5.2f} TB/s" if moved_bytes else ""
    columns = [f"{name} {us:9.2f} ({us / ours:6.2f}x)" if us else f"{name}         -" for name, us in peers]
    print(f"  {label:28} ours {ours:9.2f}{rate} | " + " | ".join(columns), flush=True)


# The peers.

def nemo_rl_cast(w):
    """NeMo-RL's sequence of torch operations for one weight."""
    n, k = w.shape
    blocks = w.float().reshape(n // 128, 128, k // 128, 128).permute(0, 2, 1, 3).contiguous().flatten(2)
    amax = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(amax == 0, 1.0, 448.0 / amax)
    codes = (blocks * inverse).clamp(-448.0, 448.0).to(FP8)
    codes = codes.reshape(n // 128, k // 128, 128, 128).permute(0, 2, 1, 3).reshape(n, k)
    return codes, inverse.reciprocal().squeeze(-1)


def deepgemm_cast(w, pow2=False):
    from deep_gemm.utils import per_block_cast_to_fp8
    return per_block_cast_to_fp8(w, pow2)


def vllm_quantize(x, codes, scales, pow2=False):
    torch.ops._C.per_token_group_fp8_quant(x, codes, scales, 128, 1e-10, -448.0, 448.0, pow2, True, True)


def triton_cast():
    """A Triton program for each block."""
    import triton
    from block_cast import block_cast_kernel

    def cast(w, codes, scales):
        n, k = w.shape
        block_cast_kernel[(triton.cdiv(n, 128), triton.cdiv(k, 128))](w, codes, scales, k, k // 128, 128, num_warps=16)
    return cast


# Tensors.

def randn(*shape):
    return torch.randn(*shape, device="cuda", dtype=BF16)


def empty(*shape, dtype):
    return torch.empty(*shape, device="cuda", dtype=dtype)


def column_major_scales(m, groups):
    aligned = -(-m // 4) * 4
    return torch.full((groups, aligned), float("nan"), device="cuda", dtype=F32).t()[:m]


def activation_buffers(m, k):
    return empty(m, k, dtype=FP8), column_major_scales(m, -(-k // 128))


def weight_buffers(n, k):
    return randn(n, k), empty(n, k, dtype=FP8), empty(n // 128, k // 128, dtype=F32)


def spread(rows, columns, height, dtype, decades, generator):
    """Random values whose blocks have magnitudes anywhere in so many decades; every 97th block is zero."""
    grid = (rows // height, columns // 128)
    low, high = decades
    powers = low + (high - low) * torch.rand(grid, generator=generator, device="cuda", dtype=torch.float64)
    magnitudes = (10 ** powers).float()
    magnitudes.view(-1)[96::97] = 0
    values = torch.randn(rows, columns, generator=generator, device="cuda")
    values = values * magnitudes.repeat_interleave(height, 0).repeat_interleave(128, 1)
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)


# Bytes.

def words(tensor):
    return tensor.contiguous().view(torch.int32)


def differences(ours, theirs):
    """How many differ, and the first four as (index, ours, theirs)."""
    places = (ours != theirs).nonzero()
    first = [(tuple(p.tolist()), hex(int(ours[tuple(p)]) & 0xFFFFFFFF), hex(int(theirs[tuple(p)]) & 0xFFFFFFFF))
             for p in places[:4]]
    return len(places), first


class Tally:
    """Differing scale words and codes of one comparison, over its rounds."""

    def __init__(self, label):
        self.label, self.counts, self.totals, self.first = label, [0, 0], [0, 0], []

    def add(self, ours, theirs):
        pairs = [(words(ours[1]), words(theirs[1])), (ours[0].view(torch.uint8), theirs[0].view(torch.uint8))]
        for index, (mine, other) in enumerate(pairs):
            count, first = differences(mine, other.reshape(mine.shape))
            self.counts[index] += count
            self.totals[index] += mine.numel()
            self.first += [(("scale", "code")[index], *place) for place in first][:4 - len(self.first)]

    def report(self):
        print(f"  {self.label:44} scale words differ {self.counts[0]} of {self.totals[0]}, codes {self.counts[1]} of "
              f"{self.totals[1]}", flush=True)
        for what, index, ours, theirs in self.first:
            print(f"    {what} at {index}: ours {ours}, theirs {theirs}")
        return sum(self.counts) == 0


def poisoned(*shape, dtype):
    return torch.full(shape, 0xA5, device="cuda", dtype=torch.uint8).view(dtype)


def compare_vllm(gpu, generator, pow2, column_major, dtype, decades):
    layout = "column-major" if column_major else "row-major"
    tally = Tally(f"VLLM {'POW2' if pow2 else 'FP32'} {layout} {str(dtype)[6:]}")
    scale_format = fp8rt.POW2 if pow2 else fp8rt.FP32
    for m, k in ((1, 4096), (129, 4096), (1024, 7168), (4096, 14336)):
        x = spread(m, k, 1, dtype, decades, generator)
        sides = []
        for _ in range(2):
            scales = column_major_scales(m, k // 128) if column_major else empty(m, k // 128, dtype=F32)
            sides.append((poisoned(m, k, dtype=FP8), scales))
        gpu.activation(x, *sides[0], recipe=fp8rt.VLLM, scale_format=scale_format)()
        vllm_quantize(x, *sides[1], pow2)
        tally.add(*sides)
    return tally.report()


def compare_weight(gpu, generator, label, recipe, scale_format, cast, decades, dtype=BF16):
    tally = Tally(f"{label} {str(dtype)[6:]}")
    for n, k in ((128, 128), (576, 7168), (4096, 4096), (4096, 14336)):
        n = n // 128 * 128
        w = spread(n, k, 128, dtype, decades, generator)
        ours = poisoned(n, k, dtype=FP8), empty(n // 128, k // 128, dtype=F32)
        gpu.weight(w, *ours, recipe=recipe, scale_format=scale_format)()
        tally.add(ours, cast(w))
    return tally.report()


def compare_bytes(gpu):
    seed = int(time.time())
    print(f"bytes, seed {seed}, finite input, blocks of magnitudes over many decades, every 97th zero")
    generator = torch.Generator(device="cuda").manual_seed(seed)
    checks = []
    for pow2 in (False, True):
        for column_major in (True, False):
            for dtype, decades in ((BF16, (-30, 30)), (BF16, (-3, 3)), (F16, (-4, 3))):
                checks.append(lambda a=(pow2, column_major, dtype, decades): compare_vllm(gpu, generator, *a))
    for dtype, decades in ((BF16, (-29, 30)), (BF16, (-3, 1)), (F32, (-29, 30)), (F16, (-4, 3))):
        checks.append(lambda d=dtype, r=decades: compare_weight(
            gpu, generator, "NEMO_RL FP32", fp8rt.NEMO_RL, fp8rt.FP32, nemo_rl_cast, r, d))
    for pow2, scale_format in ((False, fp8rt.FP32), (True, fp8rt.POW2)):
        for decades in ((-29, 30), (-3, 1)):
            checks.append(lambda p=pow2, f=scale_format, r=decades: compare_weight(
                gpu, generator, f"DEEPGEMM {'POW2' if p else 'FP32'}", fp8rt.DEEPGEMM, f,
                lambda w: deepgemm_cast(w, p), r))
    return all([guarded("one comparison", check) for check in checks])


def compare_producers(gpu):
    """Counts differences, which are expected: vLLM rounds once more inside both producers. Never a failure."""
    print("producers fused with quantize, beside vLLM's own producer followed by its quantizer")
    for m, k in ((1024, 14336), (1024, 4096)):
        gate_up, x, residual, weight = randn(m, 2 * k), randn(m, k), randn(m, k), randn(k)
        ours, theirs, produced = activation_buffers(m, k), activation_buffers(m, k), empty(m, k, dtype=BF16)
        torch.ops._C.silu_and_mul(produced, gate_up)
        vllm_quantize(produced, *theirs)
        gpu.silu(gate_up, *ours)()
        report_difference(f"silu_and_mul M={m} K={k}", ours, theirs)
        produced.copy_(x)
        their_residual = residual.clone()
        torch.ops._C.fused_add_rms_norm(produced, their_residual, weight, EPSILON)
        vllm_quantize(produced, *theirs)
        gpu.norm(x, residual, weight, *ours)()
        report_difference(f"rms_norm M={m} K={k}", ours, theirs)
        residuals, _ = differences(residual.view(torch.int16), their_residual.view(torch.int16))
        print(f"    residuals differ {residuals} of {residual.numel()}")


def report_difference(label, ours, theirs):
    tally = Tally(label)
    tally.add(ours, theirs)
    tally.first = []
    tally.report()
    codes = [side[0].view(torch.uint8).int() for side in (ours, theirs)]
    farthest = (codes[0] - codes[1]).abs().max().item()
    print(f"    farthest code {farthest} apart", flush=True)


# Times.

def time_weights(gpu):
    print("weights, us: torch operations as NeMo-RL, the same compiled, a Triton program a block, DeepGEMM's cast")
    compiled = torch.compile(nemo_rl_cast, dynamic=False)
    for n, k in LLAMA:
        w, codes, scales = weight_buffers(n, k)
        ours = stream_us(gpu.weight(w, codes, scales))
        peers = (("torch", lambda: nemo_rl_cast(w)), ("compiled", lambda: compiled(w)),
                 ("triton", lambda: triton_cast()(w, codes, scales)), ("deepgemm", lambda: deepgemm_cast(w)))
        row = [(name, attempt(stream_us, call)) for name, call in peers]
        table_row(f"N={n} K={k}", ours, row, 3 * n * k)


def time_refit(gpu):
    print("refit of all linear weights of llama-3.1-8b, us: Triton a launch each, torch operations")
    layers = [weight_buffers(n, k) for n, k in LLAMA * LAYERS]
    cast = triton_cast()
    peers = [("triton", attempt(stream_us, lambda: [cast(*layer) for layer in layers])),
             ("torch", attempt(stream_us, lambda: [nemo_rl_cast(w) for w, _, _ in layers]))]
    moved = 3 * sum(w.numel() for w, _, _ in layers)
    each = [gpu.weight(*layer) for layer in layers]
    ways = (("table", gpu.table(layers)), ("entries", gpu.refit(layers)), ("call each", lambda: [c() for c in each]))
    for name, call in ways:
        table_row(name, stream_us(call), peers, moved)


def time_activations(gpu):
    print("activations, us, column-major scales: vLLM")
    for k in (4096, 14336):
        for m in (1, 16, 64, 256, 1024, 4096, 16384):
            inputs, buffers = [randn(m, k) for _ in range(20 if m <= 64 else 1)], activation_buffers(m, k)
            ours = [gpu.activation(x, *buffers) for x in inputs]
            theirs = [lambda x=x: vllm_quantize(x, *buffers) for x in inputs]
            table_row(f"M={m} K={k}", stream_us(ours[0]), [("vllm", attempt(stream_us, theirs[0]))], 3 * m * k)
            if m <= 64:
                table_row(f"M={m} K={k} graph", graph_us(ours), [("vllm", attempt(graph_us, theirs))])


def time_fused(gpu):
    print("fused producers, us: vLLM's silu_and_mul_per_block_quant and rms_norm_per_block_quant with residual")
    for m, k in ((16, 14336), (1024, 14336), (8192, 14336), (16, 4096), (1024, 4096), (8192, 4096)):
        gate_up, x, residual, weight = randn(m, 2 * k), randn(m, k), randn(m, k), randn(k)
        codes, scales = activation_buffers(m, k)
        silu = lambda: torch.ops._C.silu_and_mul_per_block_quant(codes, gate_up, scales, 128, None, True)  # noqa: E731
        norm = lambda: torch.ops._C.rms_norm_per_block_quant(  # noqa: E731
            codes, x, weight, scales, EPSILON, None, residual, 128, True)
        for name, call, peer, per_element in (("silu", gpu.silu(gate_up, codes, scales), silu, 5),
                                              ("norm", gpu.norm(x, residual, weight, codes, scales), norm, 7)):
            table_row(f"{name} M={m} K={k}", stream_us(call), [("vllm", attempt(stream_us, peer))], per_element * m * k)
            if m <= 64:
                peers = [("vllm", attempt(graph_us, [peer] * 20))]
                table_row(f"{name} M={m} K={k} graph", graph_us([call] * 20), peers)


def time_host(gpu):
    print("host, us a call from Python (ours through ctypes): vLLM")
    x, buffers = randn(1, 4096), activation_buffers(1, 4096)
    call = gpu.activation(x, *buffers)
    call()
    table_row("activation M=1 K=4096", host_us(call), [("vllm", attempt(host_us, lambda: vllm_quantize(x, *buffers)))])


def guarded(label, action):
    """False where it raises or says False."""
    try:
        return action() is not False
    except Exception:
        print(f"{label} FAILED")
        traceback.print_exc(file=sys.stdout)
        return False


def load_peers(directory):
    sys.path.insert(0, str(directory))
    torch.ops.load_library(str(directory / "vllm_ops.so"))
    import deep_gemm
    deep_gemm.set_pdl(True)


SECTIONS = {"bytes": compare_bytes, "producers": compare_producers, "weights": time_weights, "refit": time_refit,
            "activations": time_activations, "fused": time_fused, "host": time_host}


def main():
    if len(sys.argv) < 2 or any(name not in SECTIONS for name in sys.argv[2:]):
        sys.exit(__doc__)
    torch.manual_seed(int(time.time()))
    good = [guarded("loading the peers", lambda: load_peers(pathlib.Path(sys.argv[1]).resolve()))]
    gpu = Gpu()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n{gpu.library.fp8rt_build_info().decode()}")
    for name in sys.argv[2:] or SECTIONS:
        good.append(guarded(name, lambda: SECTIONS[name](gpu)))
        sys.stdout.flush()
        torch.cuda.empty_cache()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
