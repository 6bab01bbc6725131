"""What the page of an evaluation shows of a classifier."""

from __future__ import annotations

from typing import Any

from foveal.tasks.html import picture, table
from foveal.terminal import escape

LARGEST_MATRIX = 25
SHOWN_CONFUSIONS = 30


def sections(evaluation: Any, predictor: Any) -> list[tuple[str, str]]:
    """Classes, confusions, calibration and the worst images: titles and HTML.

    Args:
        evaluation: of `foveal.evaluate.evaluate`.
        predictor: what was evaluated.
    """
    details = evaluation.details
    return [
        ("Classes", _classes(details)),
        ("What is taken for what", _confusions(details)),
        ("Confidence against accuracy", _calibration(details["calibration"])),
        ("The images it gets most wrong", _worst(evaluation, predictor)),
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _classes(details: dict[str, Any]) -> str:
    """The hardest first: a person looks for them."""
    ordered = sorted(details["classes"].items(), key=lambda item: item[1]["f1"])
    rows = [
        [name, f"{one['images']:,}", *(_percent(one[key]) for key in ("precision", "recall", "f1"))]
        for name, one in ordered
    ]
    mean = details["macro"]
    rows.append(["mean of the classes", "", *(_percent(mean[key]) for key in ("precision", "recall", "f1"))])
    note = "<p>Precision: of the images called so, how many are. Recall: of those that are, how many are called so.</p>"
    return note + table(["class", "images", "precision", "recall", "F1"], rows)


def _confusions(details: dict[str, Any]) -> str:
    if not details["confusions"]:
        return "<p>Nothing: every image is right.</p>"
    if len(details["classes"]) <= LARGEST_MATRIX:
        return _matrix(details)
    shown = details["confusions"][:SHOWN_CONFUSIONS]
    more = len(details["confusions"]) - len(shown)
    note = (
        f"<p>The {len(shown)} most frequent; {more} more pairs are in the file of --out.</p>" if more else ""
    )
    rows = [[one["true"], one["predicted"], str(one["images"])] for one in shown]
    return note + table(["is", "is taken for", "images"], rows, numbers=False)


def _matrix(details: dict[str, Any]) -> str:
    """Rows are true classes, columns answers; the colour is the share of the row."""
    counts = {(one["true"], one["predicted"]): one["images"] for one in details["confusions"]}
    answers = list(dict.fromkeys([*details["classes"], *(predicted for _, predicted in counts)]))
    head = "".join(f'<th class="turned">{escape(name)}</th>' for name in answers)
    lines = []
    for name, one in details["classes"].items():
        right = round(one["recall"] * one["images"])
        cells = []
        for answer in answers:
            count = right if answer == name else counts.get((name, answer), 0)
            colour = "--right" if answer == name else "--wrong"
            share = count / one["images"]
            style = f' style="background: rgb(var({colour}) / {0.75 * share:.2f})"' if count else ""
            cells.append(f"<td{style}>{count or ''}</td>")
        lines.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    note = "<p>A row holds the images of a class, a column those that are called so.</p>"
    return f'{note}<div class="scroll"><table class="matrix"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def _calibration(found: dict[str, Any]) -> str:
    """A bar for each bin of confidence; where confidence can be trusted they end on the diagonal."""
    size, left, bottom = 300, 40, 30

    def x(value: float) -> float:
        return left + value * size

    def y(value: float) -> float:
        return 10 + (1 - value) * size

    bars = "".join(
        f'<rect class="bar" x="{x(one["low"]) + 1:.1f}" width="{size * (one["high"] - one["low"]) - 2:.1f}" '
        f'y="{y(one["accuracy"]):.1f}" height="{size * one["accuracy"]:.1f}">'
        f"<title>{one['images']} images, confidence {_percent(one['confidence'])}, "
        f"accuracy {_percent(one['accuracy'])}</title></rect>"
        for one in found["bins"]
    )
    marks = "".join(
        f'<line class="line" x1="{x(0)}" x2="{x(1)}" y1="{y(v)}" y2="{y(v)}"/>'
        f'<text x="{left - 6}" y="{y(v) + 4}" text-anchor="end">{v:.0%}</text>'
        f'<text x="{x(v)}" y="{y(0) + 16}" text-anchor="middle">{v:.0%}</text>'
        for v in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    drawing = (
        f'<svg viewBox="0 0 {left + size + 20} {size + bottom + 26}" role="img">{marks}{bars}'
        f'<line class="equal" x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}"/>'
        f'<text x="{x(0.5)}" y="{size + bottom + 22}" text-anchor="middle">confidence</text></svg>'
    )
    return (
        f"<p>Confidence differs from accuracy by {100 * found['expected_error']:.1f} points in the mean (expected "
        "calibration error, 15 bins). Bars below the dashed line: the network is surer than it should be.</p>"
        + drawing
    )


def _worst(evaluation: Any, predictor: Any) -> str:
    """The images with the largest loss, each with its answers."""
    worst = [
        one for one in evaluation.details["worst"] if one["index"] >= 0 and one["true"] != one["predicted"]
    ]
    if not worst:
        return "<p>None: every image is right.</p>"
    names = list(getattr(evaluation.dataset, "names", ()))
    figures = []
    for one in worst:
        image = evaluation.dataset[one["index"]]["image"]
        name = names[one["index"]] if one["index"] < len(names) else f"image {one['index']}"
        said = f"{one['true']}, taken for {one['predicted']} ({one['confidence']:.0%}); {name}"
        figures.append(picture(predictor.view({"image": image})["image"].permute(1, 2, 0).numpy(), said))
    return f'<div class="pictures">{"".join(figures)}</div>'
