"""The shared library: where it is, how its errors are raised, and the policy. No torch, no vllm."""

import ctypes
import functools
import json
import os
import pathlib
from dataclasses import dataclass

from . import abi

LIBRARY = "libfp8rt.so.0"
KINDS = {"auto": 0, "nemo_rl": 1, "hugging_face": 2, "verl": 3, "fp8rt": 4}


class Fp8rtError(RuntimeError):
    """A call of the library that failed, with the library's own message."""


def path() -> str:
    """FP8RT_LIBRARY where it is set, else the file that the wheel carries."""
    return os.environ.get("FP8RT_LIBRARY") or str(pathlib.Path(__file__).with_name(LIBRARY))


@functools.cache
def load() -> ctypes.CDLL:
    """The library, opened once a process."""
    library = ctypes.CDLL(path())
    for name in ("fp8rt_build_info", "fp8rt_last_error", "fp8rt_status_name"):
        getattr(library, name).restype = ctypes.c_char_p
    if library.fp8rt_abi_version() != 0:
        raise Fp8rtError(f"{path()} has version {library.fp8rt_abi_version()} of the interface, the plugin needs 0")
    return library


def file() -> str:
    """Where the library that is loaded lies, also if it was found by its bare name."""
    address = ctypes.cast(load().fp8rt_abi_version, ctypes.c_void_p).value
    for line in pathlib.Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return name
    raise Fp8rtError(f"{path()} is in no file of this process")


@functools.cache
def register_ops() -> None:
    """Registers torch.ops.fp8rt. Torch is in the process."""
    call("fp8rt_torch_register")


def build_info() -> str:
    """Version, kernels and compilers of the library that is loaded."""
    return load().fp8rt_build_info().decode()


def call(name: str, *arguments) -> None:
    """Calls a function that returns a status; raises what it says."""
    status = getattr(load(), name)(*arguments)
    if status:
        kind = load().fp8rt_status_name(status).decode()
        raise Fp8rtError(f"{kind}: {load().fp8rt_last_error().decode()}")


def text(name: str, *arguments) -> str:
    """The text of a function that ends in (text, capacity, length)."""
    capacity = 4096
    while True:
        buffer, length = ctypes.create_string_buffer(capacity), ctypes.c_uint64()
        call(name, *arguments, buffer, ctypes.c_uint64(capacity), ctypes.byref(length))
        if length.value < capacity:
            return buffer.value.decode()
        capacity = length.value + 1


@dataclass(frozen=True)
class Decision:
    """What a policy decides: numbers are those of fp8rt.h, all 0 where a module is kept."""

    fp8: bool
    weight_recipe: int
    weight_scale_format: int
    activation_recipe: int
    activation_scale_format: int
    reason: str


class Policy:
    """Settings, resolved by the library. May be pickled: the other process resolves them again."""

    def __init__(
        self,
        settings: dict | None,
        config: dict | None = None,
        packed_modules: dict | None = None,
        prefixes: dict | None = None,
        kind: str = "auto",
    ):
        self._arguments = (settings, config, packed_modules, prefixes, kind)
        self._packed = {}
        texts = [None if part is None else json.dumps(part).encode() for part in self._arguments[:4]]
        desc = abi.PolicyDesc(
            kind=KINDS[kind], settings=texts[0], config=texts[1], packed_modules=texts[2], prefixes=texts[3]
        )
        handle = ctypes.c_void_p()
        self._handle = None
        call("fp8rt_policy_create", ctypes.byref(desc), ctypes.byref(handle))
        self._handle = handle
        # Still there when the process ends and this module is not.
        self._destroy = load().fp8rt_policy_destroy
        self._info = abi.PolicyInfo()
        call("fp8rt_policy_query", handle, ctypes.byref(self._info))

    def __del__(self):
        if getattr(self, "_handle", None):
            self._destroy(self._handle)
            self._handle = None

    def __reduce__(self):
        return type(self), self._arguments

    @property
    def quantizes(self) -> bool:
        """False: nothing is quantized, whatever its name."""
        return bool(self._info.quantizes)

    @property
    def backends(self) -> int:
        """Bits of the backends that a linear may use; 0: all."""
        return self._info.backends

    @property
    def warnings(self) -> list[str]:
        """What the settings gave rise to."""
        return [text("fp8rt_policy_warning", self._handle, index) for index in range(self._info.num_warnings)]

    @property
    def text(self) -> str:
        """Canonical: equal for equal settings on every machine."""
        return text("fp8rt_policy_text", self._handle)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the canonical text."""
        value = abi.Fingerprint()
        call("fp8rt_policy_fingerprint", self._handle, ctypes.byref(value))
        return value.hex()

    def difference(self, other: str) -> list[str]:
        """A line for each setting in which the canonical text of another policy differs."""
        count = ctypes.c_uint32()
        lines = text("fp8rt_policy_difference", self._handle, other.encode(), ctypes.byref(count))
        return lines.splitlines()

    def decide(self, name: str, shape: tuple[int, ...] = ()) -> Decision:
        """For a parameter of the checkpoint."""
        extents = (ctypes.c_int64 * len(shape))(*shape)
        return self._decide("fp8rt_policy_decide", name, ctypes.c_uint32(len(shape)), extents)

    def decide_module(self, prefix: str, packed_modules_mapping: dict | None = None) -> Decision:
        """For a module of the engine, which fuses as the mapping says (None or empty: as this policy was told)."""
        if not packed_modules_mapping:
            return self._decide("fp8rt_policy_decide_module", prefix)
        key = json.dumps(packed_modules_mapping, sort_keys=True)
        if key not in self._packed:
            settings, config, _, prefixes, kind = self._arguments
            self._packed[key] = Policy(settings, config, packed_modules_mapping, prefixes, kind)
        return self._packed[key].decide_module(prefix)

    def _decide(self, function: str, name: str, *shape) -> Decision:
        decision = abi.PolicyDecision()
        reason = text(function, self._handle, name.encode(), *shape, ctypes.byref(decision))
        return Decision(
            decision.action == 1,
            decision.weight_recipe,
            decision.weight_scale_format,
            decision.activation_recipe,
            decision.activation_scale_format,
            reason,
        )
