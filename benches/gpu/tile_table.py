"""Makes src/backend/deepgemm/table.rs from measurements: tile_table.py CSV...

A line of a CSV is `N,K,M,tile,microseconds`, as `bench_linear --tiles all --csv FILE` writes it. For each N, K and M the fastest
tile of this build is taken; rows in a row with the same tile become one.
"""
import collections
import csv
import pathlib
import sys

HEADER = """//! Tiles that were the fastest on an H100 80GB for the shapes of benches/gpu/linear_shapes.txt. Made by
//! benches/gpu/tile_table.py from what `bench_linear --tiles all` measures; see benches/RESULTS.md.

/// A number of rows, and the name of the tile that was the fastest for it.
type Row = (usize, &'static str);

/// N, K, and the tiles by rows.
pub const MEASURED: &[(usize, usize, &[Row])] = &[
"""


def read(paths):
    times = collections.defaultdict(dict)
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for n, k, m, tile, microseconds in csv.reader(lines):
                if n.isdigit() and microseconds != "-":
                    times[int(n), int(k), int(m)][tile] = float(microseconds)
    return times


def main():
    times = read(sys.argv[1:])
    table = collections.defaultdict(list)
    for (n, k, m), tiles in sorted(times.items()):
        table[n, k].append((m, min(tiles, key=tiles.get)))
    text = HEADER
    for (n, k), rows in table.items():
        text += f"    (\n        {n},\n        {k},\n        &[\n"
        text += "".join(f'            ({m}, "{tile}"),\n' for m, tile in rows)
        text += "        ],\n    ),\n"
    pathlib.Path(__file__).resolve().parents[2].joinpath("src/backend/deepgemm/table.rs").write_text(
        text + "];\n", encoding="utf-8")


if __name__ == "__main__":
    main()
