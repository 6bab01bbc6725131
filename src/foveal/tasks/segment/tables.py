"""The evaluation of a segmentation network, for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from foveal.tasks.tables import figures_table, with_notes
from foveal.terminal import plain


def evaluation_table(evaluation: Any) -> RenderableType:
    """mIoU with its interval and how it was measured, and the IoU of every class."""
    low, high = evaluation.interval
    figures = evaluation.figures
    table = figures_table(evaluation)
    table.add_row("mIoU, one confusion matrix of all pixels", f"{100 * figures['miou']:.2f} %")
    table.add_row(f"95 % interval ({evaluation.interval_of})", f"{100 * low:.2f} to {100 * high:.2f} %")
    table.add_row("pixel accuracy", f"{100 * figures['pixel_accuracy']:.2f} %")
    table.add_row("loss", f"{figures['loss']:.4f}")
    for name, value in evaluation.per_class.items():
        table.add_row(plain(f"IoU of {name}"), "absent" if value is None else f"{100 * value:.1f} %")
    notes = [
        f"inference {evaluation.inference}",
        f"images with a shorter side of {evaluation.image_size} pixels, scored over their masks' own pixels",
    ]
    return with_notes(table, notes, evaluation)
