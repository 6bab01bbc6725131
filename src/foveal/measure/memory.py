"""Peak memory, read at the allocator."""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from foveal.errors import FovealError


def peak_bytes(function: Callable[[], Any], *, device: torch.device | str = "cpu") -> int:
    """The most memory a call holds at one time, in bytes, beyond what was held before it.

    On CUDA this is ``torch.cuda.max_memory_allocated``. On the CPU it is the highest running sum of every
    allocation and release PyTorch's allocator reports while the call runs, exact to the byte; memory that
    other libraries take for themselves (a convolution library's scratch space) is not in it. The result of
    the call counts. Call the function once beforehand where its first run caches something.

    Args:
        function: call without arguments.
        device: where the call allocates.

    Returns:
        Bytes, 0 or more.

    Example:
        >>> peak_bytes(lambda: torch.ones(1000).neg().abs())  # two of 4000 bytes at a time
        8000
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise FovealError(f"device must be cpu or cuda, got {device}")
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with _without_profiler_messages():
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                result = function()
            profile.export_chrome_trace(str(trace))
        del result
        events = json.loads(trace.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    held = peak = 0
    for change in changes:
        held += change["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextmanager
def _without_profiler_messages() -> Iterator[None]:
    """Silence file descriptor 2: PyTorch's profiler writes its own start and stop there, and takes no no."""
    sys.stderr.flush()
    saved = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
