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
    "deepgemm": ("src/backend/deepgemm/table.rs", "tile", "tiles", ""),
    "cutlass": ("src/kernels/cutlass/table.rs", "kernel", "kernels", " Of y in bf16."),
}
HEADER = """//! {Many} that were the fastest on an H100 80GB for the shapes of benches/gpu/linear_shapes.txt. Made by
//! `benches/gpu/tile_table.py {backend}` from what `bench_linear --tiles all` measured; see benches/RESULTS.md.

/// A number of rows, and the name of the {one} that was the fastest for it.
type Row = (usize, &'static str);

/// N, K, and the {many} by rows.{note}
pub const MEASURED: &[(usize, usize, &[Row])] = &[
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
    file, one, many, note = TABLES[backend]
    table = collections.defaultdict(list)
    for (n, k, m), times in sorted(read(paths).items()):
        table[n, k].append((m, min(times, key=times.get)))
    text = HEADER.format(backend=backend, Many=many.capitalize(), one=one, many=many, note=note)
    for (n, k), rows in table.items():
        text += f"    (\n        {n},\n        {k},\n        &[\n"
        text += "".join(f'            ({m}, "{name}"),\n' for m, name in rows)
        text += "        ],\n    ),\n"
    ROOT.joinpath(file).write_text(text + "];\n", encoding="utf-8")


if __name__ == "__main__":
    main()
