"""The C structures of fp8rt.h that are used from Python, as ctypes sees them. No torch, no vllm."""

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p

BF16, F16, F32, E4M3 = 1, 2, 3, 4
BACKENDS = {"deepgemm": 2, "cutlass": 4, "cublaslt": 8, "plain": 16, "cpu": 32}
# By number.
RECIPES = ("DEFAULT", "VLLM", "DEEPGEMM", "NEMO_RL", "TE")
SCALE_FORMATS = ("FP32", "POW2", "UE8M0_PACKED")
FP32, POW2, UE8M0_PACKED = range(len(SCALE_FORMATS))
DESTINATION_PARTLY = 2
REFIT_PARTIAL = 1
# States of a refit.
REFIT_IDLE, REFIT_OPEN, REFIT_FAILED = 0, 1, 2


class Sized(ctypes.Structure):
    """A structure that begins with its own size."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(type(self)), **fields)


class ContextDesc(Sized):
    _fields_ = [("struct_size", c_uint32), ("flags", c_uint32), ("device", c_int32), ("num_threads", c_uint32)]


class QuantizeDesc(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("recipe", c_uint32),
        ("scale_format", c_uint32),
        ("floor", c_float),
        ("num_parts", c_uint32),
        ("part_rows", POINTER(c_int64)),
    ]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("bytes", c_uint64),
        ("dtype", c_uint32),
        ("device", c_int32),
        ("rank", c_uint32),
        ("reserved", c_uint32),
        ("shape", c_int64 * 3),
        ("stride", c_int64 * 3),
    ]


class RefitDestination(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("codes", Tensor),
        ("scales", Tensor),
        ("part_rows", POINTER(c_int64)),
        ("num_parts", c_uint32),
        ("flags", c_uint32),
        ("recipe", c_uint32),
        ("scale_format", c_uint32),
        ("floor", c_float),
        ("reserved", c_uint32),
    ]


class RefitRegion(ctypes.Structure):
    _fields_ = [
        ("source", c_char_p),
        ("destination", c_uint32),
        ("reserved", c_uint32),
        ("source_first", c_int64 * 3),
        ("extent", c_int64 * 3),
        ("destination_first", c_int64 * 3),
    ]


class RefitDesc(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("num_destinations", c_uint32),
        ("num_regions", c_uint32),
        ("destinations", POINTER(RefitDestination)),
        ("regions", POINTER(RefitRegion)),
    ]


class RefitItem(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("flags", c_uint32),
        ("part", c_uint32),
        ("expert", c_int64),
        ("first_row", c_int64),
        ("first_column", c_int64),
        ("weight", Tensor),
        ("scales", Tensor),
    ]


class RefitReceipt(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("destinations_filled", c_uint32),
        ("num_destinations", c_uint32),
        ("reserved", c_uint32),
        ("blocks_filled", c_uint64),
        ("blocks_total", c_uint64),
        ("items", c_uint64),
        ("regions_written", c_uint64),
        ("bytes_read", c_uint64),
        ("bytes_written", c_uint64),
    ]


class RefitInfo(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("state", c_uint32),
        ("num_destinations", c_uint32),
        ("num_sources", c_uint32),
        ("num_regions", c_uint32),
        ("destinations_filled", c_uint32),
        ("cut_on_blocks", c_uint32),
        ("reserved", c_uint32),
        ("blocks_filled", c_uint64),
        ("blocks_total", c_uint64),
        ("bytes_read", c_uint64),
        ("bytes_written", c_uint64),
        ("staging_bytes", c_uint64),
    ]


class FingerprintDesc(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("name", c_char_p),
        ("part", c_uint32),
        ("scale_format", c_uint32),
        ("expert", c_int64),
        ("first_block_row", c_int64),
        ("first_block_column", c_int64),
        ("part_rows", POINTER(c_int64)),
        ("num_parts", c_uint32),
        ("reserved", c_uint32),
    ]


class FingerprintSum(ctypes.Structure):
    _fields_ = [("limbs", c_uint64 * 4)]


class Fingerprint(ctypes.Structure):
    _fields_ = [("low", c_uint64), ("high", c_uint64)]

    def hex(self) -> str:
        """Both words as one number, the higher one first."""
        return f"{self.high:016x}{self.low:016x}"


class PolicyDesc(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("flags", c_uint32),
        ("kind", c_uint32),
        ("reserved", c_uint32),
        ("settings", c_char_p),
        ("config", c_char_p),
        ("packed_modules", c_char_p),
        ("prefixes", c_char_p),
    ]


class PolicyInfo(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("quantizes", c_uint32),
        ("backends", c_uint32),
        ("num_warnings", c_uint32),
        ("first_layers", c_uint32),
        ("last_layers", c_uint32),
        ("num_hidden_layers", c_int64),
    ]


class PolicyDecision(Sized):
    _fields_ = [
        ("struct_size", c_uint32),
        ("action", c_uint32),
        ("weight_recipe", c_uint32),
        ("weight_scale_format", c_uint32),
        ("activation_recipe", c_uint32),
        ("activation_scale_format", c_uint32),
    ]
