#!/usr/bin/env python3
"""Write vectors.bin, or with --check compare the committed file with what this script makes.

    make_vectors.py [--check] [FILE]

Needs the two packages of requirements.txt. Exits 77 where they are missing, and 1 where --check finds a difference.
FORMAT.md says what the file holds.
"""
import pathlib
import struct
import sys

try:
    import ml_dtypes
    import numpy as np
except ImportError as error:
    print(f"make_vectors.py cannot run: {error}")
    sys.exit(77)

import formulas
from formulas import F32, FORMATS, FP32, NEMO_RL, POW2, RECIPES, UE8M0_PACKED

BF16, F16, FLOAT32 = 1, 2, 3
DTYPES = {"bf16": BF16, "fp16": F16, "fp32": FLOAT32}
NUMPY = {BF16: ml_dtypes.bfloat16, F16: np.float16, FLOAT32: F32}
BITS = {BF16: np.dtype("<u2"), F16: np.dtype("<u2"), FLOAT32: np.dtype("<u4")}
EXPONENT_AND_MANTISSA = {BF16: (8, 7), F16: (5, 10), FLOAT32: (8, 23)}
CANONICAL_NAN = {BF16: 0x7FC0, F16: 0x7E00, FLOAT32: 0x7FC00000}
QUANTIZE, QUANTIZE_WITH, DEQUANTIZE = 0, 1, 2
EXPLICIT, GENERATED, DIGESTS, AS_BEFORE = 0, 1, 2, 3
COLUMN_MAJOR, ROW_MAJOR = 0, 1
GAMMA = np.uint64(0x9E3779B97F4A7C15)
TILE_SEED = 0x5851F42D4C957F2D


