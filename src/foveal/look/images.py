"""The images that a person names on the command line: a file, a folder, or a data set; and those that come along."""

from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.data import decode_image, open_dataset
from foveal.errors import FovealError
from foveal.look.network import Network

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
BATCH = 32


def images_of(
    task: str, source: str, split: str, limit: int, options: dict[str, Any]
) -> list[tuple[str, Tensor]]:
    """Names and images, at most ``limit``; unreadable files are named and left out."""
    if is_data_set(source):
        data = open_dataset(source, split, task=task, **options)
        count = min(limit, len(data))
        return [(f"{Path(source).name}-{split}-{i}", data[i]["image"]) for i in range(count)]
    path = Path(source)
    if path.is_file():
        return [(path.name, decode_image(path))]
    if not path.exists():
        raise FovealError(
            f"source must be an image, a folder or a data set, got {source!r}, which is not there"
        )
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if len(files) > limit:
        print(f"the first {limit} of {len(files)} images (option images)")
    found = []
    for file in files[:limit]:
        try:
            found.append((file.relative_to(path).as_posix().replace("/", "-"), decode_image(file)))
        except ValueError as error:
            print(f"skipped: {error}")
    if not found:
        raise FovealError(f"a folder must hold an image that can be read, got {source} with none")
    return found


def batches_of(
    network: Network, source: str, split: str, limit: int, options: dict[str, Any]
) -> list[dict[str, Tensor]]:
    """``limit`` images of a data set, spread evenly over it, as the network takes them: 32 of one size in a batch.

    For segmentation the masks are left out: they hold classes and no object.
    """
    if is_data_set(source):
        data = open_dataset(source, split, task=network.task, **options)
        chosen = sorted({i * len(data) // min(limit, len(data)) for i in range(min(limit, len(data)))})
        samples = [data[i] for i in chosen]
        unknown = [c for c in data.classes if c not in network.classes]
        places = None if unknown else torch.tensor([network.classes.index(c) for c in data.classes])
    else:
        samples = [{"image": image} for _, image in images_of(network.task, source, split, limit, options)]
        places = None
    views = [network.view(sample) for sample in samples]
    batches: list[dict[str, Tensor]] = []
    for _, group in groupby(views, key=lambda view: view["image"].shape):
        same = list(group)
        for part in (same[start : start + BATCH] for start in range(0, len(same), BATCH)):
            batch = {"image": torch.stack([network.prepare(sample["image"]) for sample in part])}
            for key in ("mask", "box_xyxy"):
                if key in part[0] and network.task == "classify":
                    batch[key] = torch.stack([torch.as_tensor(sample[key]) for sample in part])
            if places is not None and "label" in part[0]:
                batch["label"] = places[torch.tensor([int(sample["label"]) for sample in part])]
            batches.append(batch)
    return batches


def is_data_set(source: str) -> bool:
    """Names and Parquet are data sets, and so is a folder of folders; a folder with images in it is just that."""
    path = Path(source)
    if source == "scenes" or source.startswith("torchvision:") or path.suffix == ".parquet":
        return True
    if not path.is_dir():
        return False
    entries = [p for p in path.iterdir() if not p.name.startswith(".")]
    if any(p.suffix.lower() in IMAGE_SUFFIXES for p in entries):
        return False
    return any(p.suffix == ".parquet" for p in path.rglob("*")) or any(p.is_dir() for p in entries)


def bundled_images(count: int = 6, task: str = "classify") -> list[tuple[str, Tensor]]:
    """Scenes and the two photographs of scikit-learn: what the page offers before anyone brings an image."""
    from sklearn.datasets import load_sample_images

    scenes = open_dataset("scenes", "val", task=task, length=count)
    found = []
    for i in range(count):
        digit = f" (digit {scenes[i]['label']})" if task == "classify" else ""
        found.append((f"scene {i + 1}{digit}", scenes[i]["image"]))
    photographs: Any = load_sample_images()
    names = [name.rpartition("/")[2] for name in photographs.filenames]
    return found + [
        (name, torch.tensor(image).permute(2, 0, 1))
        for name, image in zip(names, photographs.images, strict=True)
    ]
