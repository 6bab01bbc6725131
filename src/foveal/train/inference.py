"""Use trained weights: figures on a data set, labels for files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.checkpoint import load, read_info
from foveal.data import decode_image, eval_transform
from foveal.errors import FovealError
from foveal.train.batches import InOrder, make_loader, open_data, worker_count
from foveal.train.classify import count, metrics, wilson_interval

KEPT = ("task", "classes", "image_size", "mean", "std", "data", "data_options")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2")


def task_of(weights: str | os.PathLike[str]) -> str:
    """The task a weights file was trained for; "classify" where it says nothing."""
    return read_info(weights)["info"].get("task", "classify")


def open_weights(
    weights: str | os.PathLike[str], device: str = "auto", task: str = "classify"
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a weights file in eval mode, and what training kept with it.

    Raises:
        ValueError: no file of ours, one that was not written by training (it has no class names), or one of a
            network for another task.
        FileNotFoundError: no such file.
    """
    net = load(weights)
    info: dict[str, Any] = net.foveal_info  # pyright: ignore[reportAssignmentType]
    missing = [name for name in KEPT if name not in info]
    if missing:
        raise FovealError(
            f"the file must hold {', '.join(missing)}, as files of foveal train do, got {weights} without"
        )
    if info["task"] != task:
        functions = {"classify": "evaluate and predict", "segment": "evaluate_masks and predict_masks"}
        raise FovealError(
            f"must be of task {task}, got task {info['task']} in {weights}; "
            f"use {functions.get(info['task'], 'another version of foveal')}"
        )
    return net.eval().requires_grad_(False).to(chosen_device(device)), info


def chosen_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one.

    Raises:
        ValueError: no such device here.

    Example:
        >>> chosen_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FovealError(
            f"must be one this machine has, got {name} ({str(error).splitlines()[0]})"
        ) from None
    return device


@dataclass(frozen=True)
class Evaluation:
    """Figures of one network on one split of a data set.

    Attributes:
        images: how many were classified.
        accuracy, top5: shares in [0, 1].
        interval: 95 % interval of the accuracy from the number of images alone, not from other training runs.
        loss: mean cross-entropy.
        per_class: accuracy of each class that has images.
        skipped: unreadable files with the reason.
    """

    weights: str
    data: str
    split: str
    images: int
    accuracy: float
    interval: tuple[float, float]
    top5: float
    loss: float
    per_class: dict[str, float]
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate(
    weights: str | os.PathLike[str],
    data: str | None = None,
    *,
    split: str = "val",
    data_options: dict[str, Any] | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
) -> Evaluation:
    """Classify every image of a data set and count what is right.

    Args:
        weights: a file of `foveal train`.
        data: as for training; by default the data it was trained on.
        split: "train", "val" or "test".
        data_options: more options of the data set.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ValueError: wrong weights, or data with a class that the network does not know.
    """
    net, info = open_weights(weights, device)
    if data is None:
        data_options = data_options or info["data_options"]
    data = str(data or info["data"])
    dataset = open_data(data, split, data_options or {})
    place = class_places(list(dataset.classes), info["classes"], data)
    transform = eval_transform(info["image_size"], mean=info["mean"], std=info["std"])
    loader = make_loader(
        dataset,
        transform,
        InOrder(len(dataset), batch_size),
        workers=worker_count(workers, info["image_size"]),
    )
    target = next(net.parameters()).device
    sums = torch.zeros(len(info["classes"]), 4, dtype=torch.float64)
    for batch in loader:
        moved = {"image": batch["image"].to(target), "label": place[batch["label"]].to(target)}
        sums += count(net, moved, len(info["classes"])).cpu()
    images, right = int(sums[:, 0].sum()), int(sums[:, 1].sum())
    if images == 0:
        raise FovealError(f"the data must hold at least 1 image, got 0 in {data}, split {split}")
    figures = metrics(sums)
    return Evaluation(
        weights=str(weights),
        data=data,
        split=split,
        images=images,
        accuracy=figures["val_accuracy"],
        interval=wilson_interval(right, images),
        top5=figures["val_top5"],
        loss=figures["val_loss"],
        per_class={c: float(r[1] / r[0]) for c, r in zip(info["classes"], sums, strict=True) if r[0] > 0},
        skipped=dict(dataset.skipped),
    )


def class_places(theirs: Sequence[str], ours: Sequence[str], data: str) -> Tensor:
    """Where each class of a data set stands among the network's: by name, never by number."""
    unknown = [name for name in theirs if name not in ours]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise FovealError(
            f"the data's classes must be among the {len(ours)} of the weights, "
            f"got {', '.join(unknown[:5])}{more} in {data}"
        )
    return torch.tensor([ours.index(name) for name in theirs])


@dataclass(frozen=True)
class Prediction:
    """The labels of one file, most probable first, with their probabilities in [0, 1]."""

    file: str
    labels: list[str]
    probabilities: list[float]


def predict(
    weights: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    *,
    top: int = 5,
    batch_size: int = 32,
    device: str = "auto",
) -> tuple[list[Prediction], dict[str, str]]:
    """Label image files.

    Args:
        weights: a file of `foveal train`.
        paths: files, and folders whose images are taken, sub-folders included.
        top: how many labels to give for each file.

    Returns:
        One prediction for each readable file, in order; and the unreadable files with the reason.

    Raises:
        ValueError: wrong weights, or ``top`` or ``batch_size`` below 1.
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise FovealError(f"{name} must be at least 1, got {value}")
    files = image_files(paths)
    net, info = open_weights(weights, device)
    transform = eval_transform(info["image_size"], mean=info["mean"], std=info["std"])
    target = next(net.parameters()).device
    classes, found, unreadable = info["classes"], [], {}
    for start in range(0, len(files), batch_size):
        images, names = [], []
        for file in files[start : start + batch_size]:
            try:
                images.append(transform({"image": decode_image(file)})["image"])
                names.append(str(file))
            except (ValueError, OSError) as error:
                unreadable[str(file)] = str(error)
        if not images:
            continue
        best = net(torch.stack(images).to(target)).float().softmax(dim=1).topk(min(top, len(classes)), dim=1)
        for name, probabilities, indices in zip(
            names, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            found.append(Prediction(name, [classes[i] for i in indices], probabilities))
    return found, unreadable


def image_files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Files as given; of folders the files with an image suffix, in the order of their names, without repeats.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    return list(dict.fromkeys(file for path in paths for file in _files_of(Path(path))))


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_dir():
        inside = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not inside:
            raise FileNotFoundError(
                f"predict: a folder must hold images ({', '.join(SUFFIXES)}), got none in {path}"
            )
        yield from inside
    elif path.exists():
        yield path
    else:
        raise FileNotFoundError(f"predict: a path must exist, got {path}")
