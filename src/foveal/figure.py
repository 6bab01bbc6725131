"""A matplotlib figure that shows itself in a notebook, whether or not pyplot is used there."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that a notebook shows as a picture where it is the last value of a cell.

    Example:
        >>> new_figure(3, 2)._repr_png_()[:4]
        b'\\x89PNG'
    """

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png")
        return file.getvalue()


def new_figure(width: float, height: float) -> NotebookFigure:
    """A figure of so many inches."""
    return NotebookFigure(figsize=(width, height), dpi=110, layout="constrained")
