"""The images that a person names: a file, a folder, or a data set; and those that a page begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.data import decode_image
from foveal.data.bundled import photograph_files
from foveal.data.sources import BUNDLED
from foveal.data.sources.packed import is_packed
from foveal.errors import FovealError
from foveal.image_files import is_hidden, is_image_name, survey_images, walk_files
from foveal.inference import Predictor
from foveal.tasks import Task, items_of

BATCH = 32
MOST_FILES = 20_000
"""Data with more files are not opened for examples: a page should be there at once."""
# options of data that fetch, or that lead elsewhere: never taken from a weights file
NOT_FROM_WEIGHTS = ("download", "root", "arguments", "cache", "cache_gib")


class NamedImages:
    """Names and images of a source, at most ``limit``, read one after the other as they are iterated over.

    A file is itself; of a folder the first images are taken, of a data set as many spread evenly over it.

    Args:
        read: how a file becomes an image; `foveal.data.decode_image` unless given.

    Attributes:
        notes: what a person should know before: what is left out.
        unreadable: name -> reason; filled by the iteration.

    Raises:
        FovealError: there is no such source; from the iteration, that none of its images can be read.
    """

    def __init__(
        self,
        task: Task,
        source: str,
        split: str,
        limit: int,
        options: dict[str, Any],
        read: Callable[[Any], Any] | None = None,
    ) -> None:
        self.source, self._called = source, items_of(task)
        self.notes: list[str] = []
        self.unreadable: dict[str, str] = {}
        self._data: Any = None
        self._items: list[Any] = []
        path = Path(source)
        stored, find = is_data_set(source), getattr(task, "find_files", None)
        self._read = decode_image if read is None else read
        self._single = path.is_file() and not stored
        if stored:
            self._data = task.open(source, split, options)
            self._items = spread_indices(len(self._data), limit)
            self._names = [f"{path.name}-{split}-{i}" for i in self._items]
            self._leave_out(len(self._data), limit, "spread over the")
        elif path.is_dir() and find is not None:
            files = [Path(name) for name in find(path)]
            self._items, self._names = files[:limit], [one.name for one in files[:limit]]
            self._leave_out(len(files), limit, "the first of")
        elif path.is_dir():
            found = survey_images(path)
            self._items = [path.joinpath(*name.split("/")) for name in found.images[:limit]]
            self._names = [name.replace("/", "-") for name in found.images[:limit]]
            self._leave_out(len(found.images), limit, "the first of")
            self.notes += [f"left out: {path / name}: {reason}" for name, reason in found.left_out.items()]
        elif path.exists():
            self._items, self._names = [path], [path.name]
        else:
            raise FovealError(
                f"source must be an image, a folder or a data set, got {source!r}, which is not there"
            )

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, sample["image"]) for name, sample in self.samples())

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes of a data set; none of files."""
        return [] if self._data is None else self._data.classes

    def samples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Names and samples: the image, and of a data set all that is known of it."""
        count = 0
        for name, item in zip(self._names, self._items, strict=True):
            try:
                sample = self._data[item] if self._data is not None else {"image": self._read(item)}
            except (FovealError, OSError) as error:
                if self._single:
                    raise
                self.unreadable[name] = str(error)
                continue
            count += 1
            yield name, sample
        if not count:
            raise FovealError(f"source must hold an image that can be read, got {self.source} with none")

    def _leave_out(self, there: int, limit: int, which: str) -> None:
        if there > limit:
            self.notes.append(f"{limit} {self._called}, {which} {there} (option images)")


def prepared_batches(predictor: Predictor, images: NamedImages) -> Iterator[dict[str, Tensor]]:
    """Images, or clips, as the network takes them, 32 of one size in a batch.

    Masks and boxes come along where the task says that they are of objects, and labels where the network knows them.
    """
    known = predictor.info.classes
    places = [known.index(name) if name in known else None for name in images.classes]
    labelled = bool(places) and None not in places
    wanted = ("mask", "box_xyxy") if hasattr(predictor.task, "object_mask") else ()
    views = (predictor.view(sample) for _, sample in images.samples())
    for _, same in groupby(views, key=lambda view: view["image"].shape):
        while part := list(islice(same, BATCH)):
            batch = {"image": torch.stack([predictor.prepare(sample["image"]) for sample in part])}
            for key in wanted:
                if key in part[0]:
                    batch[key] = torch.stack([torch.as_tensor(sample[key]) for sample in part])
            if labelled and "label" in part[0]:
                batch["label"] = torch.tensor([places[int(sample["label"])] for sample in part])
            yield {name: value.to(predictor.device) for name, value in batch.items()}


def spread_indices(length: int, limit: int) -> list[int]:
    """At most ``limit`` of the numbers below ``length``, evenly spread.

    Example:
        >>> spread_indices(10, 4)
        [0, 2, 5, 7]
    """
    count = min(limit, length)
    return [i * length // count for i in range(count)]


def is_data_set(source: str) -> bool:
    """Names, Parquet and chunks are data sets, as is a folder of folders; one with images in it is just that."""
    path = Path(source)
    if (
        source in BUNDLED
        or is_packed(source)
        or source.startswith(("torchvision:", "scenes:"))
        or path.suffix in (".parquet", ".csv")
    ):
        return True
    if not path.is_dir():
        return False
    entries = [p for p in path.iterdir() if not is_hidden(p.name)]
    if any(is_image_name(p.name) for p in entries):
        return False
    return any(p.suffix == ".parquet" for p in path.rglob("*")) or any(p.is_dir() for p in entries)


# --------------------------------------------------------------------------------------- what a page begins with


def own_images(predictor: Predictor, count: int = 4) -> tuple[list[tuple[str, Tensor]], str]:
    """A few validation images of the data that the weights name, where these are files of this machine.

    Nothing is fetched, whatever the weights say.

    Returns:
        Names and images, and a line for the terminal: where they are from, or why there are none; empty where the
        weights name no files.
    """
    info, task = predictor.info, predictor.task
    if info.data is None or not Path(info.data).exists():
        return [], ""
    if Path(info.data).is_dir() and len(list(islice(walk_files(info.data), MOST_FILES + 1))) > MOST_FILES:
        return [], f"no examples of {info.data}, which has more than {MOST_FILES} files"
    options = {key: value for key, value in info.data_options.items() if key not in NOT_FROM_WEIGHTS}
    try:
        data = task.open(info.data, "val", options)
        samples = [data[i] for i in spread_indices(len(data), count)]
        named = [
            (f"{Path(info.data).name} {i + 1} ({task.caption(sample, data.classes)})", sample["image"])
            for i, sample in enumerate(samples)
        ]
    except (FovealError, OSError, TypeError) as error:
        return [], f"no examples of {info.data}: {error}"
    return named, f"examples: {len(named)} of {info.data} (val)"


def bundled_images(predictor: Predictor, count: int = 6) -> list[tuple[str, Tensor]]:
    """Scenes and the two photographs of scikit-learn: what the page offers before anyone brings an image.

    Of clips only scenes, those that the weights were trained on where they name any.
    """
    task, data = predictor.task, predictor.info.data
    of_clips = hasattr(task, "example_size")
    try:
        spec = data if of_clips and data is not None and data.startswith("scenes") else "scenes"
        scenes = task.open(spec, "val", {"length": count})
        found = [
            (f"scene {i + 1} ({task.caption(scenes[i], scenes.classes)})", scenes[i]["image"])
            for i in range(count)
        ]
    except FovealError:
        # a task without bundled data
        found = []
    if of_clips:
        return found
    return found + [(file.name, decode_image(file)) for file in photograph_files()]
