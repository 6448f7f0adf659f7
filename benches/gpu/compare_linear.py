#!/usr/bin/env python3
"""Time fp8rt's linear beside its peers on this GPU, in one run.

    compare_linear.py PEERS_DIR [warm] [decode] [prefill] [host] [cutlass] [--models NAME,...] [--m M,...] [--csv FILE]
        [--turns]

PEERS_DIR holds vllm_ops.so (vLLM's op library) and the Python package deep_gemm; fp8rt is the library that
FP8RT_LIBRARY names. Shapes and numbers of rows are those of linear_shapes.txt. `warm` fills DeepGEMM's cache of
compiled kernels, on all cores; `decode` and `prefill` compare fp8rt_linear with vLLM's quantizer and DeepGEMM;
`cutlass` compares our CUTLASS backend with vLLM's; `host` the time to enqueue. Without a section the last four run.

Timed as the peers' own bench does: each subject by itself; here in
two rounds, the second in the opposite order, so that a drift of the clock meets all. decode, M <= 128: a captured graph
of one call per weight of a set larger than L2, median of 15 replays after 3, divided by the calls. prefill: L2 written
over before each call, median of what events around it say, over 60 ms after 10. With --turns subjects take turns call
by call, and what ran before a call changes its time.
A time counts only if y is right: within 4e-3 of DeepGEMM's, as relative Frobenius norm. Ratios are theirs over ours.
The exit code is 1 if one of ours is wrong or fails.
"""
import argparse
import ctypes
import math
import multiprocessing
import os
import pathlib
import sys
import traceback

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parents[1] / "cpp_tests/peers")]
import fp8rt_ctypes as fp8rt  # noqa: E402
from compare_peers import BF16, F32, FP8, Gpu, stream, view  # noqa: E402
from compare_peers import activation_buffers, deepgemm_cast, empty, host_us, randn  # noqa: E402
from compare_peers import load_peers, vllm_quantize  # noqa: E402

SECTIONS = ("warm", "decode", "prefill", "host", "cutlass")
MOST_DECODE_ROWS = 128
MOST_ERROR = 4e-3
# Ratios that are to be reached: vLLM's quantizer and DeepGEMM over ours, vLLM's CUTLASS over our CUTLASS backend.
LEAST_RATIO, LEAST_CUTLASS_RATIO = 0.97, 0.9


def read_table():
    """[(model, n, k)] and the numbers of rows."""
    shapes, rows = [], []
    for line in HERE.joinpath("linear_shapes.txt").read_text(encoding="utf-8").splitlines():
        fields = line.split("#")[0].split()
        if fields and fields[0] == "rows":
            rows = [int(m) for m in fields[1].split(",")]
        elif fields:
            shapes.append((fields[0], int(fields[1]), int(fields[2])))
    return shapes, rows


def section_of(m):
    return "decode" if m <= MOST_DECODE_ROWS else "prefill"


# The peers.

def deepgemm(x, weight, y):
    import deep_gemm
    deep_gemm.fp8_gemm_nt(x, weight, y, disable_ue8m0_cast=True)
    return y


def cutlass(x, weight, y):
    torch.ops._C.cutlass_scaled_mm(y, x[0], weight[0].t(), x[1], weight[1].t(), None)
    return y


def cublaslt(x, weight, _):
    from torch.nn.functional import ScalingType, scaled_mm
    return scaled_mm(x[0], weight[0].t(), scale_a=x[1], scale_recipe_a=ScalingType.BlockWise1x128,
                     scale_b=weight[1].t(), scale_recipe_b=ScalingType.BlockWise128x128, output_dtype=BF16)


# Ours.

class Linear:
    """A plan for any number of rows up to `max_m`, prepared, with its workspace."""

    def __init__(self, gpu, max_m, n, k, weight, backends="any"):
        def call(name, *arguments):
            gpu.check(getattr(gpu.library, name)(*arguments))

        self.gpu = gpu
        self.plan = fp8rt.LinearPlan(call, gpu.context, max_m, n, k, input_dtype=fp8rt.BF16, output_dtype=fp8rt.BF16,
                                     backends=fp8rt.BACKENDS[backends])
        self.memory = empty(max(self.plan.workspace(max_m), 1), dtype=torch.uint8)
        self.plan.prepare(*map(view, weight), stream())

    def bind(self, name, x, weight, y):
        """A call with everything but the stream decided. `x`: what comes before the weight."""
        function = getattr(self.gpu.library, name)
        views = [view(tensor) for tensor in (*x, *weight, y)]
        *inputs, output = [ctypes.byref(one) for one in views]
        workspace = ctypes.c_void_p(self.memory.data_ptr()), ctypes.c_uint64(self.memory.numel())

        def call(kept=(views, x, weight, y)):
            self.gpu.check(function(self.plan.plan, *inputs, None, output, *workspace, stream()))
            return kept[-1]
        return call

    def close(self):
        torch.cuda.synchronize()
        self.plan.close()


