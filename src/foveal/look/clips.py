"""What a network of clips attends to: frames side by side, and the row of one point in space and time over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from foveal.errors import FovealError
from foveal.inference import Predictor
from foveal.look import draw
from foveal.look.pictures import matching_sites, save_figure, save_picture
from foveal.look.predict import predict_recorded


def clip_figures(
    predictor: Predictor, video: Tensor, sites: str, voxel: tuple[int, ...] | None
) -> tuple[Any, Tensor, dict[str, Figure]]:
    """Run the network on a video and draw every attention site.

    Args:
        video: uint8 (3, frames, h, w), or what reads its frames when asked; the network takes its own clip of it.
        sites: only sites whose path matches.
        voxel: (t, y, x) of the clip as the network sees it, whose row is drawn; by default at each site the point whose
            row differs most from the others.

    Returns:
        The answer, the clip as the network sees it (3, t, h, w), and figures by name.

    Raises:
        FovealError: no site matches, or the voxel lies outside of the clip.
    """
    clip = predictor.view({"image": video})["image"]
    size = tuple(clip.shape[1:])
    if voxel is not None and not all(0 <= at < side for at, side in zip(voxel, size, strict=True)):
        raise FovealError(
            f"query must lie inside the clip of {size[0]} frames of {size[1]}x{size[2]} that the network sees, got "
            f"{','.join(map(str, voxel))}"
        )
    answer, seen = predict_recorded(predictor, clip)
    figures: dict[str, Figure] = {}
    for recording in matching_sites(seen, sites):
        shows = recording.shows()
        if "rows" in shows:
            t, y, x = voxel or recording.pixel(recording.most_distinct_query())
            figures[f"{recording.name}--row"] = draw.draw_clip_rows(recording, clip, (t, y, x))
        if "channel_gate" in shows:
            figures[f"{recording.name}--gates"] = draw.draw_gates(recording)
        if "channel_matrix" in shows:
            figures[f"{recording.name}--channels"] = draw.draw_channels(recording)
    return answer, clip, figures


def write_clip_pictures(
    predictor: Predictor, video: Tensor, folder: Path, stem: str, sites: str, voxel: tuple[int, ...] | None
) -> int:
    """Write the answer over the frames, and a picture of each site, into a folder; how many there are."""
    answer, clip, figures = clip_figures(predictor, video, sites, voxel)
    save_picture(answer.draw(clip), folder / f"{stem}--clip.png")
    for name, figure in figures.items():
        save_figure(figure, folder / f"{stem}--{name}.png")
    return 1 + len(figures)
