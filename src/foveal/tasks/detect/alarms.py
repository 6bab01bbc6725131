"""What stands still while a detector trains, in a line, from the figures of its epochs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALIKE = 0.01
"""Share of the image by which the boxes of different queries differ at least, once a network tells them apart."""
PATIENCE_STEPS = 300
"""Optimiser steps before a network is expected to find anything: an epoch may be one step or thousands."""
OVERFIT_PASSED = 0.9
RISING = 1.5


def remarks(rows: Sequence[Mapping[str, Any]], config: Any) -> list[str]:
    """What a person should be told after the last of these epochs; most often nothing.

    Args:
        rows: of metrics.csv so far.
    """
    told = []
    if _waited_enough(rows) and (alarm := _alarm(rows[-1], rows[0])):
        told.append(alarm)
    if len(rows) == config.epochs and config.options.overfit:
        told.append(overfit_verdict(rows))
    return told


def _waited_enough(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last row is the first of at least two that stands behind `PATIENCE_STEPS` steps.

    Example:
        >>> [_waited_enough([{"step": step} for step in steps]) for steps in ([1, 2, 3], [200, 300], [200, 300, 400])]
        [False, True, False]
    """
    late = [row for row in rows[1:] if row["step"] >= PATIENCE_STEPS]
    return len(late) == 1 and late[0] is rows[-1]


def _alarm(last: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Why AP is still 0.

    Example:
        >>> row = {"val_ap50": 0.0, "val_query_spread": 0.2, "val_found_probability": 0.1}
        >>> _alarm(row, row)[:63]
        "AP50 is still 0, and the score of the objects' classes does not"
    """
    if last["val_query_spread"] < ALIKE:
        return (
            f"all queries say nearly the same box (they differ by {last['val_query_spread']:.1%} of the image): a "
            "lower lr, a longer warm-up, or --recipe small with anchors or selected queries"
        )
    if last["val_ap50"] > 0.005:
        return ""
    before, now = first["val_found_probability"], last["val_found_probability"]
    if now > RISING * before and now > 0.05:
        return (
            f"AP50 is still 0, but the score of the objects' classes rises ({before:.2f} to {now:.2f}): classes are "
            "being learned and boxes are not yet; train on"
        )
    return (
        f"AP50 is still 0, and the score of the objects' classes does not rise ({before:.2f} to {now:.2f}): nothing is "
        "being learned; check lr, and the data by foveal check and --overfit 4"
    )


def overfit_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether the few images were learned, and if not, what stands still."""
    first, last = rows[0], rows[-1]
    ap50 = max(row["val_ap50"] for row in rows)
    if ap50 >= OVERFIT_PASSED:
        return f"overfit: passed, AP50 {ap50:.1%} on the images of the training itself"
    parts = [name for name in last if name.startswith("train_") and name != "train_loss" and name in first]
    still = [name.removeprefix("train_") for name in parts if last[name] > 0.8 * first[name]]
    told = (
        f"; these parts of the loss stand still: {', '.join(still)}"
        if still
        else "; all parts of the loss still fall"
    )
    return (
        f"overfit: not passed, AP50 {ap50:.1%} where {OVERFIT_PASSED:.0%} is to be expected{told}; more epochs, "
        "another lr, or wrong boxes (foveal check)"
    )
