"""What a finished run, an evaluation and predictions look like in a terminal or a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from foveal.train.inference import Evaluation, Prediction
from foveal.train.mask_evaluation import MaskEvaluation
from foveal.train.mask_prediction import MaskPrediction
from foveal.train.progress import metric_name
from foveal.train.run import RunResult
from foveal.train.windows import Inference

SHOWN = 5  # unreadable files or classes listed by name


def summary(result: RunResult) -> RenderableType:
    """The outcome of a run, the health of its blocks, where the files are, and what to type next."""
    best, seconds = result.best, sum(row["seconds"] for row in result.rows)
    name = metric_name(result.metric)
    parts: list[RenderableType] = [
        Text(
            f"\n{result.config.model} on {result.config.data}: {name} {100 * best[result.metric]:.1f} % "
            f"in epoch {best['epoch']} of {len(result.rows)}, {seconds:.0f} s"
        )
    ]
    if result.skipped:
        shown = "; ".join(list(result.skipped)[:SHOWN])
        more = f"; and {len(result.skipped) - SHOWN} more" if len(result.skipped) > SHOWN else ""
        parts.append(Text(f"{len(result.skipped)} files could not be read and were left out: {shown}{more}"))
    if result.health:
        parts.append(health_table(result.health))
    parts += [
        Text(f"best weights  {result.weights}"),
        Text(f"curves        {result.folder / 'curves.png'}"),
        Text(f"figures       {result.folder / 'metrics.csv'}"),
        Text(f"next          foveal eval --weights {result.weights}"),
        Text(f"              foveal predict PHOTO --weights {result.weights}"),
    ]
    return Group(*parts)


def health_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row for each attention block; see `foveal.train.health.health` for the columns."""
    table = Table(title="attention blocks", title_justify="left")
    for column in (
        "site",
        "block",
        "changes its input by",
        "scale",
        "gate mean",
        "spread",
        "between images",
        "",
    ):
        table.add_column(column, justify="left" if column in ("site", "block", "") else "right")
    for row in rows:
        figures = [row[k] for k in ("scale", "gate_mean", "gate_spread", "gate_image_spread")]
        table.add_row(
            row["site"],
            row["block"],
            f"{100 * row['contribution']:.1f} %",
            *("" if figure is None else f"{figure:.3f}" for figure in figures),
            row["verdict"],
        )
    return table


def _figures_of(result: Evaluation | MaskEvaluation) -> Table:
    """An empty table under the data's name, for figures and their values."""
    table = Table(title=f"{result.data}, split {result.split}, {result.images} images", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    return table


def evaluation_table(result: Evaluation) -> RenderableType:
    """Accuracy with its interval, and the classes with the lowest accuracy."""
    low, high = result.interval
    table = _figures_of(result)
    table.add_row("accuracy", f"{100 * result.accuracy:.2f} %")
    table.add_row("95 % interval (of the images drawn)", f"{100 * low:.2f} to {100 * high:.2f} %")
    table.add_row("right among the best 5", f"{100 * result.top5:.2f} %")
    table.add_row("loss", f"{result.loss:.4f}")
    hardest = sorted(result.per_class.items(), key=lambda item: item[1])[:SHOWN]
    for name, share in hardest:
        table.add_row(f"class {name}", f"{100 * share:.1f} %")
    if not result.skipped:
        return table
    return Group(table, Text(f"{len(result.skipped)} files could not be read and were left out"))


def mask_evaluation_table(result: MaskEvaluation) -> RenderableType:
    """mIoU with its interval and how it was measured, and the IoU of every class."""
    low, high = result.interval
    table = _figures_of(result)
    table.add_row("mIoU, one confusion matrix of all pixels", f"{100 * result.miou:.2f} %")
    table.add_row(f"95 % interval ({result.interval_of})", f"{100 * low:.2f} to {100 * high:.2f} %")
    table.add_row("pixel accuracy", f"{100 * result.pixel_accuracy:.2f} %")
    table.add_row("loss", f"{result.loss:.4f}")
    for name, value in result.iou.items():
        table.add_row(f"IoU of {name}", "absent" if value is None else f"{100 * value:.1f} %")
    notes = [
        Text(f"inference {Inference(**result.inference)}"),
        Text(
            f"images with a shorter side of {result.image_size} pixels, scored over their masks' own pixels"
        ),
    ]
    if result.skipped:
        notes.append(Text(f"{len(result.skipped)} files could not be read and were left out"))
    return Group(table, *notes)


def predicted_masks_text(found: Sequence[MaskPrediction], folder: Path, format: str) -> Text:
    """How many files were segmented and in which way, and where their pictures are."""
    used = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
    return Text(
        f"{len(found)} file{'s' * (len(found) != 1)} segmented, with a shorter side of {used['image_size']} pixels\n"
        f"inference {Inference(**used['inference'])}\n"
        f"class numbers  {folder}/masks\n"
        f"colours        {folder}/colours, explained in {folder}/legend.png and classes.json\n"
        f"overlays       {folder}/overlays\n"
        f"shares         {folder}/shares.{format}"
    )


def predictions_text(found: Sequence[Prediction], unreadable: dict[str, str], format: str) -> str:
    """CSV with the columns file, label, probability, label_2, probability_2, ...; or JSON with the same.

    Example:
        >>> print(predictions_text([Prediction("a.png", ["cat", "dog"], [0.75, 0.25])], {}, "csv"), end="")
        file,label,probability,label_2,probability_2
        a.png,cat,0.75,dog,0.25
    """
    if format == "json":
        listed = [{"file": file, "reason": reason} for file, reason in unreadable.items()]
        document = {"predictions": [asdict(one) for one in found], "unreadable": listed}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ranks = range(1, 1 + max((len(one.labels) for one in found), default=1))
    writer.writerow(
        ["file", *(f"{n}{'' if k == 1 else f'_{k}'}" for k in ranks for n in ("label", "probability"))]
    )
    for one in found:
        pairs = zip(one.labels, one.probabilities, strict=True)
        writer.writerow([one.file, *(value for label, p in pairs for value in (label, f"{p:.6g}"))])
    return text.getvalue()
