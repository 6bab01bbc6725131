"""The images of a comparison as plain arrays in a folder: decoded once, mapped into the memory of every worker.

Where the items of a split have equal shapes they lie in one array for each entry, and a run takes its batches from
memory. Where they differ they lie one behind the other, and are taken apart again item by item.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveal.data import JointTransform
from foveal.data.joint import Rescale
from foveal.data.loader import chunks_of, transformed_item
from foveal.errors import FovealError
from foveal.files import write_json

if TYPE_CHECKING:
    from foveal.compare.job import Job

Sample = dict[str, Any]
PARTS = ("train", "val")
ITEM_BYTES = 2**24
"""Of the images that are asked for together."""
LARGEST_STORED = 2
"""Images for random crops are stored with a shorter side of at most so many times the network's size."""


def store_images(data: Mapping[str, Any], job: Job, folder: Path) -> None:
    """Decode the images of a comparison once, at the size at which they are needed.

    Where a split's transform draws no random numbers, what it makes of an image is stored. Otherwise the image itself
    is, or where it is much larger than the network sees it, a smaller copy.
    """
    config, info = job.config, job.info
    task = config.the_task
    for part in PARTS:
        images = data[part]
        transform = task.eval_transform(info)
        if part == "train":
            transform = task.train_transform(images, info, config.options, config.augment)
        resize = transform.without_normalization()
        save_arrays(
            images, folder, part, shrunk(LARGEST_STORED * info.image_size) if transform.random else resize
        )


def shrunk(most: int) -> Any:
    """A transform that brings an image to a shorter side of ``most`` pixels if it is larger."""
    smaller = JointTransform([Rescale(shorter=most)], normalise=False)

    def resized(sample: Sample) -> Sample:
        if not isinstance(sample["image"], Tensor):
            # a video: all of its frames
            sample = {**sample, "image": sample["image"][:]}
        return smaller(sample) if min(sample["image"].shape[-2:]) > most else sample

    return resized


def save_arrays(data: Any, folder: Path, split: str, resize: Callable[[Sample], Sample]) -> None:
    """Write the items of ``data`` after ``resize``, which leaves images as bytes.

    Raises:
        OSError: the disk has no room for it.
    """
    first = _arrays(transformed_item(data, 0, resize))
    needed = len(data) * sum(value.nbytes for value in first.values())
    free = shutil.disk_usage(folder).free
    # writing to a full disk through a mapped file would end the process
    if needed > free:
        raise OSError(errno.ENOSPC, f"the images need {needed:,} bytes, {free:,} are free", str(folder))
    files = {name: (folder / f"{split}-{name}.bin").open("wb") for name in first}
    shapes: dict[str, list[list[int]]] = {name: [] for name in first}
    try:
        for i, item in enumerate(_items(data, resize)):
            sample = _arrays(item)
            if sample.keys() != first.keys():
                raise FovealError(
                    f"all items of {split} must have the same entries, got {sorted(sample)} in item {i}"
                )
            for name, value in sample.items():
                files[name].write(value.tobytes())
                shapes[name].append(list(value.shape))
    finally:
        for file in files.values():
            file.close()
    entries = {name: {"dtype": str(first[name].dtype), "shapes": shapes[name]} for name in first}
    chunks = chunks_of(data)
    about = {
        "entries": entries,
        # the order of an epoch is then that of `foveal train`
        "chunks": None if chunks is None else chunks.tolist(),
        "classes": list(data.classes),
        **{
            name: getattr(data, name)
            for name in ("mirror", "augment", "ignore_index", "frames")
            if hasattr(data, name)
        },
    }
    write_json(folder / f"{split}.json", about)


def _items(data: Any, resize: Callable[[Sample], Sample]) -> Iterator[Sample]:
    """All items after ``resize``, in order, several at once where that is quicker and they are small."""
    if hasattr(data, "clip"):
        yield from (transformed_item(data, i, resize) for i in range(len(data)))
        return
    together = max(1, min(256, ITEM_BYTES // max(1, _array(data[0]["image"]).nbytes)))
    for start in range(0, len(data), together):
        indices = range(start, min(start + together, len(data)))
        if hasattr(data, "__getitems__"):
            yield from map(resize, data.__getitems__(list(indices)))
        else:
            yield from (resize(data[i]) for i in indices)


def _arrays(sample: Sample) -> dict[str, np.ndarray]:
    """Everything of a sample that is numbers; names of files are for messages alone."""
    return {name: _array(value) for name, value in sample.items() if not isinstance(value, str)}


def _array(value: Any) -> np.ndarray:
    # not ascontiguousarray, which makes a number an array of one
    return np.asarray(torch.as_tensor(value).numpy(), order="C")


class ArrayDataset(Dataset):
    """The items that `save_arrays` wrote, mapped into memory and read when used.

    Args:
        indices: only these items, in this order.
    """

    def __init__(self, folder: Path, split: str, indices: Sequence[int] | None = None) -> None:
        about = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        self.classes: list[str] = about["classes"]
        self.mirror, self.augment = about.get("mirror", True), about.get("augment", True)
        self.ignore_index = about.get("ignore_index")
        if "frames" in about:
            self.frames: int = about["frames"]
        self.skipped: dict[str, str] = {}
        self._flat: dict[str, Tensor] = {}
        self._shapes: dict[str, list[list[int]]] = {}
        self._starts: dict[str, np.ndarray] = {}
        for name, entry in about["entries"].items():
            mapped = np.memmap(folder / f"{split}-{name}.bin", dtype=entry["dtype"], mode="c")
            self._flat[name] = torch.from_numpy(mapped)
            self._shapes[name] = entry["shapes"]
            sizes = [int(np.prod(shape)) for shape in entry["shapes"]]
            self._starts[name] = np.concatenate([[0], np.cumsum(sizes)])
        stored = len(next(iter(self._shapes.values())))
        self.indices: Sequence[int] = range(stored) if indices is None else indices
        self._all = indices is None
        chunks = about["chunks"]
        self.chunks = None if chunks is None else np.asarray(chunks)[list(self.indices)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return {name: self._value(name, self.indices[index]) for name in self._flat}

    def _value(self, name: str, index: int) -> Any:
        start, end = self._starts[name][index : index + 2]
        value = self._flat[name][start:end].reshape(self._shapes[name][index])
        return value.item() if value.ndim == 0 else value

    def as_tensors(self) -> dict[str, Tensor] | None:
        """Each entry as one tensor (n, ...), or None where the items have different shapes."""
        for shapes in self._shapes.values():
            if any(shape != shapes[0] for shape in shapes):
                return None
        whole = {name: flat.reshape(-1, *self._shapes[name][0]) for name, flat in self._flat.items()}
        chosen = torch.as_tensor(list(self.indices)) if not self._all else slice(None)
        return {name: values[chosen] for name, values in whole.items()}


def fold(length: int, share: float) -> tuple[list[int], list[int]]:
    """Indices below ``length`` in two parts, the second with ``share`` of them, drawn once and for all.

    Example:
        >>> [len(part) for part in fold(10, 0.3)]
        [7, 3]
    """
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0)).tolist()
    second = min(max(1, round(share * length)), length - 1)
    return sorted(order[second:]), sorted(order[:second])


def spread(length: int, most: int) -> Sequence[int]:
    """At most ``most`` indices below ``length``, evenly apart, the first and the last among them.

    Example:
        >>> spread(10, 4)
        [0, 3, 6, 9]
    """
    if length <= most:
        return range(length)
    return torch.linspace(0, length - 1, most).round().long().tolist()
