"""The normative table of numbers in numpy: float32 operations with one rounding each, and ml_dtypes for E4M3.

Written from the table's text, without a look at the library: that is what makes the vectors worth comparing.
"""
import ml_dtypes
import numpy as np

F32 = np.float32
LARGEST = F32(448)
FLT_MAX = np.finfo(F32).max
LEAST_NORMAL = F32(2.0**-126)
BLOCK = 128
VLLM, DEEPGEMM, NEMO_RL, TE = 1, 2, 3, 4
FP32, POW2, UE8M0_PACKED = 0, 1, 2
RECIPES = {"VLLM": VLLM, "DEEPGEMM": DEEPGEMM, "NEMO_RL": NEMO_RL, "TE": TE}
FORMATS = {"FP32": FP32, "POW2": POW2, "UE8M0_PACKED": UE8M0_PACKED}
OWN_FLOOR = {VLLM: F32(1e-10), DEEPGEMM: F32(1e-4), NEMO_RL: F32(0), TE: F32(0)}


def to_e4m3(values):
    """Nearest even, saturating; NaN of either sign gives 0x7F."""
    assert values.dtype == F32
    codes = np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return np.where(np.isnan(values), np.uint8(0x7F), codes)


def smallest_power_of_two(amax):
    """The smallest power of two s in 2^-126..2^127 with amax <= 448 * s; 448 is 0.875 * 2^9."""
    mantissa, exponent = np.frexp(amax)
    exponent = np.where(mantissa <= F32(0.875), exponent - 9, exponent - 8)
    exponent = np.where(amax == 0, -126, np.clip(exponent, -126, 127))
    return np.ldexp(F32(1), exponent).astype(F32)


def scales_fp32(recipe, amax):
    """Scale, and the function from values to the float32 that is rounded to a code."""
    if recipe == VLLM:
        scale = np.maximum(amax / LARGEST, LEAST_NORMAL)
        return scale, np.multiply, F32(1) / scale
    if recipe == DEEPGEMM:
        scale = np.maximum(amax * F32(1 / 448), LEAST_NORMAL)
        return scale, np.multiply, F32(1) / scale
    inverse = (F32(1) / amax) * LARGEST if recipe == NEMO_RL else LARGEST / amax
    inverse = np.where(amax == 0, F32(1), np.minimum(inverse, FLT_MAX))
    return F32(1) / inverse, np.multiply, inverse


def scales_pow2(recipe, amax):
    scale = smallest_power_of_two(amax)
    if recipe == VLLM:
        scale = np.maximum(scale, F32(2.0**-33))
    elif recipe in (NEMO_RL, TE):
        scale = np.where(amax == 0, F32(1), scale)
    return scale, np.divide, None


def scales_of(recipe, scale_format, floor, amax):
    """Scale, operation and its right operand (None: the scale) for each amax of a grid."""
    floored = np.maximum(amax, OWN_FLOOR[recipe] if floor is None else F32(floor))
    scale, operation, operand = (scales_fp32 if scale_format == FP32 else scales_pow2)(recipe, floored)
    assert scale.dtype == F32 and np.isfinite(scale).all() and (scale > 0).all()
    return scale, operation, scale if operand is None else operand


def bands_of(subject_rows, parts, is_weight):
    """First row of each band of rows that shares scales, and the band of each row."""
    if not is_weight:
        return np.arange(subject_rows), np.arange(subject_rows)
    starts, begin = [], 0
    for part in parts or [subject_rows]:
        starts += range(begin, begin + part, BLOCK)
        begin += part
    starts = np.array(starts)
    return starts, np.searchsorted(starts, np.arange(subject_rows), side="right") - 1


def grid_amax(values, starts):
    """amax over the finite elements of each band and group of 128 columns, [experts, bands, groups]."""
    magnitudes = np.where(np.isfinite(values), np.abs(values), F32(0))
    by_group = np.maximum.reduceat(magnitudes, np.arange(0, values.shape[2], BLOCK), axis=2)
    return np.maximum.reduceat(by_group, starts, axis=1)


def spread(grid, band_of_row, columns):
    """One entry for each element, from one for each block or group."""
    return grid[:, band_of_row][:, :, np.arange(columns) // BLOCK]


def health_of(values, scaled, codes, given):
    finite, magnitude = np.isfinite(values), codes & 0x7F
    saturated = finite & (np.abs(scaled) > F32(464)) if given else np.zeros_like(finite)
    became_zero = finite & (values != 0) & (magnitude == 0)
    became_subnormal = finite & (magnitude >= 1) & (magnitude <= 7)
    counts = (~finite, saturated, became_zero, became_subnormal)
    return [int(count.sum()) for count in counts]


def quantize(values, recipe, scale_format, floor, parts, is_weight):
    """Codes, the grid of scales, and health; values float32 [experts, rows, columns]."""
    starts, band_of_row = bands_of(values.shape[1], parts, is_weight)
    scale, operation, operand = scales_of(recipe, scale_format, floor, grid_amax(values, starts))
    scaled = operation(values, spread(operand, band_of_row, values.shape[2]))
    codes = to_e4m3(scaled)
    return codes, scale, health_of(values, scaled, codes, given=False)


def quantize_with(values, scale, parts, is_weight):
    _, band_of_row = bands_of(values.shape[1], parts, is_weight)
    scaled = values / spread(scale, band_of_row, values.shape[2])
    codes = to_e4m3(scaled)
    return codes, health_of(values, scaled, codes, given=True)


def dequantize(codes, scale, parts, is_weight):
    """The float32 product; the caller rounds it to the dtype."""
    _, band_of_row = bands_of(codes.shape[1], parts, is_weight)
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(F32)
    return values * spread(scale, band_of_row, codes.shape[2])


def pad_rows(matrix):
    """[experts, rows, columns] to column-major with rows padded by zeros to a multiple of 4."""
    padding = -matrix.shape[1] % 4
    return np.pad(matrix, ((0, 0), (0, padding), (0, 0))).transpose(0, 2, 1)


def store_scales(scale, scale_format, column_major, rows, parts, is_weight):
    """Every byte of the compact scale tensor."""
    if scale_format != UE8M0_PACKED:
        return np.ascontiguousarray(pad_rows(scale) if column_major and not is_weight else scale).tobytes()
    _, band_of_row = bands_of(rows, parts, is_weight)
    exponents = (scale[:, band_of_row].view(np.uint32) >> 23).astype(np.uint8)
    exponents = np.pad(exponents, ((0, 0), (0, 0), (0, -exponents.shape[2] % 4)))
    words = np.ascontiguousarray(exponents).view("<u4")
    return np.ascontiguousarray(pad_rows(words)).tobytes()
