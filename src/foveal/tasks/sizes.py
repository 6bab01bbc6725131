"""The size of a data set's images, from some of them."""

from __future__ import annotations

import statistics
from typing import Any


def median_side(data: Any, sample: int, *, longer: bool) -> int:
    """The median of the longer (or shorter) side in pixels over ``sample`` images spread evenly over the data.

    Example:
        >>> from foveal.data import open_dataset
        >>> median_side(open_dataset("scenes", "val", length=8), 4, longer=True)
        32
    """
    pick = max if longer else min
    chosen = range(0, len(data), max(1, len(data) // sample))
    return int(statistics.median_low(pick(data[i]["image"].shape[-2:]) for i in chosen))