def mix(z):
    """SplitMix64's finalizer."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Generated:
    """An input that both sides make from a seed."""

    def __init__(self, seed, low, high, tile_rows, specials):
        self.fields = (seed, low, high, tile_rows, int(specials))

    def section(self):
        return GENERATED, struct.pack("<QIIII", *self.fields)

    def bits(self, dtype, shape):
        seed, low, high, tile_rows, specials = self.fields
        experts, rows, columns = shape
        element = np.arange(experts * rows * columns, dtype=np.uint64)
        z = mix(np.uint64(seed) + (element + np.uint64(1)) * GAMMA)
        row, column = element // np.uint64(columns), element % np.uint64(columns)
        tile = (row // np.uint64(tile_rows)) * np.uint64(-(-columns // 128)) + column // np.uint64(128)
        base = mix(np.uint64(seed ^ TILE_SEED) + (tile + np.uint64(1)) * GAMMA) % np.uint64(high - low + 1)
        drop = ((z >> np.uint64(40)) & np.uint64(0xFFFF)) % np.uint64(20)
        exponent = np.maximum(base.astype(np.int64) + low - drop.astype(np.int64), 0).astype(np.uint64)
        return self.assemble(dtype, z, exponent, specials).reshape(shape)

    @staticmethod
    def assemble(dtype, z, exponent, specials):
        exponent_bits, mantissa_bits = EXPONENT_AND_MANTISSA[dtype]
        infinity = np.uint64(((1 << exponent_bits) - 1) << mantissa_bits)
        magnitude = exponent << np.uint64(mantissa_bits) | (z & np.uint64((1 << mantissa_bits) - 1))
        if specials:
            selector = (z >> np.uint64(24)) & np.uint64(0xFF)
            quiet = infinity | np.uint64(1 << (mantissa_bits - 1))
            for number, value in enumerate((np.uint64(0), quiet, infinity, np.uint64(1))):
                magnitude = np.where(selector == number, value, magnitude)
        return ((z >> np.uint64(63)) << np.uint64(exponent_bits + mantissa_bits) | magnitude).astype(BITS[dtype])


class Explicit:
    """An input that is stored: bits, or values that are rounded to the dtype."""

    def __init__(self, values=None, bits=None):
        self.values, self.stored = values, bits

    def bits(self, dtype, shape):
        if self.stored is not None:
            return np.asarray(self.stored, BITS[dtype]).reshape(shape)
        values = np.asarray(self.values, F32).astype(NUMPY[dtype])
        return np.ascontiguousarray(values).view(BITS[dtype]).reshape(shape)

    def section(self):
        return EXPLICIT, None


def digest(rows):
    """FNV-1a of 32 bits of each row of bytes."""
    state = np.full(rows.shape[0], 0x811C9DC5, np.uint32)
    for column in range(rows.shape[1]):
        state = (state ^ rows[:, column]) * np.uint32(0x01000193)
    return state.astype("<u4").tobytes()


def output_section(matrix):
    """Digests of rows where they are smaller than the bytes."""
    rows = np.ascontiguousarray(matrix).view(np.uint8).reshape(matrix.shape[0] * matrix.shape[1], -1)
    if rows.size <= 4 * rows.shape[0]:
        return EXPLICIT, rows.tobytes()
    return DIGESTS, digest(rows)


def scales_section(stored):
    """Digests of lines of 64 bytes where there are more than two."""
    if len(stored) <= 128:
        return EXPLICIT, stored
    whole = len(stored) // 64 * 64
    lines = digest(np.frombuffer(stored[:whole], np.uint8).reshape(-1, 64))
    if whole < len(stored):
        lines += digest(np.frombuffer(stored[whole:], np.uint8).reshape(1, -1))
    return DIGESTS, lines


class Writer:
    def __init__(self):
        self.cases, self.last_input = [], None

    def section(self, encoding, payload):
        return struct.pack("<II", encoding, len(payload)) + payload + bytes(-len(payload) % 4)

    def input_section(self, source, bits):
        """A case that stores the same input as the one before points back at it."""
        encoding, payload = source.section()
        payload = bits.tobytes() if payload is None else payload
        same = (encoding, payload) == self.last_input
        self.last_input = (encoding, payload)
        return self.section(AS_BEFORE, b"") if same else self.section(encoding, payload)

    def add(self, case, source, input_bits, scales, output, health):
        name = case.name.encode()
        floor = F32(0 if case.floor is None else case.floor)
        head = struct.pack("<I", len(name)) + name + bytes(-len(name) % 4)
        head += struct.pack("<6I", case.operation, case.subject, case.dtype, case.recipe, case.format, case.layout)
        head += struct.pack("<II", case.floor is not None, int(floor.view(np.uint32)))
        head += struct.pack("<4I", case.experts, *case.shape[1:], len(case.parts))
        head += struct.pack(f"<{len(case.parts)}I", *case.parts)
        # Scales that are an input are stored whole.
        scales = scales_section(scales) if case.operation == QUANTIZE else (EXPLICIT, scales)
        sections = self.input_section(source, input_bits) + self.section(*scales)
        sections += self.section(*output_section(output))
        sections += self.section(EXPLICIT, struct.pack(f"<{len(health)}Q", *health))
        self.cases.append(head + sections)

    def file(self):
        return b"FP8RTGV1" + struct.pack("<II", len(self.cases), 0) + b"".join(self.cases)


class Case:
    """What one call gets, but for its tensors."""

    def __init__(self, name, rows, columns, *, weight=False, dtype=FLOAT32, recipe=NEMO_RL, scale_format=FP32,
                 layout=COLUMN_MAJOR, floor=None, experts=0, parts=()):
        self.name, self.subject, self.dtype = name, 0 if weight else 1, dtype
        self.recipe, self.format = recipe, scale_format
        self.layout = COLUMN_MAJOR if weight or scale_format == UE8M0_PACKED else layout
        self.floor, self.experts, self.parts = floor, experts, tuple(parts)
        self.shape = (max(experts, 1), rows, columns)
        self.weight = weight
        self.operation = None

    def values(self, source):
        bits = source.bits(self.dtype, self.shape)
        return bits, bits.view(NUMPY[self.dtype]).astype(F32)

    def stored_scales(self, scale):
        column_major = self.layout == COLUMN_MAJOR
        return formulas.store_scales(scale, self.format, column_major, self.shape[1], self.parts, self.weight)

    def grid_shape(self):
        starts, _ = formulas.bands_of(self.shape[1], self.parts, self.weight)
        return self.shape[0], len(starts), -(-self.shape[2] // 128)


def add_quantize(writer, case, source):
    case.operation = QUANTIZE
    bits, values = case.values(source)
    codes, scale, health = formulas.quantize(values, case.recipe, case.format, case.floor, case.parts, case.weight)
    writer.add(case, source, bits, case.stored_scales(scale), codes, health)


def add_quantize_with(writer, case, source, scale):
    case.operation = QUANTIZE_WITH
    bits, values = case.values(source)
    scale = np.broadcast_to(np.asarray(scale, F32), case.grid_shape())
    codes, health = formulas.quantize_with(values, scale, case.parts, case.weight)
    writer.add(case, source, bits, case.stored_scales(scale), codes, health)


def add_dequantize(writer, case, codes, scale):
    case.operation = DEQUANTIZE
    codes = np.asarray(codes, np.uint8).reshape(case.shape)
    scale = np.broadcast_to(np.asarray(scale, F32), case.grid_shape())
    values = formulas.dequantize(codes, scale, case.parts, case.weight)
    bits = values.astype(NUMPY[case.dtype]).view(BITS[case.dtype])
    bits = np.where(np.isnan(values), BITS[case.dtype].type(CANONICAL_NAN[case.dtype]), bits)
    writer.add(case, Explicit(), codes, case.stored_scales(scale), bits, ())


# Rows, columns, and the range of exponents: middling, all, all but 1, tiny with denormals, huge.
EDGES = ((130, 256, (97, 137), (10, 25)), (129, 300, (0, 254), (0, 30)), (1, 1, (120, 130), (12, 18)),
         (5, 192, (0, 12), (0, 3)), (16, 64, (200, 254), (25, 30)))


def every_combination(writer):
    """Both subjects, every recipe, format and dtype, over the shapes with edges."""
    seed = 1
    for rows, columns, wide, narrow in EDGES:
        for subject in ("weight", "activation"):
            for dtype_name, dtype in DTYPES.items():
                low, high = narrow if dtype == F16 else wide
                source = Generated(seed, low, high, 128 if subject == "weight" else 1, specials=rows != 1)
                seed += 1
                for recipe_name, recipe in RECIPES.items():
                    for format_name, scale_format in FORMATS.items():
                        name = f"{subject} {rows}x{columns} {dtype_name} {recipe_name} {format_name}"
                        case = Case(name, rows, columns, weight=subject == "weight", dtype=dtype, recipe=recipe,
                                    scale_format=scale_format, layout=seed % 2)
                        add_quantize(writer, case, source)


def parts_and_experts(writer):
    """Merged weights whose parts are not whole blocks, and stacked experts."""
    for recipe_name, recipe in RECIPES.items():
        for format_name, scale_format in FORMATS.items():
            case = Case(f"parts {recipe_name} {format_name}", 171, 140, weight=True, dtype=BF16, recipe=recipe,
                        scale_format=scale_format, parts=(40, 0, 130, 1))
            add_quantize(writer, case, Generated(77, 100, 140, 32, specials=False))
    for format_name, scale_format in FORMATS.items():
        for parts in ((), (2, 129)):
            case = Case(f"experts {format_name} parts {list(parts)}", 131, 140, weight=True, dtype=BF16,
                        scale_format=scale_format, experts=3, parts=parts)
            add_quantize(writer, case, Generated(78, 100, 140, 16, specials=True))


def set_floors(writer):
    """Floors under, between and above the amax of rows, from a zero row to a row of 500."""
    amax = [0.0, 1e-45, 1e-41, 1e-38, 1e-12, 1e-4, 2.9, 500.0]
    values = np.outer(np.array(amax, F32), np.array([1, -0.5, 0.03, 0], F32))
    for floor in (0.0, 1e-40, 3.0):
        for recipe_name, recipe in RECIPES.items():
            for format_name, scale_format in FORMATS.items():
                case = Case(f"floor {floor} {recipe_name} {format_name}", 8, 4, recipe=recipe,
                            scale_format=scale_format, floor=floor)
                add_quantize(writer, case, Explicit(values))


def every_exponent(writer):
    """amax at each float32 exponent, denormals included, with 448 * 2^k and one ulp above it among the mantissas."""
    exponents = np.arange(255, dtype=np.uint32)[:, None] << np.uint32(23)
    amax = (exponents | np.array([0, 0x600000, 0x600001, 0x7FFFFF], np.uint32)).reshape(-1)
    small = (amax // 3) | np.uint32(0x80000000)
    bits = np.stack([amax, small], axis=1)
    for recipe_name, recipe in RECIPES.items():
        for format_name, scale_format in FORMATS.items():
            case = Case(f"every exponent {recipe_name} {format_name}", len(amax), 2, recipe=recipe,
                        scale_format=scale_format)
            add_quantize(writer, case, Explicit(bits=bits))


def denormals(writer):
    """Each power of two among the denormals, and its neighbor below."""
    powers = np.array([1 << k for k in range(23)] + [(1 << k) - 1 for k in range(2, 24)], np.uint32)
    for recipe_name, recipe in RECIPES.items():
        for scale_format in (FP32, POW2):
            case = Case(f"denormals {recipe_name} format {scale_format}", len(powers), 1, recipe=recipe,
                        scale_format=scale_format, floor=0.0)
            add_quantize(writer, case, Explicit(bits=powers))


def zeros_and_specials(writer):
    zeros = np.zeros((3, 130), F32)
    signed = np.array([[0.0, -0.0, -1e-30, 1e-30, -1.0, 1.0]], F32)
    # Quiet and signaling NaN of both signs, both infinities, and finite values beside them.
    specials = np.array([[0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x3F800000, 0xBF000000],
                         [0x7F800000, 0xFF800000, 0x41200000, 0xC0A00000, 0x00000000, 0x80000000],
                         [0x7FC00000, 0x7F800000, 0xFF800000, 0xFFFFFFFF, 0x7FFFFFFF, 0x7F800000]], np.uint32)
    for recipe_name, recipe in RECIPES.items():
        for format_name, scale_format in FORMATS.items():
            for weight in (True, False):
                tag = f"{'weight' if weight else 'activation'} {recipe_name} {format_name}"
                settings = dict(weight=weight, recipe=recipe, scale_format=scale_format)
                add_quantize(writer, Case(f"zeros {tag}", 3, 130, dtype=BF16, **settings), Explicit(zeros))
                add_quantize(writer, Case(f"signed zeros {tag}", 1, 6, **settings), Explicit(signed))
                add_quantize(writer, Case(f"not finite {tag}", 3, 6, **settings), Explicit(bits=specials))


def tiny_in_a_block(writer):
    """One value in a block of zeros, down to where an inverse overflows."""
    for value in (1e-37, 1e-39, 3e38):
        weight = np.zeros((2, 130), F32)
        weight[0, 0] = value
        for recipe_name, recipe in RECIPES.items():
            case = Case(f"one value {value} {recipe_name}", 2, 130, weight=True, recipe=recipe)
            add_quantize(writer, case, Explicit(weight))


def landings():
    """Every E4M3 value, every middle between two, and one ulp to each side of both."""
    magnitudes = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(F32)
    middles = np.append((magnitudes[1:] + magnitudes[:-1]) / F32(2), F32(464))
    points = np.concatenate([magnitudes, middles])
    around = np.concatenate([points, np.nextafter(points, F32(np.inf)), np.nextafter(points[1:], F32(0))])
    return np.concatenate([around, -around]).reshape(1, -1)


def given_scales(writer):
    saturating = np.array([[448, 449, 463.9, 464, 464.1, 480, 1e30, np.inf, np.nan, -464, -464.1, -1e30, -np.inf,
                            2.0**-10, 1.5 * 2.0**-10, 2.0**-9, -(2.0**-11), 0, -0.0, 1]], F32)
    points = landings()
    uniform = (("1", FP32, 1), ("2^-3", POW2, 0.125), ("2^5", UE8M0_PACKED, 32), ("0.3", FP32, 0.3))
    for weight in (True, False):
        tag = "weight" if weight else "activation"
        for name, dtype in DTYPES.items():
            case = Case(f"given 1 {tag} {name} saturating", 1, saturating.size, weight=weight, dtype=dtype)
            add_quantize_with(writer, case, Explicit(saturating), 1)
        for name, scale_format, scale in uniform:
            case = Case(f"given {name} {tag} landings", 1, points.size, weight=weight, scale_format=scale_format)
            factor = F32(scale) if scale_format != FP32 else F32(1)
            add_quantize_with(writer, case, Explicit(points * factor), scale)
    for name, scale_format in FORMATS.items():
        grid = np.ldexp(F32(1), np.arange(9) * 7 - 40) if scale_format else np.geomspace(1e-4, 30, 9)
        case = Case(f"given grid {name} parts", 140, 300, weight=True, dtype=BF16, scale_format=scale_format,
                    parts=(3, 9, 128))
        add_quantize_with(writer, case, Generated(91, 90, 130, 16, specials=True), np.reshape(grid, (1, 3, 3)))
        grid = np.resize(grid, (1, 5, 3))
        for layout in (ROW_MAJOR, COLUMN_MAJOR):
            case = Case(f"given grid {name} activation layout {layout}", 5, 300, dtype=F16, scale_format=scale_format,
                        layout=layout)
            add_quantize_with(writer, case, Generated(92, 0, 30, 1, specials=True), grid)


def dequantized(writer):
    """Every code under scales from denormal to huge, to every dtype."""
    scales = np.array([1, 0.37, 2.0**-126, 1e-40, 2.0**-10, 3e30, 2e38, 1e-3], F32)
    powers = np.array([1, 2.0**-126, 2.0**-20, 2.0**-11, 2.0**-3, 2.0**9, 2.0**100, 2.0**127], F32)
    codes = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    for name, dtype in DTYPES.items():
        for format_name, scale_format in FORMATS.items():
            column = (powers if scale_format else scales).reshape(1, 8, 1)
            for layout in (COLUMN_MAJOR, ROW_MAJOR):
                case = Case(f"dequantize {name} {format_name} layout {layout}", 8, 256, dtype=dtype,
                            scale_format=scale_format, layout=layout)
                add_dequantize(writer, case, codes, column)
            case = Case(f"dequantize weight {name} {format_name}", 8, 256, weight=True, dtype=dtype,
                        scale_format=scale_format, parts=(1,) * 8)
            add_dequantize(writer, case, codes, column)
    many = mix(np.arange(2 * 130 * 130, dtype=np.uint64) + np.uint64(5)).astype(np.uint8)
    case = Case("dequantize experts", 130, 130, weight=True, dtype=BF16, experts=2)
    add_dequantize(writer, case, many, np.geomspace(1e-3, 1e3, 8).reshape(2, 2, 2))


def make():
    writer = Writer()
    # NaN and overflow are inputs here, not accidents.
    with np.errstate(all="ignore"):
        for family in (every_combination, parts_and_experts, set_floors, every_exponent, denormals, zeros_and_specials,
                       tiny_in_a_block, given_scales, dequantized):
            family(writer)
    return writer.file()


def main(arguments):
    check = "--check" in arguments
    paths = [argument for argument in arguments if argument != "--check"]
    path = pathlib.Path(paths[0]) if paths else pathlib.Path(__file__).with_name("vectors.bin")
    made = make()
    if not check:
        path.write_bytes(made)
        print(f"{path.name}: {len(made)} bytes")
        return 0
    same = path.read_bytes() == made
    answer = "is" if same else "IS NOT"
    print(f"{path.name} {answer} what numpy {np.__version__} and ml_dtypes {ml_dtypes.__version__} give")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
