"""Files of what a network attends to: a picture of every site, one page with all maps, a table of numbers."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from foveal.errors import FovealError
from foveal.files import atomic_write, write_text
from foveal.folders import UniqueNames
from foveal.image_files import is_image_name
from foveal.inference import Predictor
from foveal.look import draw
from foveal.look.cam import grad_cam
from foveal.look.html import page_with
from foveal.look.payload import image_payload
from foveal.look.profile import gate_profile
from foveal.look.record import Record
from foveal.look.recorded import predict_recorded
from foveal.look.report import write_scores
from foveal.look.score import SiteScore, automatic_query, score_sites

PAGE_IMAGES = 24
"""Images in one page; more would make it slow to open."""


class PictureFolder:
    """Draws every attention site of images into one folder.

    Args:
        sites: only sites whose path matches.
        pixel: (y, x) of the image whose attention row is drawn; by default at each site the most distinct one.
        cam: also draw Grad-CAM.
    """

    def __init__(
        self, predictor: Predictor, folder: Path, *, sites: str, pixel: tuple[int, int] | None, cam: bool
    ) -> None:
        self.predictor, self.folder, self.sites, self.pixel, self.cam = predictor, folder, sites, pixel, cam
        self.unique = UniqueNames()

    def draw(self, name: str, image: Tensor) -> int:
        """Draw all there is of one image; the number of pictures.

        Raises:
            FovealError: no site matches.
        """
        predictor = self.predictor
        view = predictor.view({"image": image})["image"]
        size = (image.shape[1], image.shape[2])
        point = predictor.point(size, self.pixel) if self.pixel is not None else None
        answer, seen = predict_recorded(predictor, view)
        chosen = [
            r
            for r in seen.values()
            if fnmatchcase(r.name, self.sites) or fnmatchcase(r.name, f"{self.sites}.*")
        ]
        if not chosen:
            raise FovealError(f"sites must match one of {', '.join(seen)}, got {self.sites!r}")
        stem, count = self.unique(Path(name).stem if is_image_name(name) else name), 0
        if getattr(answer, "class_map", None) is not None:
            self._save(
                draw.draw_segmentation(view, answer.class_map, predictor.info.classes, predictor.name),
                f"{stem}--classes",
            )
            count += 1
        for record in chosen:
            figures = self._figures(record, view, point)
            if self.cam and not record.tokens:
                cams, _ = grad_cam(
                    predictor.net, predictor.prepare(view)[None].to(predictor.device), [record.name]
                )
                figures["grad-cam"] = draw.draw_grad_cam(
                    record, view, cams[record.name][0], answer.labels[0][0]
                )
            for kind, figure in figures.items():
                self._save(figure, f"{stem}--{record.name}--{kind}")
            count += len(figures)
        return count

    def _figures(self, record: Record, view: Tensor, point: tuple[int, int] | None) -> dict[str, Any]:
        shows = record.shows()
        figures: dict[str, Any] = {}
        if "channel_gate" in shows:
            figures["gates"] = draw.draw_gates(record)
        if "spatial_mask" in shows:
            figures["mask"] = draw.draw_mask(record, view)
        if "rows" in shows:
            query = point if point is not None else record.pixel(automatic_query(record))
            figures["row"] = draw.draw_rows(record, view, [query])
            figures["atlas"] = draw.draw_atlas(record, view)
        if "channel_matrix" in shows:
            figures["channels"] = draw.draw_channels(record)
        return figures

    def _save(self, figure: Any, name: str) -> None:
        save_figure(figure, self.folder / f"{name}.png")


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file, whole or not at all."""
    atomic_write(path, lambda temporary: figure.savefig(temporary, format="png"))


def write_page(predictor: Predictor, samples: list[tuple[str, Tensor]], path: Path) -> str:
    """Write one HTML page with the maps of the first images inside; returns what to print."""
    images = []
    for name, image in samples[:PAGE_IMAGES]:
        view = predictor.view({"image": image})["image"]
        payload = image_payload(predictor, name, view, *predict_recorded(predictor, view), rows=True)
        images.append({"name": name, "networks": [payload]})
    more = len(samples) > PAGE_IMAGES
    text = page_with(
        images, f"This file holds the first {PAGE_IMAGES} of {len(samples)} images." if more else ""
    )
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