# Timers. Each takes {name: subject} and gives {name: microseconds}.

def capture(calls):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def elapsed_us(replay):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3


def median(values):
    return sorted(values)[len(values) // 2]


def rounds_of(names, turns):
    """The subjects of each round, which are timed call by call in turn."""
    names = list(names)
    return [names] if turns else [[name] for name in names + names[::-1]]


def graph_times(subjects, turns=False, repeats=15, warm=3):
    torch.cuda.synchronize()
    graphs = {name: capture(calls) for name, calls in subjects.items()}
    times = {name: [] for name in subjects}
    for names in rounds_of(subjects, turns):
        for repeat in range(-warm, repeats):
            for name in names:
                us = elapsed_us(graphs[name].replay) / len(subjects[name])
                if repeat >= 0:
                    times[name].append(us)
    return {name: median(values) for name, values in times.items()}


class StreamTimer:
    def __init__(self, turns=False, warm_ms=10, timed_ms=60):
        self.cache, self.turns = empty(256 << 20, dtype=torch.uint8), turns
        self.warm_ms, self.timed_ms = warm_ms, timed_ms

    def round(self, subjects):
        """One call of each, after L2 was written over: {name: events around it}."""
        events = {}
        for name, call in subjects.items():
            events[name] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.cache.zero_()
            events[name][0].record()
            call()
            events[name][1].record()
        return events

    def times(self, subjects):
        times = {name: [] for name in subjects}
        for names in rounds_of(subjects, self.turns):
            self.add_times({name: subjects[name] for name in names}, times)
        return {name: median(values) for name, values in times.items()}

    def add_times(self, subjects, times):
        estimate_ms = elapsed_us(lambda: [self.round(subjects) for _ in range(3)]) / 1e3 / 3 / len(subjects)
        for _ in range(max(1, int(self.warm_ms / estimate_ms))):
            self.round(subjects)
        rounds = [self.round(subjects) for _ in range(max(1, int(self.timed_ms / estimate_ms)))]
        torch.cuda.synchronize()
        for name in subjects:
            times[name] += [r[name][0].elapsed_time(r[name][1]) * 1e3 for r in rounds]


# The comparison.

class Refusals:
    """Who did not run or was wrong. Each of ours is a failure; a peer's reason is printed once."""

    def __init__(self):
        self.failures, self.known = 0, set()

    def add(self, name, shape, error):
        reason = f"{type(error).__name__}: {str(error)}".splitlines()[0][:240]
        ours = name.startswith("fp8rt")
        self.failures += ours
        if ours or (name, reason) not in self.known:
            print(f"  {name} at {' '.join(map(str, shape))}: {reason}", flush=True)
        self.known.add((name, reason))


class Comparison:
    """The subjects at one N and K. A subject maps a weight to a call without arguments that returns y."""

    def __init__(self, gpu, timer, refusals, shape, rows, sections):
        self.gpu, self.timer, self.refusals, self.shape, self.sections = gpu, timer, refusals, shape, sections
        self.plans = {}
        _, n, k = shape
        count = max(4, int(300e6 // (n * k))) if any(m <= MOST_DECODE_ROWS for m in rows) else 1
        self.weights = [deepgemm_cast(randn(n, k)) for _ in range(count)]
        if {"decode", "prefill"} & set(sections):
            self.make_plan("fp8rt", "any", max(rows))
        if "cutlass" in sections:
            self.make_plan("fp8rt cutlass", "cutlass", max(rows))

    def make_plan(self, name, backends, max_m):
        _, n, k = self.shape
        try:
            self.plans[backends] = Linear(self.gpu, max_m, n, k, self.weights[0], backends)
        except RuntimeError as error:
            self.refusals.add(name, self.shape, error)

    def subjects(self, m):
        _, n, k = self.shape
        x, y = randn(m, k), empty(m, n, dtype=BF16)
        codes = activation_buffers(m, k)
        vllm_quantize(x, *codes)
        subjects = {"deepgemm": lambda w: lambda: deepgemm(codes, w, y),
                    "vllm cutlass": lambda w: lambda: cutlass(codes, w, y)}
        if section_of(m) in self.sections:
            subjects["quantize+deepgemm"] = lambda w: lambda: (vllm_quantize(x, *codes), deepgemm(codes, w, y))[1]
            subjects["cublaslt"] = lambda w: lambda: cublaslt(codes, w, y)
            if "any" in self.plans:
                bind = self.plans["any"].bind
                subjects["fp8rt"] = lambda w: bind("fp8rt_linear", [x], w, y)
                subjects["fp8rt prequantized"] = lambda w: bind("fp8rt_linear_prequantized", codes, w, y)
        if "cutlass" in self.plans:
            bind_cutlass = self.plans["cutlass"].bind
            subjects["fp8rt cutlass"] = lambda w: bind_cutlass("fp8rt_linear_prequantized", codes, w, y)
        return subjects, y

    def right(self, subjects, y):
        """Those that run and give DeepGEMM's y, each with its error."""
        want, errors = subjects["deepgemm"](self.weights[0])().clone(), {}
        for name, subject in subjects.items():
            y.fill_(math.nan)
            try:
                error = relative_error(subject(self.weights[0])(), want)
                if not error < MOST_ERROR:
                    raise ValueError(f"WRONG, relative error {error:.2e}")
                errors[name] = error
            except Exception as error:
                self.refusals.add(name, (*self.shape, len(y)), error)
        return errors

    def times(self, m):
        """{name: (microseconds, error)} of those that are right."""
        subjects, y = self.subjects(m)
        errors = self.right(subjects, y)
        if section_of(m) == "decode":
            calls = {name: [subjects[name](weight) for weight in self.weights] for name in errors}
            times = graph_times(calls, self.timer.turns)
        else:
            times = self.timer.times({name: subjects[name](self.weights[0]) for name in errors})
        return {name: (us, errors[name]) for name, us in times.items()}

    def close(self):
        for linear in self.plans.values():
            linear.close()


def relative_error(y, want):
    want = want.float()
    return ((y.float() - want).norm() / want.norm()).item()


# What each of ours is compared with, as columns.
COLUMNS = (("fp8rt", ("quantize+deepgemm",)), ("fp8rt prequantized", ("deepgemm", "vllm cutlass", "cublaslt")),
           ("fp8rt cutlass", ("vllm cutlass",)))


class Report:
    def __init__(self, csv):
        self.csv = open(csv, "w", encoding="utf-8") if csv else None
        self.ratios = {}
        self.write("section,model,N,K,M,subject,us,error")

    def write(self, line):
        if self.csv:
            print(line, file=self.csv, flush=True)

    def add(self, shape, m, times):
        model, n, k = shape
        for name, (us, error) in times.items():
            self.write(f"{section_of(m)},{model},{n},{k},{m},{name},{us:.3f},{error:.2e}")
        parts = []
        for ours, peers in COLUMNS:
            if ours not in times:
                continue
            columns = " ".join(self.column(shape, m, ours, peer, times) for peer in peers)
            parts.append(f"{ours} {times[ours][0]:8.2f} | {columns}")
        print(f"{section_of(m):7} {model:13} N={n:5} K={k:5} M={m:4} " + " || ".join(parts), flush=True)

    def column(self, shape, m, ours, peer, times):
        if peer not in times:
            return f"{peer}        -"
        ratio = times[peer][0] / times[ours][0]
        self.ratios.setdefault((ours, peer), {})[(*shape, m)] = ratio
        return f"{peer} {times[peer][0]:8.2f} ({ratio:.3f})"

    def summarize(self):
        print("geometric means of theirs / ours")
        for (ours, peer), ratios in self.ratios.items():
            few = [ratio for (*_, m), ratio in ratios.items() if m <= 64]
            many = [ratio for (*_, m), ratio in ratios.items() if m > 64]
            print(f"  {peer} / {ours}: {geometric_mean(few)} for M <= 64, {geometric_mean(many)} above; least "
                  f"{min(ratios.values()):.3f} of {len(ratios)}")
        for pair, least in ((("fp8rt", "quantize+deepgemm"), LEAST_RATIO),
                            (("fp8rt cutlass", "vllm cutlass"), LEAST_CUTLASS_RATIO)):
            self.list_below(pair, least)

    def list_below(self, pair, least):
        if pair not in self.ratios:
            return
        below = {shape: ratio for shape, ratio in self.ratios[pair].items() if ratio < least}
        print(f"  {pair[1]} / {pair[0]} below {least}: {len(below)} of {len(self.ratios[pair])}")
        for (model, n, k, m), ratio in sorted(below.items(), key=lambda item: item[1]):
            print(f"    {ratio:.3f} {model} N={n} K={k} M={m}")


def geometric_mean(values):
    return f"{math.exp(sum(map(math.log, values)) / len(values)):.3f}" if values else "-"


def compare(gpu, shapes, rows, sections, csv, turns):
    """How many of ours failed."""
    report, timer, refusals = Report(csv), StreamTimer(turns), Refusals()
    wanted = [m for m in rows if section_of(m) in sections or "cutlass" in sections]
    for shape in shapes if wanted else []:
        comparison = Comparison(gpu, timer, refusals, shape, wanted, sections)
        for m in wanted:
            report.add(shape, m, comparison.times(m))
        comparison.close()
        del comparison
        torch.cuda.empty_cache()
    report.summarize()
    print(f"of ours {refusals.failures} failed")
    return refusals.failures


def time_host(gpu):
    """The time to enqueue from Python, ours through ctypes."""
    x, y, codes = randn(1, 4096), empty(1, 512, dtype=BF16), activation_buffers(1, 4096)
    weight = deepgemm_cast(randn(512, 4096))
    linear = Linear(gpu, 1, 512, 4096, weight)
    ours = linear.bind("fp8rt_linear", [x], weight, y)
    subjects = (("fp8rt", ours), ("vllm quantize", lambda: vllm_quantize(x, *codes)),
                ("deepgemm", lambda: deepgemm(codes, weight, y)), ("vllm cutlass", lambda: cutlass(codes, weight, y)))
    for _, call in subjects:
        call()
    print("host us a call, from Python: " + ", ".join(f"{name} {host_us(call):.1f}" for name, call in subjects))
    linear.close()


# DeepGEMM compiles a kernel for each N and K and each of its tiles, a few seconds each.

def warm_share(directory, n, k, rows):
    load_peers(directory)
    weight = empty(n, k, dtype=torch.uint8).zero_().view(FP8), empty(-(-n // 128), -(-k // 128), dtype=F32).fill_(1)
    for m in rows:
        codes, scales = activation_buffers(m, k)
        codes.view(torch.uint8).zero_()
        deepgemm((codes, scales.fill_(1)), weight, empty(m, n, dtype=BF16))
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def warm(directory, shapes, rows):
    halves = [rows[:len(rows) // 2], rows[len(rows) // 2:]]
    shares = [(directory, n, k, half) for _, n, k in shapes for half in halves if half]
    workers = min(len(shares), len(os.sched_getaffinity(0)))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(warm_share, shares, chunksize=1)


def numbers(text):
    return [int(one) for one in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", metavar="PEERS_DIR", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--models", type=lambda text: text.split(","))
    parser.add_argument("--m", type=numbers)
    parser.add_argument("--csv")
    parser.add_argument("--turns", action="store_true")
    parsed = parser.parse_args()
    for section in parsed.sections:
        if section not in SECTIONS:
            parser.error(f"\"{section}\" is no section, sections are {', '.join(SECTIONS)}")
    parsed.sections = parsed.sections or SECTIONS[1:]
    return parsed


def main():
    options = arguments()
    shapes, rows = read_table()
    shapes = [shape for shape in shapes if not options.models or shape[0] in options.models]
    rows = options.m or rows
    if "warm" in options.sections:
        warm(options.peers, shapes, rows)
    if set(options.sections) == {"warm"}:
        return 0
    load_peers(options.peers)
    gpu = Gpu()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n{gpu.library.fp8rt_build_info().decode()}")
    failures = 0
    if "host" in options.sections:
        time_host(gpu)
    if {"decode", "prefill", "cutlass"} & set(options.sections):
        failures = compare(gpu, shapes, rows, options.sections, options.csv, options.turns)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc(file=sys.stdout)
        sys.exit(1)
