"""One figure of a site, or of all sites: what ``recording.plot()`` and ``recordings.plot()`` draw."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from foveal.errors import FovealError
from foveal.figure import new_figure
from foveal.look import canvas, draw
from foveal.look.geometry import on_pixels
from foveal.look.recording import SiteRecording

GREY = 128
COLUMNS = 4


def draw_site(
    recording: SiteRecording, image: Tensor | None, *, pixel: tuple[int, ...] | None, index: int
) -> Figure:
    """See `SiteRecording.plot`."""
    shows = recording.shows()
    picture = _as_image(image, recording, index)
    if pixel is not None and "rows" not in shows:
        raise FovealError(
            f"pixel must be left out for a site without rows, got {recording.name!r} ({recording.block})"
        )
    if "rows" in shows:
        query = pixel if pixel is not None else recording.pixel(recording.most_distinct_query(index))
        if len(recording.spatial) == 3:
            return draw.draw_clip_rows(recording, picture, (query[0], query[1], query[2]), index)
        return draw.draw_rows(recording, picture, [query], index)
    if "spatial_mask" in shows and len(recording.spatial) == 2:
        return draw.draw_mask(recording, picture, index)
    if "channel_gate" in shows:
        return draw.draw_gates(recording, index)
    if "channel_matrix" in shows:
        return draw.draw_channels(recording, index)
    raise FovealError(f"a site must have a map over an image, got {recording!r}")


def draw_sites(recordings: Mapping[str, SiteRecording], image: Tensor | None, *, index: int) -> Figure:
    """See `Recordings.plot`. Each site has its own colours, between the limits that `canvas.limits` gives."""
    columns = min(COLUMNS, len(recordings))
    lines = math.ceil(len(recordings) / columns)
    figure = new_figure(max(3.0 * columns, 4.5), 2.9 * lines + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(recordings) :]:
        axes.axis("off")
    for axes, recording in zip(panels, recordings.values(), strict=False):
        try:
            kind = _panel(figure, axes, recording, image, index)
        except FovealError as error:
            axes.axis("off")
            axes.text(0, 0.5, "\n".join(_wrapped(str(error))), fontsize=7, wrap=True)
            kind = "nothing to show"
        axes.set_title(f"{recording.name or '(the block itself)'}\n{recording.block}: {kind}", fontsize=8)
    weights = next(iter(recordings.values())).weights
    figure.supxlabel(f"weights: {weights}", fontsize=8, color="0.35")
    return figure


def _panel(figure: Figure, axes: Axes, recording: SiteRecording, image: Tensor | None, index: int) -> str:
    """Draw one site into one panel; what it shows, in words."""
    shows = recording.shows()
    if "rows" in shows and len(recording.spatial) in (2, 3):
        query = recording.most_distinct_query(index)
        row = recording.rows(query)[index, 0].cpu()
        norm = canvas.limits(row * row.numel(), canvas.UNIFORM_TOP)
        pixel, picture, where = recording.pixel(query), _as_image(image, recording, index), recording.spatial
        if len(where) == 3:
            picture, row = picture[:, pixel[0]], row[query[0] * len(row) // where[0]] * len(row)
        size = (picture.shape[-2], picture.shape[-1])
        canvas.show_heat(axes, picture, on_pixels(row * row.numel(), where[-2:], size), norm)
        canvas.mark(axes, pixel[-2:])
        canvas.show_legend(figure, [axes], norm, "weight × keys")
        return f"row of query {', '.join(map(str, pixel))}"
    if "spatial_mask" in shows and len(recording.spatial) == 2:
        picture, mask = _as_image(image, recording, index), recording.mask[index, 0].cpu()
        norm = canvas.limits(mask, canvas.MASK_TOP)
        size = (picture.shape[-2], picture.shape[-1])
        canvas.show_heat(axes, picture, on_pixels(mask, recording.spatial, size), norm)
        canvas.show_legend(figure, [axes], norm, "factor")
        return "mask"
    if "channel_gate" in shows:
        gates = recording.gates[index].cpu().sort(descending=True).values.numpy()
        axes.bar(range(len(gates)), gates, width=1.0, color=canvas.colour(0.4))
        axes.axhline(1, color="black", linestyle="--", linewidth=1)
        axes.set(
            xlabel="channel, largest gate first",
            ylim=(min(0.0, gates.min() * 1.05), max(1.2, gates.max() * 1.1)),
        )
        return f"gates, mean {gates.mean():.2f}"
    matrix = recording.channels[index].cpu()
    norm = canvas.limits(matrix * len(matrix), canvas.UNIFORM_TOP)
    axes.imshow(
        (matrix * len(matrix)).numpy(), cmap=canvas.colours_of(norm), norm=norm, interpolation="nearest"
    )
    canvas.show_legend(figure, [axes], norm, "weight × channels")
    return "channels"


def _as_image(image: Tensor | None, recording: SiteRecording, index: int) -> Tensor:
    """What the map lies on, uint8 (3, *sides): the image, one of a batch, or grey."""
    dims = len(recording.image_size)
    if image is None:
        return torch.full((3, *recording.image_size), GREY, dtype=torch.uint8)
    if image.ndim == dims + 2:
        image = image[index]
    if image.ndim != dims + 1 or image.shape[0] not in (1, 3):
        wanted = ", ".join(map(str, (3, *recording.image_size)))
        raise FovealError(
            f"image must have 1 or 3 channels and {dims} sides, such as ({wanted}), got {tuple(image.shape)}"
        )
    image = image.detach().cpu()
    if image.dtype != torch.uint8:
        image = image.float()
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 1:
            image = (image - low) / max(high - low, 1e-12)
        image = (image * 255).round().to(torch.uint8)
    return image.expand(3, *image.shape[1:])


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 40)
