"""Colours for classes, and pictures made of them."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

OVERLAY = 0.55
"""Share of the class colour in an overlay."""
TURN = 0.618034  # the golden ratio's: hues of neighbouring classes lie far apart, however many there are
TONES = ((0.85, 0.95), (0.55, 0.75), (0.95, 0.6), (0.4, 1.0))  # saturation and value, one after the other


def palette(classes: Sequence[str]) -> np.ndarray:
    """(k, 3) uint8: one colour a class, the same for the same place in any list; a class "background" is black.

    Example:
        >>> palette(["background", "cat"]).tolist()
        [[0, 0, 0], [86, 92, 191]]
    """
    colours = []
    for i, name in enumerate(classes):
        saturation, value = TONES[i % len(TONES)]
        colours.append((0, 0, 0) if name == "background" else _rgb(i * TURN + 0.04, saturation, value))
    return np.array(colours, dtype=np.uint8)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, saturation, value))


def coloured(class_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(h, w) class numbers to (h, w, 3) colours; values that are no class become white."""
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(colours)] = colours
    return table[class_map]


def overlay(image: np.ndarray, class_map: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """(h, w, 3) image with class colours laid over it; black classes and pixels without a class show the image."""
    share = np.zeros((256, 1))
    share[: len(colours)] = OVERLAY * colours.any(axis=1, keepdims=True)
    share = share[class_map]
    return ((1 - share) * image + share * coloured(class_map, colours)).round().astype(np.uint8)


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
