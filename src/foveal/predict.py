"""From files to answers, written as the task writes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.folders import new_numbered_folder
from foveal.inference import Predictor, image_files, predictor


@dataclass(frozen=True)
class Predicted:
    """What came of predicting files.

    Attributes:
        count: files with an answer.
        unreadable: the others, with the reason.
        text: what to print: the answers themselves, or where they are.
        out: the file or folder that was written, if any.
    """

    count: int
    unreadable: dict[str, str]
    text: str
    out: Path | None


def predict(
    weights: str | os.PathLike[str] | Predictor,
    paths: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    format: Literal["csv", "json"] = "csv",
    inference: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    device: str = "auto",
) -> Predicted:
    """Answer for image files: labels as a text, masks as a folder of pictures.

    Args:
        weights: a file of `foveal train`, the name of a model with published weights, or a predictor.
        paths: files, and folders whose images are taken, sub-folders included; none for weights that generate.
        out: where to write. A text is otherwise returned; a folder is otherwise the first free runs/predict/MODEL.
        format: of the text or of the table in the folder.
        inference: options of the task, such as ``{"top": 3}``.
        batch_size: images at a time, fewer where they are large.

    Raises:
        FovealError: wrong weights, an option out of its range, or ``out`` holds something already.
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    if batch_size < 1:
        raise FovealError(f"batch_size must be at least 1, got {batch_size}")
    if format not in ("csv", "json"):
        raise FovealError(f"format must be csv or json, got {format}")
    ready = weights if isinstance(weights, Predictor) else predictor(weights, device)
    files = image_files(paths, ready.task)
    options = ready.inference_options(inference or {})
    sample = getattr(ready.task, "sample", None)
    if files and sample is not None:
        raise FovealError(f"{ready.name} makes images from noise and takes none, got {files[0]}")
    if not files and sample is None:
        raise FovealError(f"image files or folders must be given, for {ready.name} answers for images")
    place = Path(out) if out is not None else None
    if place is None and ready.task.writes_folder:
        place = new_numbered_folder("runs/predict", ready.info.model or "network")
    elif place is not None and not ready.task.writes_folder and place.exists():
        raise FovealError(f"out must not exist yet, got {place}, which would be overwritten")
    unreadable: dict[str, str] = {}
    if sample is not None:
        answers = sample(ready.net, ready.info, options)
    else:
        answers = ready.predict_files(files, options, unreadable, batch_size)
    count, text = ready.task.write(answers, place, ready.info, options, format, unreadable)
    return Predicted(count, unreadable, text, place if count else None)
