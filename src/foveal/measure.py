"""What a network costs: time, peak memory, multiply-accumulates, parameters.

Every figure here states what it counts. Times are medians of interleaved rounds, so that a machine that slows
down half-way slows every candidate; memory is read at the allocator; multiply-accumulates come from the
operations that really ran, not from a table of layer types.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from foveal.errors import FovealError


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median over rounds, the quartiles around it, and the sample of each round."""

    time_ms: float
    low_ms: float
    high_ms: float
    repeats: int
    samples_ms: tuple[float, ...] = field(default=(), repr=False)

    def over(self, other: "Timing") -> float:
        """How many times as long as ``other`` of the same rounds this takes.

        The median of one ratio a round: a machine that is slow for some rounds is slow for both calls in them.

        Example:
            >>> Timing(2.0, 2.0, 3.0, 3, (2.0, 2.0, 9.0)).over(Timing(1.0, 1.0, 4.0, 3, (1.0, 1.0, 4.5)))
            2.0
        """
        return statistics.median(a / b for a, b in zip(self.samples_ms, other.samples_ms, strict=True))

    def minus(self, other: "Timing") -> float:
        """Milliseconds longer than ``other`` of the same rounds: the median of one difference a round."""
        return statistics.median(a - b for a, b in zip(self.samples_ms, other.samples_ms, strict=True))


def measure_time(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 30,
    minimum_ms: float = 2.0,
    warmup: int = 3,
) -> dict[str, Timing]:
    """Time several calls fairly: one sample of each in every round, in an order drawn anew each round.

    A sample repeats its call until it lasts ``minimum_ms``, so the clock's own cost does not show. Where CUDA
    is in use the device is waited for before and after each sample.

    Args:
        functions: name -> call without arguments.
        repeats: rounds, at least 1.
        minimum_ms: shortest sample, in milliseconds.
        warmup: calls of each function before the first round, at least 1.

    Returns:
        name -> :class:`Timing`, in the order given.

    Raises:
        ValueError: no functions, or ``repeats`` or ``warmup`` below 1.

    Example:
        >>> x = torch.randn(64, 64)
        >>> times = measure_time({"one": lambda: x @ x, "five": lambda: x @ x @ x @ x @ x @ x}, repeats=5)
        >>> times["one"].time_ms < times["five"].time_ms
        True
    """
    if not functions:
        raise FovealError("functions must name at least one call, got none")
    if repeats < 1 or warmup < 1:
        raise FovealError(f"repeats and warmup must be at least 1, got {repeats} and {warmup}")
    calls: dict[str, int] = {}
    for name, function in functions.items():
        for _ in range(warmup):
            function()
        calls[name] = 1
        while _sample_ms(function, calls[name]) * calls[name] < minimum_ms:
            calls[name] *= 2
    samples: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    shuffle = random.Random(0).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            samples[name].append(_sample_ms(functions[name], calls[name]))
    timings = {}
    for name, values in samples.items():
        low, middle, high = statistics.quantiles(values, n=4) if repeats > 1 else values * 3
        timings[name] = Timing(middle, low, high, repeats, tuple(values))
    return timings


def _sample_ms(function: Callable[[], Any], calls: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronize()
    return (time.perf_counter() - start) * 1000 / calls


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


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


def _elementwise_products(left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    # FlopCounterMode counts two operations to a multiply-accumulate
    return 2 * torch.Size(out_shape).numel()


def _attention_products(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # (b, heads, n, d), (b, heads, m, d), (b, heads, m, e); the CPU's kernel is one that FlopCounterMode leaves out
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


def count_macs(net: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass, counted from the operations that run.

    Counted: convolutions and matrix products (those of attention included, whatever form they take) by
    ``torch.utils.flop_counter``, and the elementwise products it leaves out (a gate times its feature map).
    Not counted, since they multiply nothing or can be folded away: additions, pooling, normalisation,
    activations, softmax. A low count does not mean fast: what is not counted can take most of the time.

    Args:
        net: left in the mode it is in afterwards; counted in eval mode.
        example: (b, c, *spatial) input on the network's device; the count is for the whole batch.

    Returns:
        Multiply-accumulates (a fused multiply-add is 1, not 2).

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 32, 32)) == 3 * 8 * 9 * 32 * 32
        True
    """
    formulas = {
        torch.ops.aten.mul: _elementwise_products,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_products,
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    modes = [(module, module.training) for module in net.modules()]
    # the fused path of nn.MultiheadAttention is one opaque operation that would count as nothing
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    net.eval()
    try:
        with torch.no_grad(), counter:
            net(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
    return counter.get_total_flops() // 2


def count_parameters(net: nn.Module) -> int:
    """Number of values in the network's parameters, shared ones counted once; buffers are not parameters.

    Example:
        >>> count_parameters(nn.Conv2d(3, 8, 3, bias=True))
        224
    """
    return sum(parameter.numel() for parameter in net.parameters())
