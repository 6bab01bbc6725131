"""Time: medians of interleaved rounds, so that a machine that slows down half-way slows every candidate."""

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

import torch

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
    rest_s: float = 0.0,
) -> dict[str, Timing]:
    """Time several calls fairly: one sample of each in every round, in an order drawn anew each round.

    A sample repeats its call until it lasts ``minimum_ms``, so the clock's own cost does not show. Where CUDA
    is in use the device is waited for before and after each sample.

    Args:
        functions: name -> call without arguments.
        repeats: rounds, at least 1.
        minimum_ms: shortest sample, in milliseconds.
        warmup: calls of each function before the first round, at least 1.
        rest_s: seconds of rest before each sample, 0 or more. Threads of some runtimes go on waiting in a loop after a
            call (ONNX Runtime's for 60 ms), and take the cores of whatever is timed next.

    Returns:
        name -> :class:`Timing`, in the order given.

    Raises:
        ValueError: no functions, ``repeats`` or ``warmup`` below 1, or ``rest_s`` below 0.

    Example:
        >>> x = torch.randn(64, 64)
        >>> times = measure_time({"one": lambda: x @ x, "five": lambda: x @ x @ x @ x @ x @ x}, repeats=5)
        >>> {name: timing.repeats for name, timing in times.items()}
        {'one': 5, 'five': 5}
    """
    if not functions:
        raise FovealError("functions must name at least one call, got none")
    if repeats < 1 or warmup < 1:
        raise FovealError(f"repeats and warmup must be at least 1, got {repeats} and {warmup}")
    if rest_s < 0:
        raise FovealError(f"rest_s must be at least 0, got {rest_s}")
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
            sleep(rest_s)
            samples[name].append(_sample_ms(functions[name], calls[name]))
    timings = {}
    for name, values in samples.items():
        low, middle, high = statistics.quantiles(values, n=4) if repeats > 1 else values * 3
        timings[name] = Timing(middle, low, high, repeats, tuple(values))
    return timings


def _sample_ms(function: Callable[[], Any], calls: int) -> float:
    _synchronize()
    start = perf_counter()
    for _ in range(calls):
        function()
    _synchronize()
    return (perf_counter() - start) * 1000 / calls


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
