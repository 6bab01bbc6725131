"""The verbs ``foveal train``, ``eval`` and ``predict``: from what a person types to a run, figures, labels or masks.

Importing this file imports no torch, so that ``--help`` is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from foveal.errors import FovealError
from foveal.files import write_json, write_text
from foveal.train.config import TrainConfig


def train(config: TrainConfig, resume: str | None = None) -> int:
    """Train a network, with attention blocks if wanted, and keep all it made in one run folder.

    Args:
        config: every option of training.
        resume: Folder of a run that was stopped; it continues as if it never had been.
    """
    from foveal.train.report import summary
    from foveal.train.run import first_process, fit

    result = fit(config, resume=resume)
    if first_process():
        _print(summary(result))
    return 0


def evaluate(
    weights: str,
    data: str | None = None,
    split: Literal["train", "val", "test"] = "val",
    data_options: dict | None = None,
    inference: Literal["whole", "sliding", "multiscale"] = "whole",
    crop: int | None = None,
    stride: int | None = None,
    scales: list[float] | None = None,
    flip: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    out: str | None = None,
) -> int:
    """Measure trained weights on a data set: accuracy, or mIoU of weights that segment.

    Args:
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors.
        data: As for train. Default: the data the weights were trained on.
        split: Which part of the data.
        data_options: More options of the data set.
        inference: To segment: each image whole, in sliding windows, or at several scales; the figures say which.
        crop: sliding: side of the windows, in pixels of images of image_size. Default: that of the training crops.
        stride: sliding: distance of the windows. Default: two thirds of crop.
        scales: multiscale: factors on the size of the image. Default: [0.75,1,1.25,1.5].
        flip: multiscale: also the mirror image at each scale.
        batch_size: Images at a time. Default: 128; to segment, 16 whole images.
        workers: Processes that read images. Default: none for small images, else one a core up to 8.
        device: cpu, cuda or auto.
        out: Also write the figures to this JSON file.
    """
    from dataclasses import asdict

    from foveal.train.inference import evaluate, task_of
    from foveal.train.mask_evaluation import evaluate_masks
    from foveal.train.report import evaluation_table, mask_evaluation_table

    common: dict[str, Any] = {
        "split": split,
        "data_options": data_options,
        "workers": workers,
        "device": device,
    }
    if batch_size is not None:
        common["batch_size"] = batch_size
    ways = _ways(inference, crop, stride, scales, flip)
    if task_of(weights) == "segment":
        result = evaluate_masks(weights, data, **common, **ways)
        _print(mask_evaluation_table(result))
    else:
        _refuse(weights, **ways)
        result = evaluate(weights, data, **common)
        _print(evaluation_table(result))
    if out is not None:
        write_json(Path(out), asdict(result))
    return 0


def predict(
    paths: list[str],
    weights: str,
    format: Literal["csv", "json"] = "csv",
    top: int | None = None,
    inference: Literal["whole", "sliding", "multiscale"] = "whole",
    crop: int | None = None,
    stride: int | None = None,
    scales: list[float] | None = None,
    flip: bool = False,
    out: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> int:
    """Label image files and folders of them, or segment them.

    Labels and probabilities go to the standard output; of weights that segment, masks, colours, overlays and the
    share of each class go to a folder.

    Args:
        paths: Image files, and folders to search for them.
        weights: A weights file of a run, runs/train/NAME/weights/best.safetensors.
        format: csv: one row a file; json: a list, and the unreadable files with the reason.
        top: How many labels a file. Default: 5. Not to segment.
        inference: To segment: each image whole, in sliding windows, or at several scales; classes.json says which.
        crop: sliding: side of the windows, in pixels of images of image_size. Default: that of the training crops.
        stride: sliding: distance of the windows. Default: two thirds of crop.
        scales: multiscale: factors on the size of the image. Default: [0.75,1,1.25,1.5].
        flip: multiscale: also the mirror image at each scale.
        out: Write to this file instead; to segment: to this folder, new or empty, by default runs/predict/MODEL.
        batch_size: Images at a time. Default: 32. Not to segment.
        device: cpu, cuda or auto.
    """
    from foveal.train.inference import predict, task_of
    from foveal.train.report import predictions_text

    labels: dict[str, Any] = {}  # options of weights that classify
    if top is not None:
        labels["top"] = top
    if batch_size is not None:
        labels["batch_size"] = batch_size
    ways = _ways(inference, crop, stride, scales, flip)
    if task_of(weights) == "segment":
        _refuse(weights, **labels)
        return _segment(paths, weights, out, format=format, device=device, **ways)
    _refuse(weights, **ways)
    found, unreadable = predict(weights, paths, device=device, **labels)
    text = predictions_text(found, unreadable, format)
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(Path(out), text)
    return _after_prediction(len(found), unreadable)


def _segment(paths: list[str], weights: str, out: str | None, **options: Any) -> int:
    from foveal.checkpoint import read_info
    from foveal.train.files import free_folder
    from foveal.train.mask_prediction import predict_masks
    from foveal.train.report import predicted_masks_text

    folder = (
        Path(out) if out is not None else free_folder("runs/predict", read_info(weights)["model"]["name"])
    )
    found, unreadable = predict_masks(weights, paths, folder, **options)
    if found:
        _print(predicted_masks_text(found, folder, options["format"]))
    return _after_prediction(len(found), unreadable)


def _ways(
    inference: str, crop: int | None, stride: int | None, scales: list[float] | None, flip: bool
) -> dict[str, Any]:
    """What was asked of the inference of weights that segment; what is left out has its default."""
    asked = {"inference": inference, "crop": crop, "stride": stride, "scales": scales, "flip": flip}
    defaults = {"inference": "whole", "flip": False}
    return {name: value for name, value in asked.items() if value != defaults.get(name)}


def _refuse(weights: str, **options: Any) -> None:
    """Options that mean nothing to a network of this task."""
    from foveal.train.inference import task_of

    if options:
        raise FovealError(
            f"{', '.join(options)} must not be given for task {task_of(weights)}, got it with {weights}"
        )


def _after_prediction(found: int, unreadable: dict[str, str]) -> int:
    """Complain of each unreadable file, and fail where there was no other."""
    for reason in unreadable.values():
        print(f"predict: skipped: {' '.join(reason.split())}", file=sys.stderr)
    if unreadable:
        broken = len(unreadable)
        print(f"predict: {broken} of {found + broken} files could not be read", file=sys.stderr)
    return 0 if found else 2


def _print(shown: Any) -> None:
    """To the standard output, as wide as the terminal, or unwrapped into a file."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(shown)
