"""Files of what a network attends to: a picture of every site, one page with all maps, a table of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from foveal.data.video import is_video_name
from foveal.errors import FovealError
from foveal.files import atomic_write, write_text
from foveal.folders import UniqueNames
from foveal.image_files import is_image_name
from foveal.inference import Predictor
from foveal.look import draw
from foveal.look.cam import grad_cam
from foveal.look.measures import SiteScore, score_sites
from foveal.look.page.html import page_with
from foveal.look.page.payload import image_payload
from foveal.look.predict import predict_recorded
from foveal.look.profile import gate_profile
from foveal.look.recording import Recordings, SiteRecording
from foveal.look.report import write_scores

PAGE_IMAGES = 24
"""Images in one page; more would make it slow to open."""
LONGEST_STEM = 120
"""Bytes of an image's name in the names of its pictures; file systems take 255, and the site comes behind."""


@dataclass(frozen=True)
class SeenImage:
    """One image or clip, what the network sees of it, its answer and the recording.

    Attributes:
        size: height and width in pixels.
        view: uint8 (3, H, W), or of a clip (3, t, H, W).
    """

    name: str
    size: tuple[int, int]
    view: Tensor
    answer: Any
    recordings: Recordings


def see(predictor: Predictor, name: str, image: Tensor) -> SeenImage:
    """Run the network on an image, uint8 (3, h, w), or on a clip, (3, frames, h, w), and record its attention."""
    view = predictor.view({"image": image})["image"]
    return SeenImage(name, (image.shape[-2], image.shape[-1]), view, *predict_recorded(predictor, view))


def matching_sites(recordings: Recordings, sites: str) -> list[SiteRecording]:
    """The recordings of the sites whose path matches a pattern.

    Raises:
        FovealError: none does.
    """
    chosen = [
        recording
        for name, recording in recordings.items()
        if fnmatchcase(name, sites) or fnmatchcase(name, f"{sites}.*")
    ]
    if not chosen:
        raise FovealError(f"sites must match one of {', '.join(recordings)}, got {sites!r}")
    return chosen


class PictureFolder:
    """Draws every attention site of images, or of clips, into one folder.

    Args:
        sites: only sites whose path matches.
        point: (y, x) in pixels of the image, or (t, y, x) of the clip as the network sees it, whose attention row is
            drawn; by default at each site the most distinct one.
        cam: also draw Grad-CAM.
    """

    def __init__(
        self, predictor: Predictor, folder: Path, *, sites: str, point: tuple[int, ...] | None, cam: bool
    ) -> None:
        self.predictor, self.folder, self.sites, self.point, self.cam = predictor, folder, sites, point, cam
        self.unique = UniqueNames()

    def draw(self, image: SeenImage) -> int:
        """Draw all there is of one image; the number of pictures.

        Raises:
            FovealError: no site matches, or the point lies outside of what the network sees.
        """
        point = self._seen_point(image)
        named = is_image_name(image.name) or is_video_name(image.name)
        stem = self.unique(_shortened(Path(image.name).stem if named else image.name))
        if image.view.ndim == 4:
            save_picture(image.answer.draw(image.view), self.folder / f"{stem}--clip.png")
        figures: dict[str, Figure] = {}
        class_map = getattr(image.answer, "class_map", None)
        if class_map is not None:
            info = self.predictor.info
            figures["classes"] = draw.draw_segmentation(
                image.view, class_map, info.classes, self.predictor.name
            )
        for recording in matching_sites(image.recordings, self.sites):
            for kind, figure in self._figures(recording, image, point).items():
                figures[f"{recording.name}--{kind}"] = figure
        for kind, figure in figures.items():
            save_figure(figure, self.folder / f"{stem}--{kind}.png")
        return len(figures) + (image.view.ndim == 4)

    def _seen_point(self, image: SeenImage) -> tuple[int, ...] | None:
        """The point in the view."""
        if self.point is None:
            return None
        if image.view.ndim == 3:
            return self.predictor.point(image.size, (self.point[0], self.point[1]))
        frames, height, width = image.view.shape[1:]
        if not all(at < side for at, side in zip(self.point, (frames, height, width), strict=True)):
            raise FovealError(
                f"query must lie inside the clip of {frames} frames of {height}x{width} that the network sees, got "
                f"{','.join(map(str, self.point))}"
            )
        return self.point

    def _figures(
        self, recording: SiteRecording, image: SeenImage, point: tuple[int, ...] | None
    ) -> dict[str, Figure]:
        shows, view = recording.shows(), image.view
        figures: dict[str, Figure] = {}
        if "channel_gate" in shows:
            figures["gates"] = draw.draw_gates(recording)
        if "spatial_mask" in shows:
            figures["mask"] = draw.draw_mask(recording, view)
        if "rows" in shows:
            query = point if point is not None else recording.pixel(recording.most_distinct_query())
            if view.ndim == 4:
                figures["row"] = draw.draw_clip_rows(recording, view, (query[0], query[1], query[2]))
            else:
                figures["row"] = draw.draw_rows(recording, view, [query])
                figures["row-grid"] = draw.draw_row_grid(recording, view)
        if "channel_matrix" in shows:
            figures["channels"] = draw.draw_channels(recording)
        if self.cam and not recording.tokens:
            prepared = self.predictor.prepare(view)[None].to(self.predictor.device)
            cams, _ = grad_cam(self.predictor.net, prepared, [recording.name])
            label = image.answer.labels[0][0]
            figures["grad-cam"] = draw.draw_grad_cam(recording, view, cams[recording.name][0], label)
        return figures


