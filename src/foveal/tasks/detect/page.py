"""An evaluation as one HTML page: figures, precision against recall, what is taken for what, and the worst images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from foveal.palette import palette
from foveal.tasks.detect import DEFAULT_THRESHOLD
from foveal.tasks.detect.average_precision import RECALLS, ImageResult, overlaps
from foveal.tasks.detect.prediction import draw_boxes
from foveal.tasks.html import picture, table
from foveal.terminal import escape

IOU = 0.5
SHOWN_CURVES = 12
LARGEST_MATRIX = 20
SHOWN_CONFUSIONS = 30
WORST = 12
WIDTH, HEIGHT, LEFT, BELOW = 460, 300, 46, 40


def sections(evaluation: Any, predictor: Any) -> list[tuple[str, str]]:
    """Classes, precision against recall, confusions and the worst images: titles and HTML.

    Args:
        evaluation: of `foveal.evaluate.evaluate`.
        predictor: what was evaluated.
    """
    metric = evaluation.gathered
    threshold = (
        DEFAULT_THRESHOLD if evaluation.inference.threshold is None else evaluation.inference.threshold
    )
    counts = object_counts(metric.results, len(metric.ours))
    rows = [
        [name, f"{counts[k]:,}", *(_percent(value) for value in metric.precision.per_class[k])]
        for k, name in enumerate(metric.ours)
        if name in metric.theirs
    ]
    matrix = confusion(metric.results, len(metric.ours), threshold)
    return [
        (
            "Classes",
            _text(f"{evaluation.inference}; {NOT_PADDED}") + table(["class", "objects", "AP", "AP50"], rows),
        ),
        ("Precision against recall", _text(CURVES) + curves(metric.precision.precision, metric.ours)),
        (
            "What is taken for what",
            _text(
                f"Objects, in rows, and detections with a score of at least {threshold:g} that overlap by at least "
                f"{IOU}, whatever their classes. Background: objects that nothing finds, and detections where no "
                "object is."
            )
            + confusion_table(matrix, metric.ours),
        ),
        (
            "The images with the most mistakes",
            _text(
                "Broken lines: objects that were not found, or taken for another class. Full lines: wrong detections."
            )
            + _figures(worst_images(metric.results, metric.ours, evaluation.dataset, threshold)),
        ),
    ]


NOT_PADDED = (
    "images one size at a time and so never padded, boxes in pixels of the stored images: the size of a batch changes "
    "nothing."
)
CURVES = (
    "Of all detections from the best score downwards: which share is right, against the share of the objects that is "
    "found, at IoU 0.5."
)


def _text(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _figures(pictures: Sequence[tuple[np.ndarray, str]]) -> str:
    if not pictures:
        return "<p>None: every object is found, and nothing else.</p>"
    return f'<div class="pictures wide">{"".join(picture(image, text) for image, text in pictures)}</div>'


def _percent(value: float) -> str:
    return "absent" if value != value else f"{100 * value:.1f} %"


def object_counts(results: Sequence[ImageResult], classes: int) -> list[int]:
    """How many objects of each class there are, crowds left out."""
    labels = [one.labels[~one.crowd] for one in results]
    return np.bincount(np.concatenate([*labels, np.zeros(0, dtype=np.int64)]), minlength=classes).tolist()


def pairs(one: ImageResult, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which object each detection is, whatever its class, -1 for none and -2 for a crowd; and which detections count.

    Pairs are made from the largest overlap downwards, those of one class first.
    """
    counted = one.scores >= threshold
    overlap = overlaps(one.found, one.boxes, one.crowd)
    same = one.found_labels[:, None] == one.labels[None]
    answer = np.full(len(one.found), -1)
    free = ~one.crowd
    for wanted in (same, ~same):
        allowed = np.where(wanted & counted[:, None], overlap, 0.0)
        for place in np.argsort(-allowed, axis=None):
            d, n = np.unravel_index(place, allowed.shape)
            if allowed[d, n] < IOU:
                break
            if answer[d] == -1 and free[n]:
                answer[d], free[n] = n, False
    absorbed = (overlap >= IOU)[:, one.crowd].any(1) if one.crowd.any() else np.zeros(len(answer), dtype=bool)
    return np.where((answer == -1) & absorbed, -2, answer), counted


def confusion(results: Sequence[ImageResult], classes: int, threshold: float) -> np.ndarray:
    """(classes + 1, classes + 1) counts: rows what is there, columns what was found, the last of both background.

    Example:
        >>> one = ImageResult(1, "", (9, 9), np.array([[0.0, 0, 9, 9]]), np.array([1]), np.array([False]), np.ones(1),
        ...                   np.array([[0.0, 0, 9, 8]]), np.array([0.9]), np.array([0]))
        >>> confusion([one], 2, 0.5).tolist()
        [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    """
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for one in results:
        answer, counted = pairs(one, threshold)
        for d in np.flatnonzero(counted):
            if answer[d] >= -1:
                matrix[one.labels[answer[d]] if answer[d] >= 0 else classes, one.found_labels[d]] += 1
        missed = np.setdiff1d(np.flatnonzero(~one.crowd), answer[answer >= 0])
        for label in one.labels[missed]:
            matrix[label, classes] += 1
    return matrix


