"""Makes a table of the fastest tiles or kernels: tile_table.py deepgemm|cutlass CSV...

A line of a CSV is `N,K,M,name,microseconds`, as `bench_linear --tiles all --csv FILE` writes it. For each N, K and M
the fastest of this build is taken; of several measurements the geometric mean counts.
"""
import collections
import csv
import math
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLES = {
    "deepgemm": ("src/backend/deepgemm/table.rs", "Tiles"),
    "cutlass": ("src/backend/cutlass/table.rs", "Kernels for y in bf16"),
}
HEADER = """//! {what} that were the fastest on an H100 80GB for the shapes of benches/gpu/linear_shapes.txt. Made by
//! `benches/gpu/tile_table.py {backend}` from what `bench_linear --tiles` measured; benches/RESULTS.md says how.

use crate::backend::choices::Measured;

pub const MEASURED: &Measured = &[
"""


def read(paths):
    """{(n, k, m): {name: microseconds}}"""
    logarithms = collections.defaultdict(lambda: collections.defaultdict(list))
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for n, k, m, name, microseconds in csv.reader(lines):
                if n.isdigit() and re.fullmatch(r"[0-9.]+", microseconds):
                    logarithms[int(n), int(k), int(m)][name].append(math.log(float(microseconds)))
    return {shape: {name: sum(values) / len(values) for name, values in names.items()}
            for shape, names in logarithms.items()}


def main():
    backend, *paths = sys.argv[1:]
    file, what = TABLES[backend]
    table = collections.defaultdict(list)
    for (n, k, m), times in sorted(read(paths).items()):
        table[n, k].append((m, min(times, key=times.get)))
    text = HEADER.format(backend=backend, what=what)
    for (n, k), rows in table.items():
        text += f"    (\n        {n},\n        {k},\n        &[\n"
        text += "".join(f'            ({m}, "{name}"),\n' for m, name in rows)
        text += "        ],\n    ),\n"
    ROOT.joinpath(file).write_text(text + "];\n", encoding="utf-8")


if __name__ == "__main__":
    main()
