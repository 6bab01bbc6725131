"""What every data set that is drawn has in common: items by number, alone, in a list or all together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveal.data.split import SPLITS
from foveal.errors import FovealError


class RenderedDataset(Dataset):
    """Items that are drawn when they are asked for; a subclass says how, in ``render`` and ``described``.

    Args:
        split: "train", "val" or "test".
        length: number of items; None is that of ``lengths``.
        lengths: by split.
        size: height and width in pixels.
        classes: names in the order of the labels.

    Raises:
        FovealError: the split is unknown, or the length out of its range.
    """

    # mirrored or cropped, they would no longer show what their label says
    mirror = augment = False
    ignore_index = None

    def __init__(
        self,
        split: str,
        *,
        length: int | None,
        lengths: Mapping[str, int],
        size: int,
        seed: int,
        classes: Iterable[str],
    ) -> None:
        if split not in SPLITS:
            raise FovealError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.split, self.size, self.seed, self.classes = split, size, seed, list(classes)
        self.length = lengths[split] if length is None else length
        if not 1 <= self.length <= 10**9:
            raise FovealError(f"length must be between 1 and {10**9}, got {length}")
        self.skipped: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []

    def render(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Draw the given items: tensors as in an item with a leading batch axis."""
        raise NotImplementedError

    def described(self) -> tuple[Any, ...]:
        """The options, which are all that decides what the items show."""
        raise NotImplementedError

    def places(self, indices: Iterable[int]) -> np.ndarray:
        """Indices as int64 from 0 on; negative ones count from the end.

        Raises:
            IndexError: an index is outside.
        """
        index = np.asarray(list(indices), dtype=np.int64)
        if ((index < -self.length) | (index >= self.length)).any():
            raise IndexError(f"indices must be below {self.length}, got {index.tolist()}")
        return np.where(index < 0, index + self.length, index)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Several items at once: a DataLoader asks for its whole batch this way."""
        batch = self.render(indices)
        return [
            {name: int(values[row]) if name == "label" else values[row] for name, values in batch.items()}
            for row in range(len(batch["image"]))
        ]

    def as_tensors(self) -> dict[str, Tensor]:
        """The whole split: the items' tensors stacked, ``label`` as int64. For training from memory.

        Example:
            >>> from foveal.data.scenes import Scenes
            >>> split = Scenes("val", length=50).as_tensors()
            >>> {name: tuple(values.shape) for name, values in split.items()}
            {'image': (50, 3, 32, 32), 'mask': (50, 32, 32), 'label': (50,), 'box_xyxy': (50, 4)}
        """
        # blocks of about 16 MB of floats stay in the processor's cache and bound the memory
        block = max(1, (1 << 20) // (getattr(self, "frames", 1) * self.size**2))
        parts = [self.render(range(i, min(i + block, self.length))) for i in range(0, self.length, block)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @property
    def names(self) -> list[str]:
        """The items' names, in order."""
        return [f"{self.split}/{index}" for index in range(self.length)]

    @property
    def fingerprint(self) -> str:
        """A hash of the options, which are all that decides what the items show."""
        return hashlib.blake2b(repr(self.described()).encode(), digest_size=16).hexdigest()
