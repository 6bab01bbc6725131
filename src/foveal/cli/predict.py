"""``foveal predict``: answers for files, videos, cameras and folders that are watched.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import glob
import sys
from pathlib import Path
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.terminal import printable, write_error


def predict(
    weights: str,
    inference: dict[str, Any],
    paths: list[str] | None = None,
    format: Literal["csv", "json"] | None = None,
    out: str | None = None,
    batch_size: int = 32,
    every: int = 1,
    watch: bool = False,
    device: str = "auto",
    blocks: list[str] | None = None,
) -> int:
    """Answer for image files, folders of them, videos and cameras: labels, or masks with pictures.

    Labels and probabilities go to the standard output; of weights that segment, masks, colours, overlays and the
    share of each class go to a folder.

    Args:
        paths: Image files, video files (pip install "foveal[video]"), folders to search for both, or one camera:
            camera:0; none for weights that generate.
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors, or a model with published weights.
        inference: options of the task.
        format: csv: one row a file; json: a list, and the unreadable files with the reason. Default: as the name of
            --out ends, else csv.
        out: Write to this file instead, which must not exist; to segment: to this folder, new or empty, by default
            runs/predict/MODEL.
        batch_size: Images at a time, fewer where they are large.
        every: Of a video or a camera, take each so-many-th frame.
        watch: Answer for the images and videos that come into the one folder that is given, too, until Ctrl-C.
        device: cpu, cuda or auto.
        blocks: Python files with blocks of your own that the weights hold; they are run. Repeatable.
    """
    from foveal.inference import predictor
    from foveal.predict import predict, predict_as_they_come

    # before weights are read
    endless = watch or any(path.startswith("camera:") for path in paths or [])
    paths = [one for path in paths or [] for one in _matching(path)]
    for path in paths:
        if not Path(path).exists() and not endless:
            raise FileNotFoundError(f"a path must exist, got {path}")
    if endless and (len(paths) != 1 or format == "json"):
        raise FovealError(
            f"a camera or --watch answers for one source, as csv, got {len(paths)} paths and {format or 'csv'}"
        )
    if format is None:
        format = "json" if out is not None and out.endswith(".json") else "csv"
    ready = predictor(weights, device, blocks)
    if endless:
        found = predict_as_they_come(
            ready, (paths or [])[0], _print_at_once, out=out, inference=inference, every=every
        )
    else:
        found = predict(
            ready,
            paths or [],
            out=out,
            format=format,
            inference=inference,
            batch_size=batch_size,
            every=every,
        )
    _print_at_once(found.text)
    for name, reason in found.left_out.items():
        write_error(f"predict: left out: {name}: {reason}")
    for reason in found.unreadable.values():
        write_error(f"predict: skipped: {reason}")
    if found.unreadable:
        broken = len(found.unreadable)
        write_error(f"predict: {broken} of {found.count + broken} files could not be read")
    return 0 if found.count else 2


def _matching(path: str) -> list[str]:
    """The files of a pattern that no shell has replaced, as it was quoted or on Windows; a path is itself."""
    if Path(path).exists() or not glob.has_magic(path):
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def _print_at_once(text: str) -> None:
    """As it is for another program, and fit to be looked at for a person."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
