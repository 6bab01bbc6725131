"""From files to answers, written as the task writes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.folders import new_file, new_numbered_folder
from foveal.image_files import find_images
from foveal.inference import Predictor, image_files, predictor
from foveal.signals import stop_signals
from foveal.sources import VIDEO_SUFFIXES, Frame, camera_frames, is_camera, watched, with_frames


@dataclass(frozen=True)
class Predicted:
    """What came of predicting files.

    Attributes:
        count: files with an answer.
        unreadable: the others, with the reason.
        left_out: what looks like an image in a folder and is none of the files -> why.
        text: what to print: the answers themselves, or where they are.
        out: the file or folder that was written, if any.
    """

    count: int
    unreadable: dict[str, str]
    text: str
    out: Path | None
    left_out: dict[str, str] = field(default_factory=dict)


def predict(
    weights: str | os.PathLike[str] | Predictor,
    paths: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    format: Literal["csv", "json"] = "csv",
    inference: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    every: int = 1,
    device: str = "auto",
) -> Predicted:
    """Answer for image files: labels as a text, masks as a folder of pictures.

    Args:
        weights: a file of `foveal train`, the name of a model with published weights, or a predictor.
        paths: files, and folders whose images and videos are taken, sub-folders included; none for weights that
            generate. The frames of a video file are images: frame 12 of ``clip.mp4`` is called ``clip#000012.mp4``.
        out: where to write. A text is otherwise returned; a folder is otherwise the first free runs/predict/MODEL.
        format: of the text or of the table in the folder.
        inference: options of the task, such as ``{"top": 3}``.
        batch_size: images at a time, fewer where they are large.
        every: of a video file, take each so-many-th frame. Weights for clips take videos as they are.

    Raises:
        FovealError: wrong weights, an option out of its range, or ``out`` holds something already.
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    _check(batch_size, every, format)
    ready = weights if isinstance(weights, Predictor) else predictor(weights, device)
    left_out: dict[str, str] = {}
    files = image_files(paths, ready.task, also=VIDEO_SUFFIXES, left_out=left_out)
    options = ready.inference_options(inference or {})
    sample = getattr(ready.task, "sample", None)
    if files and sample is not None:
        raise FovealError(f"{ready.name} makes images from noise and takes none, got {files[0]}")
    if not files and sample is None:
        raise FovealError(f"image files or folders must be given, for {ready.name} answers for images")
    place = _place(ready, out)
    unreadable: dict[str, str] = {}
    if sample is not None:
        answers = sample(ready.net, ready.info, options)
    else:
        answers = ready.predict_files(_read(ready, files, every, unreadable), options, unreadable, batch_size)
    count, text = ready.task.write(answers, place, ready.info, options, format, unreadable)
    return Predicted(count, unreadable, text, place if count else None, left_out)


def predict_as_they_come(
    ready: Predictor,
    source: str | os.PathLike[str],
    write: Callable[[str], object],
    *,
    out: str | os.PathLike[str] | None = None,
    inference: Mapping[str, Any] | None = None,
    every: int = 1,
) -> Predicted:
    """Answer for a camera, ``"camera:0"``, or for a folder and what comes into it, until Ctrl-C or SIGTERM.

    Args:
        ready: the network.
        source: a camera or a folder of images and videos. A file counts once it no longer grows.
        write: takes text: the rows of a table of CSV, each as soon as it is known, where the task writes a text.
        out: where rows, or pictures, go instead; as in `predict`.
        inference: options of the task.
        every: of a camera or a video, take each so-many-th frame.

    Raises:
        FovealError: no such camera or folder, or ``out`` holds something already.
    """
    _check(1, every, "csv")
    options = ready.inference_options(inference or {})
    place = _place(ready, out)
    asked: list[bool] = []
    unreadable: dict[str, str] = {}

    def stopped() -> bool:
        return bool(asked)

    with stop_signals(lambda: asked.append(True)):
        if is_camera(source):
            coming = camera_frames(str(source), ready.info.channels, every, stopped)
        elif Path(source).is_dir():
            find = getattr(ready.task, "find_files", partial(find_images, also=VIDEO_SUFFIXES))
            coming = _read(
                ready, watched(Path(source), find, stopped, unreadable), every, unreadable, stopped
            )
        else:
            raise FovealError(f"what is watched must be a folder, or camera:0, got {source}")
        answers = ready.predict_files(coming, options, unreadable, batch_size=1)
        if ready.task.writes_folder:
            count, text = ready.task.write(answers, place, ready.info, options, "csv", unreadable)
            return Predicted(count, unreadable, text, place if count else None)
        count = 0
        with contextlib.nullcontext() if place is None else place.open("x", encoding="utf-8") as file:
            for answer in answers:
                _, text = ready.task.write([answer], None, ready.info, options, "csv", {})
                rows = text if count == 0 else text.partition("\n")[2]
                if file is None:
                    write(rows)
                else:
                    file.write(rows)
                    file.flush()
                count += 1
        return Predicted(count, unreadable, "", place if count else None)


def _check(batch_size: int, every: int, format: str) -> None:
    if batch_size < 1:
        raise FovealError(f"batch_size must be at least 1, got {batch_size}")
    if every < 1:
        raise FovealError(f"every must be at least 1, got {every}")
    if format not in ("csv", "json"):
        raise FovealError(f"format must be csv or json, got {format}")


def _place(ready: Predictor, out: str | os.PathLike[str] | None) -> Path | None:
    """Where answers go: nothing that is there already."""
    place = Path(out) if out is not None else None
    if place is None and ready.task.writes_folder:
        return new_numbered_folder("runs/predict", ready.info.model or "network")
    return new_file(place) if place is not None and not ready.task.writes_folder else place


def _read(
    ready: Predictor,
    files: Iterable[Path | None],
    every: int,
    unreadable: dict[str, str],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterable[Path | Frame | None]:
    """The files; of videos their frames, unless the task takes videos as they are."""
    if hasattr(ready.task, "read_file"):
        return files
    return with_frames(files, ready.info.channels, every, unreadable, stopped)
