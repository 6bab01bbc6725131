"""Colours for classes, and pictures made of them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

OVERLAY_OPACITY = 0.55
"""Share of the class colour in an overlay."""
# the golden ratio's: hues of neighbouring classes lie far apart, however many there are
HUE_STEP = 0.618034
# saturation and value, one after the other
SATURATION_AND_VALUE = ((0.85, 0.95), (0.55, 0.75), (0.95, 0.6), (0.4, 1.0))


def palette(classes: Sequence[str]) -> np.ndarray:
    """(k, 3) uint8: one colour a class, the same for the same place in any list; a class "background" is black.

    Example:
        >>> palette(["background", "cat"]).tolist()
        [[0, 0, 0], [86, 92, 191]]
    """
    colours = []
    for i, name in enumerate(classes):
        saturation, value = SATURATION_AND_VALUE[i % len(SATURATION_AND_VALUE)]
        colours.append((0, 0, 0) if name == "background" else _rgb(i * HUE_STEP + 0.04, saturation, value))
    return np.array(colours, dtype=np.uint8)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def coloured(class_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(h, w) class numbers to (h, w, 3) colours; values that are no class become white.

    Example:
        >>> coloured(np.array([[0, 300]]), np.zeros((1, 3), dtype=np.uint8)).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    return _with_other(colours, 255)[_index(class_map, len(colours))]


def overlay(image: np.ndarray, class_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(h, w, 3) image with class colours laid over it; black classes and pixels without a class show the image."""
    opacity = _with_other(np.where(colours.any(axis=1, keepdims=True), OVERLAY_OPACITY, 0.0), 0.0)
    share = opacity[_index(class_map, len(colours))]
    return ((1 - share) * image + share * coloured(class_map, colours)).round().astype(np.uint8)


def _with_other(table: np.ndarray, value: float) -> np.ndarray:
    """``table`` with one more row, for what is no class."""
    return np.concatenate([table, np.full((1, table.shape[1]), value, dtype=table.dtype)])


def _index(class_map: np.ndarray, classes: int) -> np.ndarray:
    """Rows of such a table."""
    return np.where((class_map >= 0) & (class_map < classes), class_map, classes)


def legend(classes: Sequence[str], colours: np.ndarray) -> Any:
    """A small picture of the colours with the names of their classes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = -(-len(classes) // 24)
    rows = -(-len(classes) // columns)
    figure = Figure(figsize=(2.2 * columns, 0.26 * rows + 0.3))
    patches = [
        Patch(facecolor=tuple(colour / 255), edgecolor="0.6", label=name)
        for name, colour in zip(classes, colours, strict=True)
    ]
    figure.legend(handles=patches, loc="center", ncols=columns, frameon=False)
    return figure
