"""The labels of one image, and many of them as a text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from foveal.files import csv_cell, json_text, write_text
from foveal.tasks.picture import captioned, figure_of, png_bytes

if TYPE_CHECKING:
    from foveal.figure import NotebookFigure


@dataclass(frozen=True)
class LabelPrediction:
    """What a classifier says of one image.

    Attributes:
        labels: (class, probability) pairs, most probable first.
        file: where the image came from, if from a file.
        image: the image itself, uint8 (3, h, w).
    """

    labels: list[tuple[str, float]]
    file: str = ""
    image: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0][0]

    def __repr__(self) -> str:
        said = ", ".join(f"{label} {probability:.1%}" for label, probability in self.labels)
        return f"<{self.file}: {said}>" if self.file else f"<{said}>"

    def draw(self, image: Tensor) -> np.ndarray:
        """The image with its most probable labels written below it."""
        return self.captioned(image.permute(1, 2, 0).cpu().numpy())

    def captioned(self, picture: np.ndarray) -> np.ndarray:
        """A picture (h, w, 3) with the most probable labels written below it."""
        return captioned(picture, [f"{label}  {probability:.1%}" for label, probability in self.labels[:3]])

    def plot(self) -> NotebookFigure:
        """The same picture that a notebook shows, as a figure, to be saved or put beside others."""
        return figure_of(None if self.image is None else self.draw(self.image))

    def _repr_png_(self) -> bytes | None:
        return None if self.image is None else png_bytes(self.draw(self.image))


def best_labels(
    probabilities: Float[Tensor, "b k"], classes: list[str], top: int
) -> list[list[tuple[str, float]]]:
    """For each image the ``top`` most probable classes with their probabilities, best first.

    Example:
        >>> import torch
        >>> best_labels(torch.tensor([[0.25, 0.75]]), ["cat", "dog"], top=1)
        [[('dog', 0.75)]]
    """
    best = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    return [
        [(classes[i], p) for i, p in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def write_labels(
    found: Sequence[LabelPrediction], out: Path | None, format: str, unreadable: Mapping[str, str]
) -> tuple[int, str]:
    """Write labels to a file, or give their text where there is none: see `foveal.tasks.Task.write`."""
    text = predictions_text(found, unreadable, format)
    if out is None:
        return len(found), text
    if found:
        write_text(out, text)
    return len(found), f"{len(found)} files labelled: {out}\n" if found else ""


def predictions_text(found: Sequence[LabelPrediction], unreadable: Mapping[str, str], format: str) -> str:
    """CSV with the columns file, label, probability, label_2, probability_2, ...; or JSON with the same.

    Example:
        >>> print(predictions_text([LabelPrediction([("cat", 0.75), ("dog", 0.25)], "a.png")], {}, "csv"), end="")
        file,label,probability,label_2,probability_2
        a.png,cat,0.75,dog,0.25
    """
    if format == "json":
        predictions = [
            {
                "file": one.file,
                "labels": [label for label, _ in one.labels],
                "probabilities": [probability for _, probability in one.labels],
            }
            for one in found
        ]
        broken = [{"file": file, "reason": reason} for file, reason in unreadable.items()]
        return json_text({"predictions": predictions, "unreadable": broken})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ranks = range(1, 1 + max((len(one.labels) for one in found), default=1))
    writer.writerow(
        ["file", *(f"{n}{'' if k == 1 else f'_{k}'}" for k in ranks for n in ("label", "probability"))]
    )
    for one in found:
        writer.writerow([csv_cell(one.file), *(csv_cell(value) for pair in one.labels for value in pair)])
    return text.getvalue()
