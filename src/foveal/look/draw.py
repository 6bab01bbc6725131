"""Draw what ``watch`` recorded: matplotlib figures that say what they show.

Every title names what is drawn, the site, the block with its options, the weights and the query. Colours are
perceptually uniform (viridis; a diverging pair for signed weights), every map has its colour bar, and maps
are never smoothed: one square is one weight. Images are uint8 tensors (3, H, W), as the network saw them;
query pixels are (y, x).

Example:
    >>> import torch, foveal
    >>> image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    >>> blocks = foveal.nn.NonLocal(8), foveal.nn.CBAM(8, reduction=2)
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, stride=4), *blocks)
    >>> with foveal.watch(net.eval(), weights="random") as seen:
    ...     y = net(image[None] / 255)
    >>> figures = [draw_rows(seen["1"], image, [(3, 4), (30, 20)]), draw_row_grid(seen["1"], image)]
    >>> figures += [draw_gates(seen["2"]), draw_mask(seen["2"], image)]
    >>> figures[0].get_suptitle()
    'Attention rows: what the marked position gathers from'
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from foveal.errors import FovealError
from foveal.figure import new_figure
from foveal.look.canvas import (
    HEAT_OPACITY,
    MASK_TOP,
    SEQUENTIAL,
    UNIFORM_TOP,
    colour,
    limits,
    mark,
    set_title,
    show_heat,
    show_image,
    show_legend,
)
from foveal.look.geometry import on_pixels
from foveal.look.recording import SiteRecording
from foveal.palette import coloured, palette


def draw_gates(recording: SiteRecording, index: int = 0) -> Figure:
    """Channel gates of one image as bars, largest first; the dashed line at 1 is "passes unchanged"."""
    gates = recording.gates[index].cpu().numpy()
    order = np.argsort(-gates, kind="stable")
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    norm = Normalize(0, max(1.0, float(gates.max())))
    bars = axes.bar(np.arange(len(gates)), gates[order], width=0.9 if len(gates) <= 128 else 1.0)
    axes.set(ylim=(min(0.0, gates.min() * 1.05), max(1.2, gates.max() * 1.2)), xlim=(-0.8, len(gates) - 0.2))
    for bar, value in zip(bars, gates[order], strict=True):
        bar.set_facecolor(colour(norm(float(value))))
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="1: passes unchanged")
    axes.axhline(gates.mean(), color="crimson", linewidth=1, label=f"mean {gates.mean():.3f}")
    first = ", ".join(str(channel) for channel in order[:5])
    axes.set_xlabel(f"{len(gates)} channels, largest gate first (channels {first}, ...)")
    axes.set_ylabel("gate (factor on the channel)")
    axes.legend(loc="upper right", fontsize=8, ncols=2, framealpha=1, edgecolor="white")
    set_title(figure, f"Channel gates, spread (standard deviation) {gates.std():.3f}", recording)
    return figure


def draw_mask(recording: SiteRecording, image: UInt8[Tensor, "3 *t H W"], index: int = 0) -> Figure:
    """Spatial mask of one image over it, or of a clip over its frames.

    Beside it mean and spread of the mask and, where there is one, of the gate.
    """
    attention = recording.attention()
    if "spatial_mask" not in attention:
        raise FovealError(f"{recording.name!r} ({recording.block}) has no spatial mask")
    mask = attention["spatial_mask"][index, 0].cpu()
    text = f"mask: mean {mask.mean():.3f}, spread {mask.std(unbiased=False):.3f}"
    if "channel_gate" in attention:
        gate = attention["channel_gate"][index].cpu()
        text += f"; channel gate: mean {gate.mean():.3f}, spread {gate.std(unbiased=False):.3f}"
    norm = limits(mask, MASK_TOP)
    if image.ndim == 4:
        figure, panels = _frame_panels(image, mask, recording.spatial, norm)
    else:
        figure = new_figure(7.2, 4.0)
        left, right = figure.subplots(1, 2)
        show_image(left, image)
        show_heat(right, image, on_pixels(mask, recording.spatial, tuple(image.shape[1:])), norm)
        panels = [right]
    show_legend(figure, panels, norm, "factor on the position")
    set_title(figure, f"Spatial mask ({text})", recording)
    return figure


def draw_rows(
    recording: SiteRecording, image: UInt8[Tensor, "3 H W"], pixels: Sequence[tuple[int, ...]], index: int = 0
) -> Figure:
    """Where the asked query pixels look: one panel a query, marked with a cross, on one colour scale."""
    rows, relative = _relative_rows(
        recording, [recording.cell(p, tuple(image.shape[1:])) for p in pixels], index
    )
    figure = new_figure(3.5 * len(pixels) + 0.9, 4.2)
    panels = figure.subplots(1, len(pixels), squeeze=False)[0]
    norm = limits(rows, UNIFORM_TOP)
    for axes, row, pixel in zip(panels, rows, pixels, strict=True):
        show_heat(axes, image, on_pixels(row, recording.spatial, tuple(image.shape[1:])), norm)
        mark(axes, pixel)
        axes.set_title(f"query y={pixel[0]}, x={pixel[1]}", fontsize=9)
    show_legend(figure, list(panels), norm, relative)
    set_title(
        figure,
        f"Attention row{'s' if len(pixels) > 1 else ''}: what the marked position gathers from",
        recording,
    )
    return figure


def draw_row_grid(
    recording: SiteRecording, image: UInt8[Tensor, "3 H W"], grid: int = 4, index: int = 0
) -> Figure:
    """Attention rows of a grid of ``grid`` x ``grid`` queries, each panel at the place of its query."""
    height, width = image.shape[1:]
    pixels = [
        (int((row + 0.5) * height / grid), int((column + 0.5) * width / grid))
        for row in range(grid)
        for column in range(grid)
    ]
    rows, relative = _relative_rows(recording, [recording.cell(p, (height, width)) for p in pixels], index)
    figure = new_figure(8.2, 7.6)
    panels = figure.subplots(grid, grid, squeeze=False)
    norm = limits(rows, UNIFORM_TOP)
    for axes, row, pixel in zip(panels.flat, rows, pixels, strict=True):
        show_heat(axes, image, on_pixels(row, recording.spatial, (height, width)), norm)
        mark(axes, pixel, size=7)
    show_legend(figure, list(panels.flat), norm, relative)
    set_title(figure, f"Attention rows of {grid} x {grid} queries, each drawn at its place", recording)
    return figure


def draw_channels(recording: SiteRecording, index: int = 0) -> Figure:
    """Channel attention as a matrix: row i holds the weights from which channel i is mixed."""
    matrix = recording.channels[index].cpu()
    figure = new_figure(5.6, 5.2)
    axes = figure.subplots()
    scaled = matrix * matrix.shape[-1]
    drawn = axes.imshow(
        scaled.numpy(), cmap=SEQUENTIAL, norm=limits(scaled, UNIFORM_TOP), interpolation="nearest"
    )
    axes.set(xlabel="channel read from", ylabel="channel written to")
    figure.colorbar(drawn, ax=axes, label="weight × channels (1 = uniform)", shrink=0.8)
    set_title(figure, "Channel attention", recording)
    return figure


def draw_clip_rows(
    recording: SiteRecording, frames: UInt8[Tensor, "3 t H W"], voxel: tuple[int, int, int], index: int = 0
) -> Figure:
    """The time-space row of one query ``(t, y, x)`` in pixels of a clip: its frames side by side, one scale."""
    (row,), relative = _relative_rows(recording, [recording.cell(voxel, tuple(frames.shape[1:]))], index)
    norm = limits(row, UNIFORM_TOP)
    figure, panels = _frame_panels(frames, row, recording.spatial, norm)
    share = row.flatten(1).sum(1) / row.sum().clamp_min(1e-12)
    if len(row) == len(panels) and row.min() >= 0:
        for t, axes in enumerate(panels):
            axes.set_title(f"t={t}, {share[t]:.0%}", fontsize=8)
    mark(panels[voxel[0]], voxel[1:])
    show_legend(figure, panels, norm, relative)
    set_title(
        figure, f"Time-space attention row of query t={voxel[0]}, y={voxel[1]}, x={voxel[2]}", recording
    )
    return figure


def _frame_panels(
    frames: Tensor, values: Tensor, spatial: tuple[int, ...], norm: Normalize
) -> tuple[Figure, list[Axes]]:
    """The frames of a clip (3, t, H, W) side by side, each with its part of a map (t', h, w) over it."""
    count = frames.shape[1]
    columns = min(count, 8)
    lines = math.ceil(count / columns)
    figure = new_figure(max(1.7 * columns + 0.8, 6.0), 1.9 * lines + 1.0)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.axis("off")
    for t, axes in enumerate(panels[:count]):
        part = on_pixels(values[t * len(values) // count], spatial[1:], tuple(frames.shape[2:]))
        show_heat(axes, frames[:, t], part, norm)
        axes.set_title(f"t={t}", fontsize=8)
    return figure, panels[:count]


def draw_gate_profile(
    profile: Mapping[str, Float[Tensor, "classes c"]], classes: Sequence[str], weights: str
) -> Figure:
    """Mean gate per channel and class over a data set, one panel a site in order of depth (SENet paper, figure 5).

    Args:
        profile: {site: (classes, channels) mean gates}, as `gate_profile` returns.
        classes: class names; at most 8 are drawn, and the mean over all in black.
    """
    columns = min(len(profile), 2)
    lines = math.ceil(len(profile) / columns)
    figure = new_figure(4.4 * columns + 0.4, 2.5 * lines + 1.0)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(profile) :]:
        axes.axis("off")
    drawn = np.linspace(0, len(classes) - 1, min(len(classes), 8)).round().astype(int)
    for axes, (site, gates) in zip(panels, profile.items(), strict=False):
        for place, which in enumerate(drawn):
            axes.plot(gates[which].numpy(), color=colour(place / max(len(drawn) - 1, 1), 0.92), linewidth=0.9,
                      label=classes[which])  # fmt: skip
        axes.plot(gates.mean(0).numpy(), color="black", linewidth=1.4, linestyle=":", label="all classes")
        axes.set_title(
            f"{site}: spread between classes {gates.std(0, unbiased=False).mean():.3f}", fontsize=8
        )
        axes.set(xlabel="channel", ylabel="mean gate", xlim=(0, max(gates.shape[1] - 1, 1)))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(9, len(labels)), fontsize=7, frameon=False
    )
    figure.suptitle(f"Mean channel gate per class, by depth\nweights: {weights}", fontsize=10)
    return figure


def draw_segmentation(
    image: UInt8[Tensor, "3 H W"], class_map: UInt8[Tensor, "H W"], classes: Sequence[str], weights: str
) -> Figure:
    """The predicted class of every pixel over the image, with the classes that occur and their share of it."""
    pixels, colours = class_map.cpu().numpy(), palette(classes)
    counts = np.bincount(pixels.ravel(), minlength=len(classes))
    figure = new_figure(7.2, 4.0)
    left, right = figure.subplots(1, 2)
    show_image(left, image)
    show_image(right, image, grey=True)
    right.imshow(coloured(pixels, colours), alpha=HEAT_OPACITY, interpolation="nearest")
    for which in np.argsort(-counts, kind="stable")[:12]:
        if counts[which]:
            colour = tuple(colours[which] / 255)
            label = f"{classes[which]}, {counts[which] / pixels.size:.0%}"
            right.plot([], [], "s", color=colour, alpha=HEAT_OPACITY, label=label)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle("Predicted class of every pixel", fontsize=10, fontweight="bold")
    figure.supxlabel(f"weights: {weights}", fontsize=8, color="0.35")
    return figure


def draw_grad_cam(
    recording: SiteRecording, image: UInt8[Tensor, "3 H W"], cam: Float[Tensor, "h w"], label: str
) -> Figure:
    """Grad-CAM at the record's site, for comparison; it explains a class score and is not attention."""
    figure = new_figure(7.2, 4.0)
    left, right = figure.subplots(1, 2)
    show_image(left, image)
    cam = cam.cpu()
    show_heat(right, image, on_pixels(cam, tuple(cam.shape), tuple(image.shape[1:])), limits(cam, 0.0))
    show_legend(figure, [right], limits(cam, 0.0), "evidence for the class")
    set_title(figure, f"Grad-CAM for class {label} (not attention)", recording)
    return figure


def _relative_rows(
    recording: SiteRecording, cells: Sequence[tuple[int, ...]], index: int
) -> tuple[Tensor, str]:
    """Rows times the number of keys, so that 1 is what uniform attention gives at any resolution."""
    rows = recording.rows(*cells)[index].cpu()
    return rows * rows[0].numel(), "weight × keys (1 = uniform)"