def confusion_table(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """The whole matrix, or of many classes the most frequent mistakes."""
    names = [*classes, "background"]
    if len(classes) <= LARGEST_MATRIX:
        rows = [[name, *map(str, row)] for name, row in zip(names, matrix.tolist(), strict=True)]
        return table(["", *names], rows)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None)[:SHOWN_CONFUSIONS]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    rows = [[names[i], names[j], str(wrong[i, j])] for i, j in places if wrong[i, j]]
    return table(["is", "is taken for", "times"], rows, numbers=False)


def curves(precision: np.ndarray, classes: Sequence[str]) -> str:
    """Precision against recall at IoU 0.5, as SVG: the mean of all classes, and of few classes each."""
    at_half = precision[0]
    known = [k for k in range(len(classes)) if np.isfinite(at_half[:, k]).any()]
    colours = palette(classes)
    shown = known if len(known) <= SHOWN_CURVES else []
    parts = [
        _line(
            at_half[:, k],
            "#{:02x}{:02x}{:02x}".format(*colours[k]),
            1.5,
            f"{classes[k]}: AP50 {at_half[:, k].mean():.1%}",
        )
        for k in shown
    ]
    if known:
        mean = at_half[:, known].mean(1)
        parts.append(
            _line(mean, "currentColor", 2.5, f"mean of {len(known)} classes: AP50 {mean.mean():.1%}")
        )
    names = [(f"rgb{tuple(int(v) for v in colours[k])}", classes[k]) for k in shown] + [
        ("currentColor", "mean")
    ]
    legend = "".join(
        f'<text x="{LEFT + WIDTH + 14}" y="{22 + 20 * i}" style="fill: {colour}; font-size: 14px">{escape(name)}</text>'
        for i, (colour, name) in enumerate(names)
    )
    height = max(HEIGHT + BELOW, 30 + 20 * len(names))
    return (
        f'<svg class="wide" viewBox="0 0 {LEFT + WIDTH + 180} {height}" width="{LEFT + WIDTH + 180}" role="img" '
        f'aria-label="precision against recall">{_axes()}{"".join(parts)}{legend}</svg>'
    )


def _axes() -> str:
    grid = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = LEFT + WIDTH * tick, 10 + (HEIGHT - 10) * (1 - tick)
        grid.append(
            f'<path d="M{x} 10V{HEIGHT}M{LEFT} {y}H{LEFT + WIDTH}" stroke="var(--line)" fill="none"/>'
        )
        grid.append(f'<text x="{x}" y="{HEIGHT + 18}" {_SMALL} text-anchor="middle">{tick:g}</text>')
        grid.append(f'<text x="{LEFT - 8}" y="{y + 4}" {_SMALL} text-anchor="end">{tick:g}</text>')
    grid.append(f'<text x="{LEFT + WIDTH / 2}" y="{HEIGHT + 36}" {_SMALL} text-anchor="middle">recall</text>')
    return "".join(grid)


_SMALL = 'fill="var(--soft)" font-size="13"'


def _line(values: np.ndarray, colour: str, width: float, title: str) -> str:
    points = " ".join(
        f"{LEFT + WIDTH * r:.1f},{10 + (HEIGHT - 10) * (1 - v):.1f}"
        for r, v in zip(RECALLS, values, strict=True)
    )
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}">'
        f"<title>{escape(title)}</title></polyline>"
    )


def worst_images(
    results: Sequence[ImageResult], classes: Sequence[str], data: Any, threshold: float
) -> list[tuple[np.ndarray, str]]:
    """The images with the most missed objects and wrong detections, with these drawn into them."""
    scored = []
    for one in results:
        answer, counted = pairs(one, threshold)
        right = (answer >= 0) & (
            one.labels[np.maximum(answer, 0)] == one.found_labels if len(one.labels) else False
        )
        wrong = np.flatnonzero(counted & ~right & (answer != -2))
        missed = np.setdiff1d(np.flatnonzero(~one.crowd), answer[right & counted])
        scored.append((len(wrong) + len(missed), one, wrong, missed))
    scored.sort(key=lambda entry: -entry[0])
    place_of = {name: place for place, name in enumerate(getattr(data, "names", ()))}
    colours = palette(classes)
    pictures = []
    for mistakes, one, wrong, missed in scored[:WORST]:
        if not mistakes or one.file not in place_of:
            continue
        image = data[place_of[one.file]]["image"]
        boxes = torch.from_numpy(np.concatenate([one.found[wrong], one.boxes[missed]])).float()
        numbers = torch.from_numpy(np.concatenate([one.found_labels[wrong], one.labels[missed]]))
        labels = [f"{classes[one.found_labels[d]]}: {one.scores[d]:.0%}" for d in wrong]
        labels += [f"{classes[k]}: missed" for k in one.labels[missed]]
        broken = [False] * len(wrong) + [True] * len(missed)
        drawn = draw_boxes(image.expand(3, -1, -1), boxes, numbers, labels, colours, dashed=broken)
        text = f"{one.file}: {len(missed)} of {int((~one.crowd).sum())} objects missed, {len(wrong)} wrong detections"
        pictures.append((drawn, text))
    return pictures
