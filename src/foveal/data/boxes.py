"""Boxes around the objects of an image: one target for every format of files, and what is wrong with it, told.

A box is ``x1, y1, x2, y2`` in pixel edges of the upright image: x1, y1 inside, x2, y2 just outside. Nothing is left out
in silence: whatever cannot be taken as it stands becomes a `Finding`, which is counted where data are opened and listed
by `foveal check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.findings import Finding

TOLERANCE = 1.0
"""Pixels by which a box may leave its image, as rounding does, without being told of."""
PER_BOX = ("boxes_xyxy", "original_xyxy", "labels", "crowd", "area", "annotation_ids")
"""Entries of a sample that have one row a box."""


@dataclass(frozen=True)
class BoxedImage:
    """What the annotations say of one image.

    Attributes:
        path: of the image, below the root, with ``/``; or a row of a Parquet file.
        image_id: the annotations' own, or a number from 1 in the order of the images.
        boxes: (n, 4) float64, x1, y1, x2, y2; in pixels, or as shares of width and height if ``relative``.
        labels: (n,) int64, contiguous from 0.
        crowd: (n,) bool: the box holds many objects; not for training, and detections inside are not wrong.
        area: (n,) float64 of the objects in pixels; NaN where the annotations do not say, which means the box's.
        annotation_ids: (n,) int64, the annotations' own, or numbers from 1 over the data set.
        places: where each annotation stands: file and line, or file and number.
        size: (height, width) of the image as the annotations say, None where they do not.
    """

    path: str
    image_id: int | str
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    annotation_ids: np.ndarray
    places: Sequence[str]
    size: tuple[int, int] | None = None
    relative: bool = False

    def chosen(self, keep: np.ndarray) -> BoxedImage:
        """Only the boxes at the true places of ``keep``."""
        if keep.all():
            return self
        rows = {
            name: getattr(self, name)[keep] for name in ("boxes", "labels", "crowd", "area", "annotation_ids")
        }
        return replace(self, **rows, places=[p for p, kept in zip(self.places, keep, strict=True) if kept])


@dataclass
class Annotations:
    """What a reader found for one split.

    Attributes:
        root: what the paths of ``images`` lie below.
        images: one for each image of the split, as the annotations stand.
        classes: names in the order of the labels.
        category_ids: the number that the files have for each class.
        findings: what is wrong with the annotations themselves.
        left_out: name -> why, for images that are not among ``images``.
        divide: whether train and val are to be split off these images.
        notes: what a person should be told once.
        table: the encoded images, where they are rows of a table.
    """

    root: Path
    images: list[BoxedImage]
    classes: list[str]
    category_ids: list[int]
    findings: list[Finding]
    left_out: dict[str, str]
    divide: bool = False
    notes: list[str] = field(default_factory=list)
    table: Any = None


def boxed_image(path: str, image_id: int | str, rows: Sequence[dict[str, Any]], **rest: Any) -> BoxedImage:
    """A `BoxedImage` from one dictionary for each box: ``box``, ``label``, ``id``, ``place`` and, where it is known,
    ``crowd`` and ``area``.

    Example:
        >>> boxed_image("1.png", 1, [{"box": (0, 0, 2, 3), "label": 0, "id": 1, "place": "1.txt:1"}]).boxes.shape
        (1, 4)
    """
    return BoxedImage(
        path,
        image_id,
        boxes=np.array([row["box"] for row in rows], dtype=np.float64).reshape(-1, 4),
        labels=np.array([row["label"] for row in rows], dtype=np.int64),
        crowd=np.array([row.get("crowd", False) for row in rows], dtype=bool),
        area=np.array([row.get("area", np.nan) for row in rows], dtype=np.float64),
        annotation_ids=np.array([row["id"] for row in rows], dtype=np.int64),
        places=[row["place"] for row in rows],
        **rest,
    )


def settled(
    image: BoxedImage, stored: tuple[int, int], orientation: int = 1
) -> tuple[BoxedImage, list[Finding]]:
    """Boxes in pixels of the upright image, inside it, each with an area; and what had to be changed or left out.

    Boxes belong to the upright image, or to the stored pixels where the annotations give the size of these and not of
    the upright image. A box that leaves the image is cut at its border, one wholly outside or without an area is left
    out.

    Args:
        stored: (height, width) of the image's pixels as stored.
        orientation: EXIF, 1 to 8.
    """
    height, width = stored if orientation < 5 else stored[::-1]
    found: list[Finding] = []
    boxes = image.boxes * [width, height, width, height] if image.relative else image.boxes
    if image.size is not None and image.size != (height, width):
        if orientation >= 5 and image.size == stored:
            boxes = turned(boxes, stored, orientation)
            text = (
                "EXIF turns the image and its annotations give the stored size: its boxes are turned with it"
            )
            found.append(Finding("images that EXIF turns", "note", image.path, text, image.path))
        else:
            text = (
                f"the annotations say {image.size[1]}x{image.size[0]} pixels, the image has {width}x{height}; its "
                "boxes belong to another size, or to another image"
            )
            found.append(Finding("sizes that contradict", "error", image.path, text, image.path))
    elif orientation != 1:
        text = "EXIF turns or mirrors the image: its boxes are taken on the upright image"
        found.append(Finding("images that EXIF turns", "note", image.path, text, image.path))

    keep = np.ones(len(boxes), dtype=bool)
    clipped = np.clip(boxes, 0, [width, height, width, height])
    for i, (box, inside) in enumerate(zip(boxes, clipped, strict=True)):
        finding = _wrong(box, inside, image, i)
        if finding is None:
            continue
        found.append(finding)
        keep[i] = finding.kind == "boxes that leave the image"
    settled = replace(image, boxes=clipped, relative=False, size=(height, width)).chosen(keep)
    return settled, [*found, *_repeated(settled), *_tiny(settled)]


def _wrong(box: np.ndarray, inside: np.ndarray, image: BoxedImage, i: int) -> Finding | None:
    where, (x1, y1, x2, y2) = image.places[i], box.tolist()
    shown = f"{x1:g}, {y1:g}, {x2:g}, {y2:g}"
    if not np.isfinite(box).all():
        return Finding("boxes that are no numbers", "warning", where, f"left out, got {shown}", image.path)
    if x2 <= x1 or y2 <= y1:
        text = f"left out: x2 must be above x1 and y2 above y1, got {shown}"
        return Finding("boxes without an area", "warning", where, text, image.path, (x1, y1, x2, y2))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        text = f"left out: wholly outside the image, got {shown}"
        return Finding("boxes outside the image", "warning", where, text, image.path, (x1, y1, x2, y2))
    if np.abs(box - inside).max() > TOLERANCE:
        text = f"cut at the image's border, got {shown}"
        return Finding("boxes that leave the image", "warning", where, text, image.path, (x1, y1, x2, y2))
    return None


def _repeated(image: BoxedImage) -> list[Finding]:
    """Boxes that are there twice, with one class."""
    first: dict[tuple[Any, ...], int] = {}
    found = []
    for i, (box, label) in enumerate(zip(image.boxes.tolist(), image.labels.tolist(), strict=True)):
        before = first.setdefault((label, *box), i)
        if before != i:
            text = f"the same box and class as {image.places[before]}; both are kept"
            found.append(
                Finding(
                    "boxes that are there twice", "warning", image.places[i], text, image.path, tuple(box)
                )
            )
    return found


def _tiny(image: BoxedImage) -> list[Finding]:
    found = []
    for place, box in zip(image.places, image.boxes.tolist(), strict=True):
        width, height = box[2] - box[0], box[3] - box[1]
        if min(width, height) <= 1:
            text = f"{width:g} x {height:g} pixels"
            found.append(
                Finding("boxes of one pixel or less", "warning", place, text, image.path, tuple(box))
            )
    return found


def turned(boxes: np.ndarray, stored: tuple[int, int], orientation: int) -> np.ndarray:
    """Boxes on the stored pixels, (height, width), as boxes on the upright image of an EXIF orientation.

    Example:
        >>> turned(np.array([[0.0, 0, 2, 1]]), (10, 20), 6).tolist()  # a quarter turn clockwise
        [[9.0, 0.0, 10.0, 2.0]]
    """
    height, width = stored
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
    if orientation in (2, 3, 7, 8):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    if orientation >= 5:
        x1, y1, x2, y2 = y1, x1, y2, x2
    return np.stack([x1, y1, x2, y2], axis=-1)


def target_of(image: BoxedImage) -> dict[str, Any]:
    """The entries of a sample, but for the image: tensors, in pixels of the stored image, once `settled`.

    ``boxes_xyxy`` moves with the image when it is transformed, ``original_xyxy`` does not: it is what is evaluated.
    """
    assert image.size is not None
    boxes = torch.from_numpy(image.boxes.astype(np.float32))
    sides = image.boxes[:, 2:] - image.boxes[:, :2]
    area = np.where(np.isnan(image.area), sides[:, 0] * sides[:, 1], image.area)
    return {
        "boxes_xyxy": boxes,
        "original_xyxy": boxes.clone(),
        "labels": torch.from_numpy(image.labels),
        "crowd": torch.from_numpy(image.crowd),
        "area": torch.from_numpy(area.astype(np.float32)),
        "annotation_ids": torch.from_numpy(image.annotation_ids),
        "original_size": torch.tensor(image.size),
        "image_id": image.image_id,
        "file": image.path,
    }


def visible_share(before: Tensor, after: Tensor) -> Tensor:
    """The share of each box's area, (n, 4), that lies in the part ``after`` of it, (n, 4); 0 for boxes without one.

    Example:
        >>> visible_share(torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[0.0, 0, 4, 1]])).tolist()
        [0.25]
    """
    whole = (before[:, 2:] - before[:, :2]).clamp_min(0).prod(1)
    part = (after[:, 2:] - after[:, :2]).clamp_min(0).prod(1)
    return torch.where(whole > 0, part / whole.clamp_min(1e-12), 0.0)
