"""What a network costs: time, peak memory, multiply-accumulates, parameters; every figure states what it counts."""

from foveal.measure.macs import count_macs, count_parameters, uncounted_operators
from foveal.measure.memory import peak_bytes
from foveal.measure.timing import Timing, measure_time

__all__ = [
    "Timing",
    "count_macs",
    "count_parameters",
    "measure_time",
    "peak_bytes",
    "uncounted_operators",
]
