"""Compile the native gate kernels once, and call them on tensors."""

import ctypes
import functools
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.ops.kernels.native import openmp
from foveal.ops.kernels.native.slots import COLUMNS, LANES, SLOTS, TILES

SUMS = {torch.float32: torch.float32, torch.float64: torch.float64, torch.bfloat16: torch.float32}
"""The dtypes of maps that the kernels take, and what their sums are computed in."""
_BITS = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "uint16"}
_Argument = ctypes.c_int64 * len(SLOTS)
_AS_DOUBLE, _AS_BITS = struct.Struct("d"), struct.Struct("q")
MAPS = {"x", "y", "dy", "dx", "shortcut", "seen"}
SAID_AFTER_S = 2.0
CACHED_BYTES = 2**20
"""Of a map, so many stay in the cache of a core between two passes."""


@functools.cache
def compiled(direction: str, dtype: torch.dtype) -> Any:
    """The kernel, from numba's cache on disk where it has been compiled before on this machine.

    Numba keeps it in ``NUMBA_CACHE_DIR``, beside the source, or in the person's cache directory, whichever can be
    written to. Of several processes one compiles, and the others read what it wrote.
    """
    from numba import cfunc, types

    if direction == "forward":
        from foveal.ops.kernels.native.forward import entry
    else:
        from foveal.ops.kernels.native.backward import entry
    sources = sorted(Path(__file__).parent.glob("*.py"))
    kernel = entry(zlib.crc32(b"".join(source.read_bytes() for source in sources)))
    signature = types.void(types.CPointer(getattr(types, _BITS[dtype])))
    with _alone(), _said_when_long():
        try:
            return cfunc(signature, cache=True, error_model="numpy")(kernel)
        except (EOFError, OSError, RuntimeError):  # no directory to write to, or what is there cannot be read
            return cfunc(signature, error_model="numpy")(kernel)


@contextmanager
def _alone() -> Iterator[None]:
    """While no other process of this machine compiles, where files can be locked."""
    try:
        from fcntl import LOCK_EX, flock
    except ImportError:  # Windows
        yield
        return
    with open(__file__, "rb") as source:
        with suppress(OSError):  # some network drives lock nothing
            flock(source, LOCK_EX)
        yield


@contextmanager
def _said_when_long() -> Iterator[None]:
    """A person at a terminal learns what takes so long."""
    text = "compiling kernels of gates for this processor, once: about 10 s each\n"
    timer = threading.Timer(SAID_AFTER_S, lambda: sys.stderr.isatty() and sys.stderr.write(text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Call:
    """A kernel with its argument, ready to run.

    Args:
        direction: ``"forward"`` or ``"backward"``.
        x: the map; its dtype, shape and layout are those of all maps.
        values: what the slots of the kernel's argument hold, by the names in ``slots``. A tensor stands for its
            address and must be contiguous or laid out as ``x``; None, or a tensor without values, is no address.
            ``seen``, the map that is squeezed, is ``x`` where it is not given.
    """

    def __init__(self, direction: str, x: Tensor, **values: Any) -> None:
        self.threads = openmp.threads_for(x.numel())
        values["team"] = team_for(x, self.threads)
        if self.threads > 1:
            values["barrier"], values["threads"], values["thread"] = openmp.addresses()
        sizes = _sizes(direction, x, values)
        values |= sizes
        self.kept = []
        """What must live as long as the argument holds its address; the maps are the caller's."""
        self.argument = _Argument()
        for name, value in values.items():
            slot, kind = SLOTS.get(name), type(value)
            if value is None or slot is None:
                continue
            if kind is float:
                (value,) = _AS_BITS.unpack(_AS_DOUBLE.pack(value))
            elif kind is not int and kind is not bool:
                if name not in MAPS:
                    self.kept.append(value)
                value = value.data_ptr()
            self.argument[slot] = value
        self._between = [value for name, value in sizes.items() if name not in MAPS]
        self.kernel, self.address = compiled(direction, x.dtype).address, ctypes.addressof(self.argument)

    @property
    def bytes_between(self) -> int:
        """Of memory for what lies between the steps."""
        return sum(one.nbytes for one in self._between if isinstance(one, Tensor))

    def run(self, **maps: Tensor) -> None:
        """Run the kernel; on other maps of the same sizes and layout where ``maps`` names them."""
        for name, value in maps.items():
            self.argument[SLOTS[name]] = value.data_ptr()
        openmp.run(self.kernel, self.address, self.threads)


def team_for(x: Tensor, threads: int) -> int:
    """How many of the threads share an image: as few as keep its parts in their caches."""
    image = x.nbytes // max(1, x.shape[0])
    teams = (size for size in range(1, threads + 1) if threads % size == 0)
    return next((size for size in teams if image <= size * CACHED_BYTES), threads)


def _sizes(direction: str, x: Tensor, values: dict[str, Any]) -> dict[str, Any]:
    """The slots that follow from the others: sizes, and room for what lies between the steps."""
    b, c, n = x.shape[0], x.shape[1], x.shape[2:].numel()
    last, kernel, sums = not x.is_contiguous(), values["kernel"], SUMS[x.dtype]
    found: dict[str, Any] = {"x": x, "images": b, "channels": c, "positions": n, "channels_last": last}
    seen = values.get("seen", x)
    widest = max(c, seen.shape[1])
    found |= {"seen": seen, "seen_channels": seen.shape[1], "seen_positions": seen.shape[2:].numel()}
    if values["w1"] is not None:
        found["width"] = len(values["w1"])
    backward = direction == "backward"
    if last or (backward and kernel is not None):
        tiles = max(TILES, -(-n // COLUMNS)) if backward else 2 * TILES
        found["partial"] = x.new_empty(b * tiles * widest, dtype=sums)
    if kernel is None:
        return found
    depth, height, breadth = [1] * (5 - x.ndim) + list(x.shape[2:])
    kernel_depth, kernel_height, kernel_breadth = [1] * (5 - x.ndim) + list(kernel.shape[2:])
    room = -(-breadth // LANES) * LANES
    padded = (depth + kernel_depth - 1) * (height + kernel_height - 1) * (room + kernel_breadth - 1)
    found |= {
        "depth": depth, "height": height, "breadth": breadth, "kernel_depth": kernel_depth,
        "kernel_height": kernel_height, "kernel_breadth": kernel_breadth,
        "norm": 0 if values["norm_scale"] is None else 2 if values["norm_mean"] is None else 1,
        "statistics": x.new_zeros(b * 2 * padded, dtype=sums),
        "room": x.new_empty(b * depth * height * room, dtype=sums),
        "spatial_gate": x.new_empty(b * n, dtype=sums),
    }  # fmt: skip
    if backward:
        found |= {
            "dlogits": x.new_empty(b * n, dtype=sums), "means": x.new_empty(b * n, dtype=sums),
            "dstatistics": x.new_empty(b * 2 * n, dtype=sums), "padded_dlogits": x.new_zeros(b * padded, dtype=sums),
            "flipped": kernel.flip(*range(2, kernel.ndim)),
        }  # fmt: skip
    return found
