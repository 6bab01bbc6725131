"""From a data set to batches of tensors, with augmentation that depends on (seed, epoch, index) alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from foveal.data import open_dataset
from foveal.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from foveal.errors import FovealError
from foveal.train.config import TrainConfig
from foveal.train.recipe import EpochBatches, seed_for

Sample = dict[str, Any]

KEPT_BYTES = 2**28
"""Decoded images that one process keeps in memory, so that a small data set is decoded once."""


class Decoded(Dataset):
    """``data`` with the items asked for first kept in memory, up to ``limit`` bytes of tensors."""

    def __init__(self, data: Any, limit: int = KEPT_BYTES) -> None:
        self.data, self.room = data, limit
        self.kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        missing = [index for index in dict.fromkeys(indices) if index not in self.kept]
        if missing and hasattr(self.data, "__getitems__"):
            read = dict(zip(missing, self.data.__getitems__(missing), strict=True))
        else:
            read = {index: self.data[index] for index in missing}
        samples = [self.kept[index] if index in self.kept else read[index] for index in indices]
        for index, sample in read.items():
            size = sum(value.nbytes for value in sample.values() if isinstance(value, Tensor))
            if size <= self.room:
                self.kept[index] = sample
                self.room -= size
        return samples


class Augmented(Dataset):
    """Items of ``data`` after ``transform``, addressed by (epoch, index).

    torch's random numbers are seeded by (seed, epoch, index) while the transform runs and put back afterwards:
    the same item comes out in whichever process and order it is asked for.
    """

    def __init__(self, data: Any, transform: Callable[[Sample], Sample], seed: int) -> None:
        self.data, self.transform, self.seed = Decoded(data), transform, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        samples = self.data.__getitems__([index for _, index in keys])
        state = torch.default_generator.get_state()
        try:
            return [self._transformed(key, sample) for key, sample in zip(keys, samples, strict=True)]
        finally:
            torch.default_generator.set_state(state)

    def _transformed(self, key: tuple[int, int], sample: Sample) -> Sample:
        torch.default_generator.manual_seed(seed_for(self.seed, "augment", *key))
        return self.transform(sample)


class InOrder:
    """Batches of (0, index) from first to last, the last one incomplete; each process takes its share."""

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if batch_size < 1:
            raise FovealError(f"batch_size must be at least 1, got {batch_size}")
        self.size, self.batch_size, self.rank, self.world = size, batch_size, rank, world

    @property
    def indices(self) -> range:
        return range(self.rank, self.size, self.world)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for i in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[i : i + self.batch_size]]


def open_data(spec: str, split: str, options: dict[str, Any], task: str = "classify") -> Any:
    """`foveal.data.open_dataset` with options that a person typed.

    Raises:
        ValueError: as there, or the value of an option has the wrong type.
    """
    try:
        return open_dataset(spec, split, task=task, **options)
    except TypeError as error:
        raise FovealError(f"data_options must fit {spec}, got {options}: {error}") from error


def class_names(config: TrainConfig, data: dict[str, Any]) -> list[str]:
    """The classes of the parts of a data set, in the order of their numbers.

    Raises:
        ValueError: fewer than 2, not the same in every part, or a part without images.
    """
    classes = list(data["train"].classes)
    if len(classes) < 2:
        raise FovealError(f"the data must have at least 2 classes, got {classes} in {config.data}")
    if list(data["val"].classes) != classes:
        differ = sorted(set(classes) ^ set(data["val"].classes))
        raise FovealError(
            f"training and validation data must have the same classes, got {', '.join(differ)} in one only"
        )
    for part, images in data.items():
        if len(images) == 0:
            raise FovealError(f"the data must hold at least 1 image for {part}, got 0 in {config.data}")
    return classes


def colours_of(net: nn.Module, *, pretrained: bool) -> dict[str, Any]:
    """Mean and standard deviation to normalise by: those the published weights were trained with."""
    body = getattr(net, "backbone", net)
    own = getattr(body, "pretrained_cfg", None) if pretrained else None
    return {"mean": (own or {}).get("mean", IMAGENET_MEAN), "std": (own or {}).get("std", IMAGENET_STD)}


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Stack what a task needs: ``image`` (b, c, h, w), and ``label`` (b,) or ``mask`` (b, h, w) where present."""
    batch = {"image": torch.stack([sample["image"] for sample in samples])}
    if "label" in samples[0]:
        batch["label"] = torch.tensor([int(sample["label"]) for sample in samples])
    if "mask" in samples[0]:
        batch["mask"] = torch.stack([torch.as_tensor(sample["mask"]) for sample in samples])
    return batch


def collate_by_size(samples: Sequence[Sample]) -> list[dict[str, Tensor]]:
    """`collate`, one batch for each size of image and mask among the samples, in the order of their first."""
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        mask = sample.get("mask")
        sizes = (sample["image"].shape, None if mask is None else torch.as_tensor(mask).shape)
        groups.setdefault(sizes, []).append(sample)
    return [collate(group) for group in groups.values()]


def worker_count(asked: int | None, image_size: int) -> int:
    """Reading processes: as asked, else none for images up to 64 pixels, else one a core, 8 at most."""
    if asked is not None:
        return asked
    return 0 if image_size <= 64 else min(os.cpu_count() or 1, 8)


def make_loader(
    data: Any,
    transform: Callable[[Sample], Sample],
    batches: EpochBatches | InOrder,
    *,
    seed: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    by_size: bool = False,
) -> DataLoader:
    """A DataLoader whose content depends on its arguments alone, not on torch's random state or ``workers``.

    Its batches are `collate`'s, or, ``by_size``, the lists of `collate_by_size`.
    """
    return DataLoader(
        Augmented(data, transform, seed),
        batch_sampler=batches,
        collate_fn=collate_by_size if by_size else collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # its own generator: by default a loader draws a number from the global one, and so disturbs it
        generator=torch.Generator().manual_seed(seed),
    )
