"""The numbers of block-scaled FP8, computed from their definition in float32 and without the library.

A float32 operation is done in float64 and rounded: for one product, quotient or sum of float32 values that is exact.
"""

import math
import struct

BLOCK = 128
FLOAT_MAX = 3.4028234663852886e38

# Every finite magnitude of E4M3: code to value.
MAGNITUDES = [
    (code & 7) * 2.0**-9 if code < 8 else (8 + (code & 7)) * 2.0 ** ((code >> 3) - 10) for code in range(0x7F)
]


def rounded(value):
    """Nearest float32, ties to even; infinity past the largest."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def code_of(value):
    """The E4M3 code of a float32: nearest, ties to the even code, saturating."""
    sign = 0x80 if math.copysign(1, value) < 0 else 0
    magnitude = abs(value)
    if math.isnan(value):
        return 0x7F
    if magnitude >= 448:
        return sign | 0x7E
    low, high = 0, 0x7E
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if MAGNITUDES[middle] <= magnitude else (low, middle)
    below, above = magnitude - MAGNITUDES[low], MAGNITUDES[high] - magnitude
    nearest = low if below < above or (below == above and low % 2 == 0) else high
    return sign | nearest


def quantizer_of_block(recipe, pow2, amax):
    """The scale of a block, and the function from a value to the float32 that is rounded to E4M3."""
    if pow2:
        return pow2_quantizer(recipe, amax)
    if recipe in ("vllm", "deepgemm"):
        floored = max(amax, rounded(1e-10 if recipe == "vllm" else 1e-4))
        scale = rounded(floored / 448 if recipe == "vllm" else floored * rounded(1 / 448))
        inverse = rounded(1 / scale)
        return scale, lambda x: rounded(x * inverse)
    if amax == 0:
        factor = 1.0
    elif recipe == "nemo_rl":
        factor = min(rounded(rounded(1 / amax) * 448), FLOAT_MAX)
    else:
        factor = min(rounded(448 / amax), FLOAT_MAX)
    return rounded(1 / factor), lambda x: rounded(x * factor)


def pow2_quantizer(recipe, amax):
    """For blocks whose amax is above every floor."""
    fraction, exponent = math.frexp(amax)
    scale = 2.0 ** (exponent - (9 if fraction <= 448 / 512 else 8))
    assert 448 * scale >= amax > 448 * scale / 2, recipe
    return scale, lambda x: rounded(x / scale)


def quantize(values, rows, columns, recipe, pow2):
    """Codes [rows, columns] and scales [blocks, blocks], as the bytes that a file has."""
    codes = bytearray(rows * columns)
    scales = []
    for top in range(0, rows, BLOCK):
        for left in range(0, columns, BLOCK):
            places = [
                row * columns + column
                for row in range(top, min(top + BLOCK, rows))
                for column in range(left, min(left + BLOCK, columns))
            ]
            amax = max((abs(values[place]) for place in places if math.isfinite(values[place])), default=0.0)
            scale, scaled = quantizer_of_block(recipe, pow2, amax)
            scales.append(scale)
            for place in places:
                codes[place] = code_of(scaled(values[place]))
    return bytes(codes), struct.pack(f"<{len(scales)}f", *scales)
