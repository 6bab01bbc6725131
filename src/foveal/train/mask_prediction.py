"""Segment image files: index masks, colour masks and overlays in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from foveal.data import decode_image, segmentation_eval_transform
from foveal.errors import FovealError
from foveal.files import atomic_write, write_json, write_text
from foveal.palette import coloured, legend, overlay, palette
from foveal.train.files import table_text
from foveal.train.inference import image_files, open_weights
from foveal.train.windows import Inference

FOLDERS = ("masks", "colours", "overlays")
VALUES_AT_ONCE = 2**25  # of logits brought to the size of a photograph


@dataclass(frozen=True)
class MaskPrediction:
    """One segmented file.

    Attributes:
        file: its path.
        name: of its pictures, ``masks/NAME``, ``colours/NAME`` and ``overlays/NAME`` below the folder.
        shares: of the image's pixels, for each class.
    """

    file: str
    name: str
    shares: dict[str, float]


def predict_masks(
    weights: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    format: Literal["csv", "json"] = "csv",
    inference: str = "whole",
    crop: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    device: str = "auto",
) -> tuple[list[MaskPrediction], dict[str, str]]:
    """Segment image files, at their own size.

    ``out`` gets ``masks/`` (PNG, value = class number), ``colours/`` and ``overlays/``, ``legend.png`` and
    ``classes.json`` (numbers, names, colours, and how images went through the network), and ``shares.csv`` or
    ``shares.json``, the share of every class in every file.

    Args:
        weights: a file of `foveal train --task segment`.
        paths: files, and folders whose images are taken, sub-folders included.
        out: a new or empty folder.
        format: of the shares.
        inference, crop, stride, scales, flip: as in `evaluate_masks`.

    Returns:
        One prediction for each readable file, in order; and the unreadable files with the reason. Where no file was
        readable nothing is written.

    Raises:
        ValueError: wrong weights, an option out of its range, or ``out`` holds something already.
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    net, info = open_weights(weights, device, task="segment")
    classes: list[str] = info["classes"]
    way = Inference.of(inference, crop=crop, stride=stride, scales=scales, flip=flip, trained=info)
    files = image_files(paths)
    folder = Path(out)
    _refuse_taken(folder)
    transform = segmentation_eval_transform(info["mean"], info["std"], shorter=info["image_size"])
    target, colours = next(net.parameters()).device, palette(classes)
    found: list[MaskPrediction] = []
    unreadable: dict[str, str] = {}
    taken: set[str] = set()
    for file in files:
        try:
            image = decode_image(file)
        except (ValueError, OSError) as error:
            unreadable[str(file)] = str(error)
            continue
        if not found:
            for kind in FOLDERS:
                (folder / kind).mkdir(parents=True, exist_ok=True)
        logits = way(net, transform({"image": image})["image"][None].to(target))
        class_map = highest(logits, image.shape[-2:])[0].cpu().numpy()
        name = _free_name(file.stem, taken)
        pictures = (
            class_map,
            coloured(class_map, colours),
            overlay(image.permute(1, 2, 0).numpy(), class_map, colours),
        )
        for kind, picture in zip(FOLDERS, pictures, strict=True):
            _write_png(folder / kind / name, picture)
        counts = np.bincount(class_map.ravel(), minlength=len(classes)) / class_map.size
        found.append(MaskPrediction(str(file), name, dict(zip(classes, counts.tolist(), strict=True))))
    if not found:
        return found, unreadable
    used = {"inference": way.described(), "image_size": info["image_size"]}
    _write_classes(folder, classes, colours, used)
    _write_shares(folder, found, unreadable, format)
    return found, unreadable


def highest(logits: Float[Tensor, "b k h w"], size: Sequence[int]) -> UInt8[Tensor, "b H W"]:
    """The class with the highest logit at another size; a few classes at a time, so that photographs fit in memory.

    Example:
        >>> highest(torch.tensor([[[[0.0]], [[1.0]]]]), (2, 2)).tolist()
        [[[1, 1], [1, 1]]]
    """
    b, k = logits.shape[:2]
    together = max(1, VALUES_AT_ONCE // (b * size[0] * size[1]))
    best = torch.full((b, *size), float("-inf"), device=logits.device)
    chosen = torch.zeros((b, *size), dtype=torch.uint8, device=logits.device)
    for first in range(0, k, together):
        part = logits[:, first : first + together].float()
        values, places = F.interpolate(part, tuple(size), mode="bilinear", align_corners=False).max(1)
        better = values > best  # the first of equals, as argmax chooses
        best = torch.where(better, values, best)
        chosen = torch.where(better, (places + first).to(torch.uint8), chosen)
    return chosen


def _refuse_taken(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise FovealError(f"out must be a new or empty folder, got {folder}, which is not empty")
    if any(place.exists() and not place.is_dir() for place in (folder, *folder.parents)):
        raise FovealError(f"out must be a folder, got {folder}, where a file stands in the way")


def _free_name(stem: str, taken: set[str]) -> str:
    """A PNG's name that no file before it has."""
    name, number = f"{stem}.png", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}.png"
    taken.add(name.lower())
    return name


def _write_png(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    atomic_write(path, lambda part: Image.fromarray(picture).save(part, format="PNG"))


def _write_classes(folder: Path, classes: list[str], colours: np.ndarray, used: dict[str, Any]) -> None:
    rows = [
        {"value": i, "name": n, "colour": c}
        for i, (n, c) in enumerate(zip(classes, colours.tolist(), strict=True))
    ]
    write_json(folder / "classes.json", {"classes": rows, **used})
    figure = legend(classes, colours)
    atomic_write(folder / "legend.png", lambda part: figure.savefig(part, format="png", dpi=100))


def _write_shares(folder: Path, found: list[MaskPrediction], unreadable: dict[str, str], format: str) -> None:
    if format == "json":
        listed: list[dict[str, Any]] = [
            {"file": one.file, "mask": one.name, "shares": one.shares} for one in found
        ]
        broken = [{"file": file, "reason": reason} for file, reason in unreadable.items()]
        write_json(folder / "shares.json", {"predictions": listed, "unreadable": broken})
    else:
        rows = [{"file": one.file, "mask": one.name, **one.shares} for one in found]
        write_text(folder / "shares.csv", table_text(rows))
