#!/usr/bin/env python3
"""Time fp8rt on the host beside numpy, ml_dtypes and torch, in one run and on the same cores; print markdown tables.

    host_speed.py [quantize] [linear]

Each number is the best of several runs, the subjects taking turns, so that what else the machine does hits all alike.
"""
import concurrent.futures
import ctypes
import os
import pathlib
import sys
import time

# A kernel chosen for an older processor would make OpenBLAS look slow.
for setting in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(setting, None)

import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

import fp8rt_ctypes as fp8rt  # noqa: E402

CORES = len(os.sched_getaffinity(0))
POOL = concurrent.futures.ThreadPoolExecutor(CORES)
F32, FP8 = np.float32, ml_dtypes.float8_e4m3fn


def best_of(subjects, repeats):
    """Least seconds of each subject."""
    best = dict.fromkeys(subjects, float("inf"))
    for _ in range(repeats):
        for name, subject in subjects.items():
            begin = time.perf_counter()
            subject()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def view(array, dtype):
    return fp8rt.matrix(array.ctypes.data, dtype, *array.shape)


def over_threads(work, count):
    """Runs work(begin, end) over slices of range(count), a slice a core. numpy lets go of its lock inside."""
    edges = [count * core // CORES for core in range(CORES + 1)]
    for done in [POOL.submit(work, *pair) for pair in zip(edges, edges[1:])]:
        done.result()


def copy_of(elements):
    """A copy that moves as many bytes as a bf16 quantize must: 3 for an element, so 1.5 are read and 1.5 written."""
    source = np.ones(elements * 3 // 2, np.uint8)
    target = np.zeros_like(source)
    return lambda: over_threads(lambda begin, end: np.copyto(target[begin:end], source[begin:end]), source.size)


def numpy_cast(weight, codes, scales):
    """NeMo-RL's formula, a row of blocks at a time so that its temporaries stay in cache."""
    columns = weight.shape[1]

    def block_row(index):
        values = weight[index * 128:(index + 1) * 128].astype(F32).reshape(128, columns // 128, 128)
        amax = np.abs(values).max(axis=(0, 2))
        inverse = np.where(amax == 0, F32(1), (F32(1) / amax) * F32(448))
        encoded = np.clip(values * inverse[None, :, None], F32(-448), F32(448)).astype(FP8)
        codes[index * 128:(index + 1) * 128] = encoded.view(np.uint8).reshape(128, columns)
        scales[index] = F32(1) / inverse

    def block_rows(begin, end):
        for index in range(begin, end):
            block_row(index)

    over_threads(block_rows, weight.shape[0] // 128)


def torch_cast(weight):
    """NeMo-RL's sequence of operations over the whole weight, as its users run it."""
    rows, columns = weight.shape
    blocks = weight.float().reshape(rows // 128, 128, columns // 128, 128).permute(0, 2, 1, 3).contiguous().flatten(2)
    amax = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(amax == 0, 1.0, 448.0 / amax)
    codes = (blocks * inverse).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    codes = codes.reshape(rows // 128, columns // 128, 128, 128).permute(0, 2, 1, 3).reshape(rows, columns)
    return codes, inverse.reciprocal().squeeze(-1)


def print_table(title, best, unit_of):
    """`best` begins with fp8rt, which the last column divides into the others."""
    print(f"\n{title}\n\n| | ms | {unit_of[0]} | time / fp8rt's |\n|---|---|---|---|")
    ours = best["fp8rt"]
    for name, seconds in best.items():
        print(f"| {name} | {seconds * 1e3:.3f} | {unit_of[1] / seconds / 1e9:.2f} | {seconds / ours:.2f} |")


def time_quantize(library, rows=4096, columns=14336):
    weight = np.random.default_rng(1).standard_normal((rows, columns), F32).astype(ml_dtypes.bfloat16)
    codes, their_codes = np.zeros((rows, columns), np.uint8), np.zeros((rows, columns), np.uint8)
    scales, their_scales = (np.zeros((rows // 128, columns // 128), F32) for _ in range(2))
    in_torch = torch.from_numpy(weight.view(np.uint16)).view(torch.bfloat16)
    views = view(weight, fp8rt.BF16), view(codes, fp8rt.E4M3), view(scales, fp8rt.F32)
    best = best_of({
        "fp8rt": lambda: library.quantize_weight(fp8rt.NEMO_RL, fp8rt.FP32, *views),
        "plain copy of as many bytes": copy_of(weight.size),
        "numpy + ml_dtypes": lambda: numpy_cast(weight, their_codes, their_scales),
        "torch": lambda: torch_cast(in_torch),
    }, repeats=7)
    torch_codes, torch_scales = torch_cast(in_torch)
    same = np.array_equal(codes, their_codes) and np.array_equal(codes, torch_codes.view(torch.uint8).numpy())
    same = same and np.array_equal(scales, their_scales) and np.array_equal(scales, torch_scales.numpy())
    print_table(f"Quantize a bf16 weight {rows}x{columns}, NEMO_RL", best, ("GB/s", 3 * weight.size))
    share = best["plain copy of as many bytes"] / best["fp8rt"]
    print(f"\nfp8rt reaches {share:.2f} of the copy's rate. All three casts gave the same bytes: {same}.")
    return same


def time_linear(library, m, n=4096, k=4096):
    generator = np.random.default_rng(2)
    weight, x = generator.standard_normal((n, k), F32), generator.standard_normal((m, k), F32)
    codes, scales, y = np.zeros((n, k), np.uint8), np.zeros((n // 128, k // 128), F32), np.zeros((m, n), F32)
    weights = view(codes, fp8rt.E4M3), view(scales, fp8rt.F32)
    library.quantize_weight(fp8rt.NEMO_RL, fp8rt.FP32, view(weight, fp8rt.F32), *weights)
    plan = library.linear(m, n, k, fp8rt.F32, fp8rt.F32)
    plan.prepare(*weights)
    x_view, y_view, theirs = view(x, fp8rt.F32), view(y, fp8rt.F32), np.zeros((m, n), F32)
    blas = (lambda: np.dot(weight, x[0], out=theirs[0])) if m == 1 else (lambda: np.dot(x, weight.T, out=theirs))
    best = best_of({"fp8rt": lambda: plan.run(x_view, *weights, y_view), "float32 OpenBLAS": blas}, repeats=30)
    plan.close()
    error = np.linalg.norm(y - theirs) / np.linalg.norm(theirs)
    print_table(f"Linear M = {m}, N = {n}, K = {k}, float32 in and out", best, ("GFLOP/s", 2 * m * n * k))
    # 0.037 is what FP8 costs on random values.
    print(f"\nRelative difference of the two results: {error:.4f}.")
    return error < 0.045


def openblas_core():
    """The kernel that numpy's OpenBLAS chose."""
    for path in pathlib.Path(np.__file__).parents[1].glob("numpy.libs/*openblas*"):
        name = ctypes.CDLL(str(path)).scipy_openblas_get_corename64_
        name.restype = ctypes.c_char_p
        return name().decode()
    return "unknown"


def main(sections):
    torch.set_num_threads(CORES)
    library = fp8rt.Library()
    print(f"{CORES} cores, {library.num_threads()} threads of fp8rt; numpy {np.__version__} with OpenBLAS for "
          f"{openblas_core()}, ml_dtypes {ml_dtypes.__version__}, torch {torch.__version__}")
    right = True
    if "quantize" in sections:
        right = time_quantize(library) and right
    if "linear" in sections:
        for m in (1, 64):
            right = time_linear(library, m) and right
    library.close()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ("quantize", "linear")))
