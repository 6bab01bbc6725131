"""An evaluation as one HTML file: figures, classes, what the task adds, and the images it gets most wrong."""

from __future__ import annotations

from pathlib import Path

from foveal.evaluate import Evaluation
from foveal.files import write_text
from foveal.inference import Predictor
from foveal.tasks.html import page, table
from foveal.terminal import escape
from foveal.train.progress import metric_name

SHOWN_SKIPPED = 50


def write_page(path: Path, evaluation: Evaluation, predictor: Predictor) -> None:
    """Write the page. It opens from the disk and asks no network.

    Args:
        path: the file.
        evaluation: of `foveal.evaluate.evaluate`.
        predictor: what was evaluated; it answers again for the images that the page shows.
    """
    make = getattr(predictor.task, "page_sections", None)
    own = make(evaluation, predictor) if make else [("Classes", _classes(evaluation))]
    share = predictor.task.is_share
    sections = [("", _figures(evaluation, share)), *own]
    if evaluation.skipped:
        sections.append(("Left out", _skipped(evaluation)))
    body = "\n".join((f"<h2>{escape(title)}</h2>" if title else "") + html for title, html in sections)
    title = f"{Path(evaluation.weights).name} on {evaluation.data}, split {evaluation.split}"
    headline = f"{metric_name(evaluation.metric)} {_value(evaluation, evaluation.metric, share)}"
    write_text(path, page(title, headline, body))


def _value(evaluation: Evaluation, name: str, share: bool) -> str:
    """A figure; as per cent where those of the task are shares."""
    value = evaluation.figures[name]
    if not share:
        return f"{value:.4g}"
    return f"{value:.4f}" if name == "loss" or not 0 <= value <= 1 else f"{100 * value:.2f} %"


def _figures(evaluation: Evaluation, share: bool) -> str:
    low, high = evaluation.interval
    rows = [[evaluation.items, f"{evaluation.images:,}"]]
    rows += [[metric_name(name), _value(evaluation, name, share)] for name in evaluation.figures]
    if low == low:
        rows.append([f"95 % interval ({evaluation.interval_of})", f"{100 * low:.2f} to {100 * high:.2f} %"])
    rows.append([f"size at which the network sees {evaluation.items}", f"{evaluation.image_size} pixels"])
    return table(["", ""], rows)


def _classes(evaluation: Evaluation) -> str:
    """The hardest first; classes without a figure last."""
    ordered = sorted(evaluation.per_class.items(), key=lambda item: (item[1] is None, item[1] or 0.0))
    rows = [[name, "no figure" if value is None else f"{100 * value:.1f} %"] for name, value in ordered]
    return table(["class", metric_name(evaluation.metric)], rows)


def _skipped(evaluation: Evaluation) -> str:
    shown = list(evaluation.skipped.items())[:SHOWN_SKIPPED]
    more = len(evaluation.skipped) - len(shown)
    note = f"<p>and {more} more</p>" if more else ""
    return table(["file", "reason"], [[name, reason] for name, reason in shown], numbers=False) + note
