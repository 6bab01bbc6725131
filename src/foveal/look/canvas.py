"""The pieces of every picture: a figure, an image, the colours of a map over it, their legend, the title.

The colours of a map have the same limits here and on the page: a mask begins at 0 and reaches 1, weights in units of
uniform attention begin at 0 and reach 2, and either reaches further where a value does. So an even map looks even, and
rounding noise is never spread over all colours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor

from foveal.look.recording import SiteRecording

SEQUENTIAL = "viridis"
SIGNED = "RdBu_r"
HEAT_OPACITY = 0.72
MASK_TOP = 1.0
UNIFORM_TOP = 2.0


def limits(values: Tensor, top: float) -> Normalize:
    """From 0 to ``top``, or further where a value is larger; negative values get as much room as positive ones."""
    low, high = float(values.min()), float(values.max())
    if low < 0:
        return CenteredNorm(0, halfrange=max(-low, high))
    return Normalize(0, max(top, high) or 1.0)


def colour(share: float, top: float = 1.0) -> tuple[float, float, float, float]:
    """The colour of a share of the range."""
    return colormaps[SEQUENTIAL](min(max(share, 0.0), 1.0) * top)


def show_image(axes: Axes, image: Tensor, grey: bool = False) -> None:
    """A uint8 image (3, H, W)."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    if grey:
        pixels = np.repeat((pixels @ [0.299, 0.587, 0.114])[..., None], 3, axis=2).astype(np.uint8)
    axes.imshow(pixels, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def show_heat(axes: Axes, image: Tensor, heat: Tensor, norm: Normalize) -> None:
    """A map (H, W) in colours over the image in grey."""
    show_image(axes, image, grey=True)
    axes.imshow(heat.numpy(), cmap=colours_of(norm), norm=norm, alpha=HEAT_OPACITY, interpolation="nearest")


def show_legend(figure: Figure, panels: Sequence[Axes], norm: Normalize, label: str) -> None:
    """The colour bar of some panels."""
    bar = figure.colorbar(ScalarMappable(norm, colours_of(norm)), ax=panels, shrink=0.8, alpha=HEAT_OPACITY)
    bar.set_label(label, fontsize=9)


def colours_of(norm: Normalize) -> str:
    """Two colours around 0 where values have signs."""
    return SIGNED if isinstance(norm, CenteredNorm) else SEQUENTIAL


def mark(axes: Axes, pixel: Sequence[int], size: int = 12) -> None:
    """A cross at (y, x)."""
    y, x = pixel
    axes.plot(x, y, marker="+", color="white", markersize=size + 3, markeredgewidth=4)
    axes.plot(x, y, marker="+", color="red", markersize=size, markeredgewidth=1.8)


def set_title(figure: Figure, what: str, recording: SiteRecording) -> None:
    """What is shown above, where it was taken from below."""
    width = int(figure.get_figwidth() * 15)
    figure.suptitle(textwrap.fill(what, int(width * 0.85)), fontsize=10, fontweight="bold")
    block = f"{recording.block}({recording.options})" if recording.options else recording.block
    lines = [f"site {recording.name or '(the block itself)'}: {block}", f"weights: {recording.weights}"]
    text = "\n".join(textwrap.fill(line, width) for line in lines)
    figure.supxlabel(text, fontsize=8, color="0.35")
