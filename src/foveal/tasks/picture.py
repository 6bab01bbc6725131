"""Small pictures that show an answer, for notebooks and folders."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.figure import NotebookFigure

LINE = 14
SMALLEST_WIDTH = 160


def captioned(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """An image, uint8 (h, w, 3) or grey (h, w, 1), enlarged by a whole number if it is small, with text below it.

    Example:
        >>> captioned(np.zeros((8, 8, 3), dtype=np.uint8), ["cat"]).shape
        (178, 160, 3)
    """
    from PIL import Image, ImageDraw

    factor = max(1, SMALLEST_WIDTH // image.shape[1])
    image = np.broadcast_to(image, (*image.shape[:2], 3)).repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = image.shape[:2]
    picture = Image.new("RGB", (width, height + LINE * len(lines) + 4), "white")
    picture.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((3, height + 2 + LINE * number), line, fill="black")
    return np.asarray(picture)


def figure_of(picture: np.ndarray | None) -> NotebookFigure:
    """A picture, uint8 (h, w, 3), as a figure of its own proportions.

    Raises:
        FovealError: there is none, as the answer was given for no image that is at hand.
    """
    from foveal.figure import new_figure

    if picture is None:
        raise FovealError(
            "a prediction must hold its image to be plotted, got none; call the predictor with an image"
        )
    height, width = picture.shape[:2]
    figure = new_figure(5, 5 * height / width)
    axes = figure.subplots()
    axes.imshow(picture)
    axes.set_axis_off()
    return figure


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture, uint8 (h, w, 3) or (h, w), as the bytes of a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