def _shortened(stem: str) -> str:
    """Short enough for a file name with the site and the kind behind it, in any writing."""
    return stem.encode("utf-8", "surrogateescape")[:LONGEST_STEM].decode("utf-8", "ignore")


def save_picture(picture: Any, path: Path) -> None:
    """Write a picture, uint8 (h, w, 3), as PNG, whole or not at all."""
    from PIL import Image

    atomic_write(path, lambda temporary: Image.fromarray(picture).save(temporary, format="PNG"))


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file, whole or not at all."""
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


class PageFile:
    """One HTML file with the maps of the first images inside, gathered image by image."""

    def __init__(self, predictor: Predictor, sites: str = "*") -> None:
        self.predictor, self.sites = predictor, sites
        self._images: list[dict[str, Any]] = []
        self._count = 0

    def add(self, image: SeenImage) -> None:
        """Take up what the page shows of an image; of more than `PAGE_IMAGES` the rest are counted alone."""
        self._count += 1
        if self._count <= PAGE_IMAGES:
            # a network of which the answers alone show something has no sites
            shown = matching_sites(image.recordings, self.sites) if len(image.recordings) else []
            payload = image_payload(self.predictor, image.name, image.view, image.answer, shown, rows=True)
            self._images.append({"name": image.name, "networks": [payload]})

    def write(self, path: Path) -> str:
        """Write the file; what to print."""
        more = self._count > PAGE_IMAGES
        note = f"This file holds the first {PAGE_IMAGES} of {self._count} images." if more else ""
        text = page_with(self._images, note)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        size = f"{len(text) / 1e6:.1f} MB" if len(text) >= 1e5 else f"{len(text) / 1e3:.0f} kB"
        return f"{path}: {size}, opens without a network"


def write_site_scores(
    predictor: Predictor, batches: list[dict[str, Tensor]], folder: Path, sites: str
) -> list[SiteScore]:
    """Measure every site over batches; write scores.csv, scores.json and, where labels are known, gates by class."""
    scores = score_sites(predictor.net, batches, sites=sites)
    write_scores(scores, folder)
    if all("label" in batch for batch in batches):
        profile = gate_profile(predictor.net, batches, len(predictor.info.classes))
        if profile:
            figure = draw.draw_gate_profile(profile, predictor.info.classes, predictor.name)
            save_figure(figure, folder / "gates-by-class.png")
    return scores
