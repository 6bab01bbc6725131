"""A question that only attention can answer: two coloured digits, and a cue far away that says which one is meant.

The positive control of `foveal compare`. A feature that sees a digit does not see the cue, as long as the network's
receptive field is smaller than the gap between them; what is averaged over the image and read by a linear layer adds
up what each feature says by itself. Such a network can only guess between the two digits, however long it trains. A
network whose features read each other can know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveal.data.scenes.render import OPAQUE, _backgrounds, _boxes, _draw, sources, uniform
from foveal.data.split import SPLITS
from foveal.errors import FovealError

LENGTHS = {"train": 4000, "val": 1000, "test": 1000}
# red and green at equal brightness, as shares of the digit's own
COLOURS = np.array([[1.0, 0.25, 0.25], [0.25, 1.0, 0.25]], dtype=np.float32)
CUE_WIDTH = 5
SMALLEST_DIGIT = 8.0
GAP = 25
"""Pixels between the digits and the cue by default: the receptive field of ``cifar_resnet8``'s last features."""
DRAWS = 16
DIGITS = (0, 1, 4, 7)


class CueScenes(Dataset):
    """Two digits at the left, one red and one green, and a bar at the right edge in one of these colours.

    An item holds ``image`` (3, size, size) uint8, ``label`` (the digit of the bar's colour), ``mask`` (1 on that digit,
    0 elsewhere) and its ``box_xyxy``.

    Args:
        split: "train", "val" or "test"; no digit image and no part of a photograph is in two of them.
        length: number of scenes; item ``i`` does not depend on it.
        size: height and width in pixels.
        gap: columns between the digits' cells and the bar, at least.
        digits: which of 0 to 9 occur; at least two. Few that are easily told apart leave the question to be learned.
        seed: any integer.

    Raises:
        FovealError: the size leaves no room for digits that can be read.

    Example:
        >>> item = CueScenes("train", length=8)[3]
        >>> item["image"].shape, int(item["mask"].max())
        (torch.Size([3, 44, 44]), 1)

    Source: our own; the two digits are those of `foveal.data.Scenes`.
    """

    mirror = augment = False
    ignore_index = None

    def __init__(
        self,
        split: str = "train",
        *,
        length: int | None = None,
        size: int = 44,
        gap: int = GAP,
        digits: Sequence[int] = DIGITS,
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise FovealError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        self.split, self.size, self.gap, self.seed = split, size, gap, seed
        self.length = LENGTHS[split] if length is None else length
        self.cell = min(size - gap - CUE_WIDTH, size // 2)
        if not 1 <= self.length <= 10**9:
            raise FovealError(f"length must be between 1 and {10**9}, got {length}")
        if gap < 0 or size > 512 or self.cell < SMALLEST_DIGIT + 1:
            raise FovealError(
                f"size must leave {SMALLEST_DIGIT + 1:g} columns for the digits beside gap={gap} and a bar of "
                f"{CUE_WIDTH}, and be at most 512, got {size}"
            )
        self.digits = sorted(set(digits))
        if len(self.digits) < 2 or not 0 <= self.digits[0] <= self.digits[-1] <= 9:
            raise FovealError(f"digits must be at least two of 0 to 9, got {list(digits)}")
        self.classes = [str(digit) for digit in self.digits]
        self.skipped: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        batch = self.render(indices)
        return [
            {name: int(values[row]) if name == "label" else values[row] for name, values in batch.items()}
            for row in range(len(batch["image"]))
        ]

    def as_tensors(self) -> dict[str, Tensor]:
        """The whole split: the items' tensors stacked."""
        return self.render(range(self.length))

    @property
    def names(self) -> list[str]:
        """The items' names, in order."""
        return [f"{self.split}/{index}" for index in range(self.length)]

    @property
    def fingerprint(self) -> str:
        """A hash of the options, which are all that decides what the scenes show."""
        text = repr(("cue", self.split, self.length, self.size, self.gap, self.digits, self.seed))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def render(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Draw the given items: tensors as in an item with a leading batch axis.

        Raises:
            IndexError: an index is outside 0..length-1.
        """
        index = np.asarray(list(indices), dtype=np.int64)
        if ((index < 0) | (index >= self.length)).any():
            raise IndexError(f"indices must be below {self.length}, got {index.tolist()}")
        digits, labels, photographs = sources(self.split, self.size)
        used = np.isin(labels, self.digits)
        digits, labels = digits[used], np.searchsorted(self.digits, labels[used])
        u = uniform(self.seed, 10 + SPLITS.index(self.split), index, DRAWS)
        n, size = len(index), self.size
        image = _backgrounds(photographs, u[:, :3], size) / 2
        named = (u[:, 3] < 0.5).astype(np.int64)
        red_above = u[:, 4] < 0.5
        # one digit in the upper half, one in the lower; which colour is where is drawn
        pair, inside_of = [], []
        for place in range(2):
            which, scale, y, x = u[:, 5 + 4 * place : 9 + 4 * place].T
            chosen = (which * len(digits)).astype(np.int64)
            if place:
                # another digit than the first, or the answer would not depend on the cue
                other = np.nonzero(labels[chosen] == pair[0])[0]
                for row in other:
                    chosen[row] = _next_of_another_class(labels, chosen[row])
            height = SMALLEST_DIGIT + scale * (self.cell - SMALLEST_DIGIT)
            top = place * (size / 2) + y * (size / 2 - height)
            opacity = _draw(digits[chosen], top[:, None], (x * (self.cell - height))[:, None], height, size)[
                :, 0
            ]
            colour = np.where(red_above == (place == 0), 0, 1)
            image += opacity[..., None] * (230 * COLOURS[colour][:, None, None] - image)
            pair.append(labels[chosen])
            inside_of.append(opacity > OPAQUE)
        # the bar: in the colour of the digit that is meant, anywhere along the right edge
        meant_colour = np.where(red_above == (named == 0), 0, 1)
        length = size // 2
        start = (u[:, 13] * (size - length)).astype(np.int64)
        rows = np.arange(size)[None]
        bar = (rows >= start[:, None]) & (rows < start[:, None] + length)
        image[:, :, size - CUE_WIDTH :] = np.where(
            bar[:, :, None, None], 230 * COLOURS[meant_colour][:, None, None], image[:, :, size - CUE_WIDTH :]
        )
        label = np.where(named == 0, pair[0], pair[1])
        inside = np.where((named == 0)[:, None, None], inside_of[0], inside_of[1])
        return {
            "image": torch.from_numpy((image + 0.5).astype(np.uint8)).permute(0, 3, 1, 2).contiguous(),
            "mask": torch.from_numpy(inside.astype(np.uint8)),
            "label": torch.from_numpy(label.reshape(n)),
            "box_xyxy": torch.from_numpy(_boxes(inside[:, None])[:, 0]),
        }


def _next_of_another_class(labels: np.ndarray, place: int) -> int:
    """The next digit image of another class, around the end if need be."""
    for step in range(1, len(labels)):
        candidate = (place + step) % len(labels)
        if labels[candidate] != labels[place]:
            return candidate
    raise ValueError("all digits are of one class")
