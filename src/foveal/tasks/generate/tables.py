"""The evaluation of a generator, for a terminal and for a page: each distance between its floor and its ceiling."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from foveal.tasks.tables import figures_table, with_notes
from foveal.terminal import escape, plain

DISTANCES = ("frechet", "kernel")


def rows(evaluation: Any) -> list[list[str]]:
    """Figure, value, floor and ceiling; figures other than distances have neither."""
    details = evaluation.details
    bounds = [details["floor"], details["ceiling"]]
    found = [
        [name, f"{value:.4g}", *(f"{bound[name]:.4g}" if name in DISTANCES else "" for bound in bounds)]
        for name, value in evaluation.figures.items()
    ]
    if "fid" in details:
        found.insert(0, ["FID", f"{details['fid']:.4g}", *(f"{bound['frechet']:.4g}" for bound in bounds)])
    return [*found, *([name, f"{details[name]:.4g}", "", ""] for name in ("precision", "recall"))]


def notes(evaluation: Any) -> list[str]:
    """In whose features, over how many images, and what floor and ceiling are."""
    details = evaluation.details
    return [
        f"features: {details['features']}",
        f"{details['images']:,} real and as many generated images",
        f"floor: between {details['floor']['between']}, {details['floor']['images']:,} of each",
        f"ceiling: of {details['ceiling']['images']:,} images of an untrained generator",
    ]


def evaluation_table(evaluation: Any) -> RenderableType:
    """Every figure with its floor and ceiling; below, the name of the features and the numbers of images."""
    table = figures_table(evaluation)
    for name in ("floor", "ceiling"):
        table.add_column(name, justify="right")
    for row in rows(evaluation):
        table.add_row(*map(plain, row))
    return with_notes(table, notes(evaluation), evaluation)


def sections(evaluation: Any, predictor: Any) -> list[tuple[str, str]]:
    """Titles and HTML of the page of an evaluation."""

    from foveal.tasks.html import picture, table

    bounded = [row for row in rows(evaluation) if row[0] not in evaluation.figures or row[0] in DISTANCES]
    said = "".join(f"<p>{escape(note)}</p>" for note in notes(evaluation))
    grid = predictor.task.sample_picture(predictor.net, predictor.info)
    return [
        ("Floor and ceiling", table(["figure", "value", "floor", "ceiling"], bounded) + said),
        ("Images of seed 0", f'<div class="pictures wide">{picture(grid, "")}</div>'),
    ]
