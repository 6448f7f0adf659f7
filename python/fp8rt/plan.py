"""The library's refit plan over torch tensors: a whole model's parameters, and boxes of sources that fill them."""

import ctypes
import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from . import abi, library

# Rows and columns of a block of a weight.
BLOCK = 128
# What the name of scales adds to that of their codes.
SCALE_SUFFIX = "_scale_inv"
DTYPES = {torch.bfloat16: abi.BF16, torch.float16: abi.F16, torch.float32: abi.F32, torch.float8_e4m3fn: abi.E4M3}


def tensor(value: torch.Tensor | None) -> abi.Tensor:
    """A view for the library. None: no memory."""
    if value is None:
        return abi.Tensor()
    value = value.detach()
    pad = [0] * (3 - value.dim())
    reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
    return abi.Tensor(
        data=value.data_ptr(),
        bytes=reach * value.element_size() if value.numel() else 0,
        dtype=DTYPES[value.dtype],
        device=-1 if value.device.type == "cpu" else value.device.index or 0,
        rank=value.dim(),
        shape=(ctypes.c_int64 * 3)(*value.shape, *pad),
        stride=(ctypes.c_int64 * 3)(*value.stride(), *pad),
    )


def stream(device: torch.device) -> ctypes.c_void_p:
    """Torch's current stream; none on the host."""
    return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None)


@functools.cache
def context(device: torch.device) -> ctypes.c_void_p:
    """One context a device, for the life of the process."""
    desc = abi.ContextDesc(device=-1 if device.type == "cpu" else device.index or 0)
    handle = ctypes.c_void_p()
    library.call("fp8rt_context_create", ctypes.byref(desc), ctypes.byref(handle))
    return handle


@dataclass(frozen=True)
class Destination:
    """A parameter. `scales` None: it is kept as the trainer has it."""

    name: str
    codes: torch.Tensor
    scales: torch.Tensor | None = None
    parts: tuple[int, ...] = ()
    recipe: int = 0
    scale_format: int = 0
    # Its regions need not fill all of it.
    partly: bool = False


@dataclass(frozen=True)
class Box:
    """A box of a source that fills one of a destination; experts, rows and columns."""

    source: str
    destination: int
    source_first: tuple[int, int, int]
    extent: tuple[int, int, int]
    destination_first: tuple[int, int, int]


@dataclass(frozen=True)
class Receipt:
    """What a refit did."""

    destinations_filled: int
    num_destinations: int
    blocks_filled: int
    blocks_total: int
    items: int
    regions_written: int
    bytes_read: int
    bytes_written: int


class RefitPlan:
    """Keeps the destinations alive. One thread at a time."""

    def __init__(self, device: torch.device, destinations: list[Destination], boxes: list[Box]):
        self.device, self.destinations = device, destinations
        self._handle = None
        parts = [(ctypes.c_int64 * len(d.parts))(*d.parts) for d in destinations]
        described = (abi.RefitDestination * len(destinations))(
            *(
                abi.RefitDestination(
                    name=d.name.encode(),
                    codes=tensor(d.codes),
                    scales=tensor(d.scales),
                    part_rows=ctypes.cast(rows, ctypes.POINTER(ctypes.c_int64)) if d.parts else None,
                    num_parts=len(d.parts),
                    flags=abi.DESTINATION_PARTLY if d.partly else 0,
                    recipe=d.recipe,
                    scale_format=d.scale_format,
                )
                for d, rows in zip(destinations, parts, strict=True)
            )
        )
        regions = (abi.RefitRegion * len(boxes))(
            *(
                abi.RefitRegion(
                    source=b.source.encode(),
                    destination=b.destination,
                    source_first=b.source_first,
                    extent=b.extent,
                    destination_first=b.destination_first,
                )
                for b in boxes
            )
        )
        desc = abi.RefitDesc(
            num_destinations=len(destinations), num_regions=len(boxes), destinations=described, regions=regions
        )
        handle = ctypes.c_void_p()
        library.call("fp8rt_refit_create", context(device), ctypes.byref(desc), ctypes.byref(handle))
        self._handle = handle
        # Still there when the process ends and that module is not.
        self._destroy = library.load().fp8rt_refit_destroy

    def __del__(self):
        if getattr(self, "_handle", None):
            self._destroy(self._handle)
            self._handle = None

    def begin(self) -> None:
        """Nothing counts as filled."""
        library.call("fp8rt_refit_begin", self._handle)

    def run(self, items: Iterable[tuple[str, torch.Tensor, torch.Tensor | None]]) -> None:
        """Enqueues names, values or codes, and scales on torch's current stream."""
        items = list(items)
        described = (abi.RefitItem * len(items))(
            *(
                abi.RefitItem(name=name.encode(), weight=tensor(weight), scales=tensor(scales))
                for name, weight, scales in items
            )
        )
        library.call(
            "fp8rt_refit_run",
            self._handle,
            described,
            ctypes.c_uint32(len(items)),
            None,
            ctypes.c_uint64(0),
            None,
            None,
            stream(self.device),
        )

    def finish(self, partial: bool = False) -> Receipt:
        """Raises, naming what is missing, unless every block is filled."""
        receipt = abi.RefitReceipt()
        flags = ctypes.c_uint32(abi.REFIT_PARTIAL if partial else 0)
        library.call("fp8rt_refit_finish", self._handle, flags, ctypes.byref(receipt))
        return Receipt(**{name: getattr(receipt, name) for name in Receipt.__dataclass_fields__})

    def query(self) -> abi.RefitInfo:
        """What the plan is, and where it stands."""
        info = abi.RefitInfo()
        library.call("fp8rt_refit_query", self._handle, ctypes.byref(info))
        return info

    def missing(self) -> str:
        """JSON of what is not filled."""
        return library.text("fp8rt_refit_missing", self._handle)

    def fingerprints(self) -> dict[str, str]:
        """Of what the destinations hold, for each source. Waits for the stream."""
        count = self.query().num_sources
        sums = torch.zeros(max(count, 1), 4, dtype=torch.int64, device=self.device)
        address = ctypes.c_void_p(sums.data_ptr())
        library.call("fp8rt_refit_fingerprint", self._handle, address, stream(self.device))
        values = (abi.Fingerprint * count)()
        library.call(
            "fp8rt_refit_fingerprint_read",
            self._handle,
            address,
            ctypes.c_uint32(count),
            values,
            None,
            stream(self.device),
        )
        names = [library.text("fp8rt_refit_source_name", self._handle, ctypes.c_uint32(i)) for i in range(count)]
        return {name: value.hex() for name, value in zip(names, values, strict=True)}
