#!/usr/bin/env python3
"""Fingerprints in plain Python, and the vectors that the library is held to.

Written from the README's chapter, without a look at the library. Needs nothing but Python:

    fingerprint.py           writes fingerprint_vectors.txt
    fingerprint.py --check   fails if the file is another than this script makes
"""
import hashlib
import pathlib
import struct
import sys

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
VECTORS = pathlib.Path(__file__).with_name("fingerprint_vectors.txt")
NONE, FP32, POW2, PACKED = "none", "fp32", "pow2", "packed"


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


KEYS = [mix((j + 1) * GOLDEN & MASK) >> 32 for j in range(5120)]


def half(rows, shift):
    """NH of the rows of a block, each up to 128 bytes."""
    total = 0
    for r, row in enumerate(rows):
        words = struct.unpack("<32I", row.ljust(128, b"\0"))
        for w in range(0, 32, 2):
            at = 32 * r + w + 1024 * shift
            total += ((words[w] + KEYS[at]) % 2**32) * ((words[w + 1] + KEYS[at + 1]) % 2**32)
    return total & MASK


def block_hash(name, part, place, scale, rows):
    """`place`: block row, block column, expert. `scale`: 32 bits."""
    block_row, block_column, expert = place
    a, b = struct.unpack_from("<2Q", hashlib.sha256(name.encode() + b"\0" + struct.pack("<I", part)).digest())
    words = (
        block_row | block_column << 32,
        expert | len(rows) << 32 | len(rows[0]) << 48,  # on blocks: no offsets
        scale,
        half(rows, 0),
        half(rows, 1),
    )
    for word in words:
        a = mix(a ^ word)
        b = mix((b + a) & MASK)
        a = (a + b) & MASK
    return a | b << 64


def fingerprint(name, part, first, matrix, scale_of):
    """Of one part of one expert: rows of bytes, and the 32 bits of the scale of a block (row, column)."""
    total = 0
    width = len(matrix[0]) if matrix else 0
    for i in range(0, len(matrix), 128):
        for j in range(0, width, 128):
            block = [row[j : j + 128] for row in matrix[i : i + 128]]
            place = (first[0] + i // 128, first[1] + j // 128, first[2])
            total += block_hash(name, part, place, scale_of(i // 128, j // 128), block)
    return total % 2**128


def random_bytes(seed, count):
    return bytes(mix((seed + (i + 1) * GOLDEN) & MASK) >> 56 for i in range(count))


def random_scale(seed, index, kind):
    z = mix((seed ^ 0x5851F42D4C957F2D) + (index + 1) * GOLDEN & MASK)
    if kind == NONE:
        return 0
    return 0x3F800000 | z >> 41 if kind == FP32 else (100 + z % 50) << 23


# Name, first part, first (block row, block column, expert), kind of scales, experts, rows of each part, bytes of a row,
# seed.
CASES = [
    ("model.layers.0.mlp.down_proj.weight", 0, (0, 0, 0), FP32, 1, [128], 128, 1),
    ("model.layers.0.mlp.down_proj.weight", 0, (0, 0, 0), FP32, 1, [256], 384, 2),
    ("model.layers.17.self_attn.qkv_proj.weight", 0, (0, 0, 0), FP32, 1, [192, 64, 64], 256, 3),
    ("model.layers.17.self_attn.qkv_proj.weight", 2, (5, 3, 0), FP32, 1, [130], 300, 4),
    ("model.layers.3.mlp.experts.w13_weight", 0, (0, 0, 7), FP32, 3, [100, 28], 130, 5),
    ("w", 0, (0, 0, 0), POW2, 1, [257], 1, 6),
    ("w", 0, (0, 0, 0), PACKED, 1, [257], 1, 6),
    ("w", 0, (1, 0, 0), PACKED, 2, [129, 3], 1030, 7),
    ("model.norm.weight", 0, (0, 0, 0), NONE, 1, [1], 8192, 8),
    ("model.embed_tokens.weight", 0, (1002, 0, 0), NONE, 1, [140], 514, 9),
    ("größe", 4294967295, (4294967294, 4294967293, 4294967294), FP32, 1, [5], 7, 10),
    ("v", 0, (0, 0, 0), FP32, 1, [1], 1, 11),
    ("empty", 0, (0, 0, 0), FP32, 1, [0], 128, 12),
]


def value_of(case):
    """Bytes are numbered over experts, rows and columns; scales over experts, bands and groups."""
    name, part, first, kind, experts, parts, columns, seed = case
    rows, bands, groups = sum(parts), sum(-(-rows // 128) for rows in parts), -(-columns // 128)
    data = random_bytes(seed, experts * rows * columns)
    total = 0
    for expert in range(experts):
        first_row, first_band = expert * rows, expert * bands
        for index, count in enumerate(parts):
            matrix = [data[r * columns : (r + 1) * columns] for r in range(first_row, first_row + count)]

            def scale_of(band, group):
                return random_scale(seed, (first_band + band) * groups + group, kind)

            place = (first[0], first[1], first[2] + expert)
            total += fingerprint(name, part + index, place, matrix, scale_of)
            first_row, first_band = first_row + count, first_band + -(-count // 128)
    return total % 2**128


def main():
    lines = ["# name part block_row block_column expert scales experts rows_of_parts row_bytes seed fingerprint"]
    for case in CASES:
        name, part, first, kind, experts, parts, columns, seed = case
        fields = (f'"{name}"', part, *first, kind, experts, ",".join(map(str, parts)), columns, seed)
        lines.append(" ".join(map(str, fields)) + f" {value_of(case):032x}")
    text = "\n".join(lines) + "\n"
    if sys.argv[1:] == ["--check"]:
        if VECTORS.read_text() != text:
            sys.exit(f"{VECTORS.name} is not what this script makes")
        return
    VECTORS.write_text(text)


if __name__ == "__main__":
    main()
