"""Predicted masks as a folder: class numbers, colours, overlays, a legend, and the share of each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from foveal.files import atomic_write, csv_text, write_json, write_text
from foveal.folders import UniqueNames, new_folder
from foveal.model_info import ModelInfo
from foveal.palette import coloured, legend, overlay, palette
from foveal.tasks.segment import SegmentInference
from foveal.tasks.segment.prediction import MaskPrediction

PICTURES = ("masks", "colours", "overlays")


def write_masks(
    predictions: Iterable[tuple[MaskPrediction, Tensor]],
    folder: Path,
    info: ModelInfo,
    inference: SegmentInference,
    format: str,
    unreadable: Mapping[str, str],
) -> tuple[int, str]:
    """Write predictions one after the other; where there is none, nothing is written.

    ``folder`` gets ``masks/`` (PNG, value = class number), ``colours/`` and ``overlays/``, ``legend.png`` and
    ``classes.json`` (numbers, names, colours, and how images went through the network), and ``shares.csv`` or
    ``shares.json``, the share of every class in every file.

    Returns:
        How many predictions there were, and what to print.

    Raises:
        FovealError: ``folder`` holds something already.
    """
    new_folder(folder)
    colours, unique = palette(info.classes), UniqueNames()
    rows: list[dict[str, Any]] = []
    for prediction, image in predictions:
        class_map = prediction.class_map.numpy()
        name = unique(Path(prediction.file).stem, ".png")
        pictures = (
            class_map if class_map.dtype == np.uint8 else class_map.astype(np.uint16),
            coloured(class_map, colours),
            overlay(image.permute(1, 2, 0).numpy(), class_map, colours),
        )
        for kind, picture in zip(PICTURES, pictures, strict=True):
            (folder / kind).mkdir(exist_ok=True)
            write_png(folder / kind / name, picture)
        rows.append({"file": prediction.file, "mask": name, "shares": prediction.shares})
    if not rows:
        folder.rmdir()
        return 0, ""
    _write_classes(folder, info, colours, inference)
    if format == "json":
        broken = [{"file": file, "reason": reason} for file, reason in unreadable.items()]
        write_json(folder / "shares.json", {"predictions": rows, "unreadable": broken})
    else:
        write_text(folder / "shares.csv", csv_text([_flat(row) for row in rows]))
    return len(rows), (
        f"{len(rows)} file{'s' * (len(rows) != 1)} segmented, with a shorter side of {info.image_size} pixels\n"
        f"inference {inference}\n"
        f"class numbers  {folder}/masks\n"
        f"colours        {folder}/colours, explained in {folder}/legend.png and classes.json\n"
        f"overlays       {folder}/overlays\n"
        f"shares         {folder}/shares.{format}\n"
    )


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table; a class that is called as a column gets a name that no column and no other class has.

    Example:
        >>> list(_flat({"file": "1.png", "mask": "1.png", "shares": {"mask": 0.25, "class mask": 0.75}}))
        ['file', 'mask', 'class class mask', 'class mask']
    """
    flat = {"file": row["file"], "mask": row["mask"]}
    for name, share in row["shares"].items():
        column = name
        while column in flat or (column != name and column in row["shares"]):
            column = f"class {column}"
        flat[column] = share
    return flat


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture, uint8 (h, w, 3) or (h, w), or uint16 (h, w), whole or not at all."""
    from PIL import Image

    atomic_write(path, lambda temporary: Image.fromarray(picture).save(temporary, format="PNG"))


def _write_classes(folder: Path, info: ModelInfo, colours: np.ndarray, inference: SegmentInference) -> None:
    rows = [
        {"value": i, "name": name, "colour": colour}
        for i, (name, colour) in enumerate(zip(info.classes, colours.tolist(), strict=True))
    ]
    used = {"inference": inference.to_dict(), "image_size": info.image_size}
    write_json(folder / "classes.json", {"classes": rows, **used})
    figure = legend(info.classes, colours)
    atomic_write(folder / "legend.png", lambda temporary: figure.savefig(temporary, format="png", dpi=100))
