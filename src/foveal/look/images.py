"""The images that a person names: a file, a folder, or a data set; and those that come with the package."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.data import decode_image
from foveal.errors import FovealError
from foveal.image_files import find_images, is_hidden, is_image_name
from foveal.inference import Predictor
from foveal.tasks import Task

BATCH = 32


def named_images(
    task: Task, source: str, split: str, limit: int, options: dict[str, Any]
) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """Names and images, at most ``limit``, and what a person should know: unreadable files, images left out.

    Raises:
        FovealError: there is no such source, or none of its images can be read.
    """
    if is_data_set(source):
        data = task.open(source, split, options)
        count = min(limit, len(data))
        return [(f"{Path(source).name}-{split}-{i}", data[i]["image"]) for i in range(count)], []
    path = Path(source)
    if path.is_file():
        return [(path.name, decode_image(path))], []
    if not path.exists():
        raise FovealError(
            f"source must be an image, a folder or a data set, got {source!r}, which is not there"
        )
    files = [Path(file) for file in find_images(path)]
    notes = []
    if len(files) > limit:
        notes.append(f"the first {limit} of {len(files)} images (option images)")
    found = []
    for file in files[:limit]:
        try:
            found.append((file.relative_to(path).as_posix().replace("/", "-"), decode_image(file)))
        except FovealError as error:
            notes.append(f"skipped: {error}")
    if not found:
        raise FovealError(f"a folder must hold an image that can be read, got {source} with none")
    return found, notes


def prepared_batches(
    predictor: Predictor, source: str, split: str, limit: int, options: dict[str, Any]
) -> list[dict[str, Tensor]]:
    """``limit`` images of a data set, spread evenly over it, as the network takes them: 32 of one size in a batch.

    Masks and boxes come along where the task says that they are of objects, and labels where the network knows them.
    """
    task, places = predictor.task, None
    if is_data_set(source):
        data = task.open(source, split, options)
        chosen = sorted({i * len(data) // min(limit, len(data)) for i in range(min(limit, len(data)))})
        samples = [data[i] for i in chosen]
        if all(c in predictor.info.classes for c in data.classes):
            places = torch.tensor([predictor.info.classes.index(c) for c in data.classes])
    else:
        samples = [{"image": image} for _, image in named_images(task, source, split, limit, options)[0]]
    views = [predictor.view(sample) for sample in samples]
    wanted = ("mask", "box_xyxy") if hasattr(task, "object_mask") else ()
    batches: list[dict[str, Tensor]] = []
    for _, group in groupby(views, key=lambda view: view["image"].shape):
        same = list(group)
        for part in (same[start : start + BATCH] for start in range(0, len(same), BATCH)):
            batch = {"image": torch.stack([predictor.prepare(sample["image"]) for sample in part])}
            for key in wanted:
                if key in part[0]:
                    batch[key] = torch.stack([torch.as_tensor(sample[key]) for sample in part])
            if places is not None and "label" in part[0]:
                batch["label"] = places[torch.tensor([int(sample["label"]) for sample in part])]
            batches.append({name: value.to(predictor.device) for name, value in batch.items()})
    return batches


def is_data_set(source: str) -> bool:
    """Names and Parquet are data sets, and so is a folder of folders; a folder with images in it is just that."""
    path = Path(source)
    if source == "scenes" or source.startswith("torchvision:") or path.suffix == ".parquet":
        return True
    if not path.is_dir():
        return False
    entries = [p for p in path.iterdir() if not is_hidden(p.name)]
    if any(is_image_name(p.name) for p in entries):
        return False
    return any(p.suffix == ".parquet" for p in path.rglob("*")) or any(p.is_dir() for p in entries)


def bundled_images(task: Task, count: int = 6) -> list[tuple[str, Tensor]]:
    """Scenes and the two photographs of scikit-learn: what the page offers before anyone brings an image."""
    from sklearn.datasets import load_sample_images

    try:
        scenes = task.open("scenes", "val", {"length": count})
        found = [
            (f"scene {i + 1} ({task.caption(scenes[i], scenes.classes)})", scenes[i]["image"])
            for i in range(count)
        ]
    except FovealError:
        # a task without bundled data
        found = []
    photographs: Any = load_sample_images()
    names = [name.rpartition("/")[2] for name in photographs.filenames]
    return found + [
        (name, torch.tensor(image).permute(2, 0, 1))
        for name, image in zip(names, photographs.images, strict=True)
    ]
