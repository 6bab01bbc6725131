"""The evaluation of a detector, for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from foveal.tasks.tables import figures_table, with_notes
from foveal.terminal import plain

NAMES = {
    "ap": "AP, mean over IoU 0.50 to 0.95",
    "ap50": "AP at IoU 0.50",
    "ap75": "AP at IoU 0.75",
    "ap_small": "AP of small objects, below 32 x 32 pixels",
    "ap_medium": "AP of medium objects, below 96 x 96 pixels",
    "ap_large": "AP of large objects",
    "ar": "recall, mean over IoU 0.50 to 0.95",
}


def evaluation_table(evaluation: Any) -> RenderableType:
    """COCO's figures with the interval of AP, by size and by class."""
    low, high = evaluation.interval
    figures = evaluation.figures
    table = figures_table(evaluation)
    for name, text in NAMES.items():
        if name in figures:
            table.add_row(text, f"{100 * figures[name]:.1f} %")
        if name == "ap":
            table.add_row(
                f"95 % interval ({evaluation.interval_of})", f"{100 * low:.1f} to {100 * high:.1f} %"
            )
    table.add_row("loss an image", f"{figures['loss']:.4f}")
    for name, value in evaluation.per_class.items():
        table.add_row(plain(f"AP of {name}"), "absent" if value is None else f"{100 * value:.1f} %")
    notes = [
        str(evaluation.inference),
        f"images with a shorter side of {evaluation.image_size} pixels, one size at a time and so never padded; boxes "
        "are scored in the pixels of the stored images",
    ]
    return with_notes(table, notes, evaluation)
