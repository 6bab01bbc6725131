"""The evaluation of a classifier, for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from foveal.tasks.tables import figures_table, with_notes
from foveal.terminal import plain

SHOWN_CLASSES = 10


def evaluation_table(evaluation: Any, views: str = "") -> RenderableType:
    """Accuracy with its interval, and every class, or the ten with the lowest accuracy and a word on the others.

    Args:
        views: what of each item is averaged, for clips.
    """
    low, high = evaluation.interval
    figures = evaluation.figures
    table = figures_table(evaluation)
    table.add_row("accuracy", f"{100 * figures['accuracy']:.2f} %")
    table.add_row(
        f"95 % interval (of the {evaluation.items} drawn)", f"{100 * low:.2f} to {100 * high:.2f} %"
    )
    table.add_row("right among the best 5", f"{100 * figures['top5']:.2f} %")
    if views:
        table.add_row("views of each, averaged", views)
    elif evaluation.inference.flip:
        table.add_row("of each image and its mirror image", "averaged")
    if macro := evaluation.details.get("macro"):
        table.add_row("F1, mean of the classes", f"{100 * macro['f1']:.2f} %")
        error = evaluation.details["calibration"]["expected_error"]
        table.add_row("confidence is off accuracy by", f"{100 * error:.2f} points")
    table.add_row("loss", f"{figures['loss']:.4f}")
    hardest = sorted(evaluation.per_class.items(), key=lambda item: item[1])
    for name, share in hardest[:SHOWN_CLASSES]:
        table.add_row(plain(f"class {name}"), f"{100 * share:.1f} %")
    notes = []
    if len(hardest) > SHOWN_CLASSES:
        notes.append(
            f"the {SHOWN_CLASSES} classes with the lowest accuracy of {len(hardest)}; --out FILE.json and "
            "--html FILE.html have all"
        )
    return with_notes(table, notes, evaluation)
