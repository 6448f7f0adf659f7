"""libfp8rt.so.0: its torch ops, and the part of its C ABI that the plugin uses by itself."""
from __future__ import annotations

import ctypes
import functools
import os
import pathlib
from dataclasses import dataclass
from typing import Any

NAME = "libfp8rt.so.0"
KEEP, FP8 = 0, 1


class Fp8rtError(RuntimeError):
    """A call of the library failed; the message is the library's."""


class _PolicyDesc(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("struct_size", "flags", "kind", "reserved")]
    _fields_ += [(name, ctypes.c_char_p) for name in ("settings", "config", "packed_modules", "prefixes")]


class _PolicyDecision(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in (
        "struct_size", "action", "weight_recipe", "weight_scale_format", "activation_recipe", "activation_scale_format")]


class _PolicyInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in (
        "struct_size", "quantizes", "backends", "num_warnings", "first_layers", "last_layers")]
    _fields_ += [("num_hidden_layers", ctypes.c_int64)]


class _Fingerprint(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


def path() -> str:
    """FP8RT_LIBRARY, or the file that the package carries."""
    given = os.environ.get("FP8RT_LIBRARY")
    packed = pathlib.Path(__file__).parent / NAME
    if not given and not packed.exists():
        raise Fp8rtError(f"fp8rt_vllm has no {NAME} beside it, and FP8RT_LIBRARY does not name one")
    return given or str(packed)


@functools.cache
def library() -> ctypes.CDLL:
    """The library, with its ops registered in torch."""
    import torch

    torch.ops.load_library(path())
    loaded = ctypes.CDLL(path())
    for name in ("fp8rt_last_error", "fp8rt_build_info"):
        getattr(loaded, name).restype = ctypes.c_char_p
    check(loaded, loaded.fp8rt_torch_register())
    return loaded


def check(loaded: ctypes.CDLL, status: int) -> None:
    if status != 0:
        raise Fp8rtError(loaded.fp8rt_last_error().decode())


def build_info() -> str:
    return library().fp8rt_build_info().decode()


def _text(call) -> str:
    """What `call(text, capacity, length)` writes, whole."""
    loaded, length = library(), ctypes.c_uint64()
    check(loaded, call(None, ctypes.c_uint64(0), ctypes.byref(length)))
    text = ctypes.create_string_buffer(length.value + 1)
    check(loaded, call(text, ctypes.c_uint64(len(text)), None))
    return text.value.decode()


@dataclass(frozen=True)
class Decision:
    """What a policy says of a parameter or a module; recipes and formats are numbers of fp8rt.h."""

    fp8: bool
    weight_recipe: int
    weight_scale_format: int
    activation_recipe: int
    activation_scale_format: int
    reason: str


class Policy:
    """Which parameters are FP8. Every argument is JSON or None."""

    def __init__(self, settings: str, config: str | None = None, packed_modules: str | None = None,
                 prefixes: str | None = None):
        self._library, self._handle = library(), ctypes.c_void_p()
        texts = [None if text is None else text.encode() for text in (settings, config, packed_modules, prefixes)]
        desc = _PolicyDesc(ctypes.sizeof(_PolicyDesc), 0, 0, 0, *texts)
        check(self._library, self._library.fp8rt_policy_create(ctypes.byref(desc), ctypes.byref(self._handle)))

    def __del__(self):
        if getattr(self, "_handle", None):
            self._library.fp8rt_policy_destroy(self._handle)

    @property
    def info(self) -> dict[str, int]:
        info = _PolicyInfo(ctypes.sizeof(_PolicyInfo))
        check(self._library, self._library.fp8rt_policy_query(self._handle, ctypes.byref(info)))
        return {name: getattr(info, name) for name, _ in info._fields_[1:]}

    @property
    def warnings(self) -> list[str]:
        def warning(index: int) -> str:
            return _text(functools.partial(self._library.fp8rt_policy_warning, self._handle, ctypes.c_uint32(index)))
        return [warning(index) for index in range(self.info["num_warnings"])]

    def decide(self, name: str, shape: tuple[int, ...] = ()) -> Decision:
        extents = (ctypes.c_int64 * len(shape))(*shape)
        return self._decide(self._library.fp8rt_policy_decide, name, ctypes.c_uint32(len(shape)), extents)

    def decide_module(self, prefix: str) -> Decision:
        return self._decide(self._library.fp8rt_policy_decide_module, prefix)

    def _decide(self, function: Any, name: str, *more: Any) -> Decision:
        values = _PolicyDecision(ctypes.sizeof(_PolicyDecision))
        reason = _text(functools.partial(function, self._handle, name.encode(), *more, ctypes.byref(values)))
        return Decision(values.action == FP8, values.weight_recipe, values.weight_scale_format,
                        values.activation_recipe, values.activation_scale_format, reason)

    @property
    def text(self) -> str:
        """Canonical: equal for equal settings, on any machine."""
        return _text(functools.partial(self._library.fp8rt_policy_text, self._handle))

    @property
    def fingerprint(self) -> str:
        value = _Fingerprint()
        check(self._library, self._library.fp8rt_policy_fingerprint(self._handle, ctypes.byref(value)))
        return f"{value.high:016x}{value.low:016x}"

    def difference(self, other: str) -> str:
        """A line for each setting that another policy's text has otherwise; empty if none."""
        count = ctypes.c_uint32()
        return _text(functools.partial(self._library.fp8rt_policy_difference, self._handle, other.encode(),
                                       ctypes.byref(count)))
