"""Two controls of the instrument: a question that only attention can answer, and one that needs none.

With the cue there are two coloured patches, and a bar far away says by its colour which of them is meant. A feature
that sees a patch does not see the bar, as long as the network's receptive field is smaller than the gap between them;
what is averaged over the image and read by a linear layer adds up what each feature says by itself. Such a network can
only guess between the two patches, however long it trains. A network whose features read each other can know.

Without the cue there is one patch, and the bar's colour means nothing: every network can answer, and no block can add
to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.scenes.render import _backgrounds, _boxes, sources, uniform
from foveal.data.scenes.rendered import RenderedDataset
from foveal.data.split import SPLITS
from foveal.errors import FovealError

LENGTHS = {"train": 2000, "val": 500, "test": 1000}
PATTERNS = ("rows", "columns", "checks", "plain")
"""What a patch shows: stripes along or across, squares, or one colour."""
# red and green at equal brightness
COLOURS = 230 * np.array([[1.0, 0.15, 0.15], [0.15, 1.0, 0.15]], dtype=np.float32)
PATCH = 8
"""Pixels of a patch's side."""
CUE_WIDTH = 5
GAP = 13
"""Columns between patches and cue by default: what a feature of ``cifar_resnet8`` with two stages sees."""
DRAWS = 12


class CueScenes(RenderedDataset):
    """Two patterned patches at the left, one red and one green, and a bar at the right edge in one of these colours.

    An item holds ``image`` (3, size, size) uint8, ``label`` (the pattern of the patch in the bar's colour), ``mask``
    (1 on that patch, 0 elsewhere) and its ``box_xyxy``. The ground is a darkened photograph.

    Args:
        split: "train", "val" or "test"; no part of a photograph is in two of them.
        length: number of scenes; item ``i`` does not depend on it.
        size: height and width in pixels.
        gap: columns between the patches and the bar, at least.
        cue: False leaves one patch and a bar of either colour, which says nothing.
        seed: any integer.

    Raises:
        FovealError: the size leaves no room for the patches.

    Example:
        >>> item = CueScenes("train", length=8)[3]
        >>> item["image"].shape, int(item["mask"].sum())
        (torch.Size([3, 26, 26]), 64)

    Source: our own.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        length: int | None = None,
        size: int = PATCH + GAP + CUE_WIDTH,
        gap: int = GAP,
        cue: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(split, length=length, lengths=LENGTHS, size=size, seed=seed, classes=PATTERNS)
        self.gap, self.cue = gap, cue
        self.columns = size - gap - CUE_WIDTH
        if gap < 0 or not min(self.columns, size // 2) >= PATCH or size > 512:
            raise FovealError(
                f"size must leave {PATCH} columns for the patches beside gap={gap} and a bar of {CUE_WIDTH}, be at "
                f"least {2 * PATCH} and at most 512, got {size}"
            )

    def described(self) -> tuple[Any, ...]:
        return ("patches", self.split, self.length, self.size, self.gap, self.cue, self.seed)

    def render(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Draw the given items: tensors as in an item with a leading batch axis.

        Raises:
            IndexError: an index is outside 0..length-1.
        """
        index = np.asarray(list(indices), dtype=np.int64)
        if ((index < 0) | (index >= self.length)).any():
            raise IndexError(f"indices must be below {self.length}, got {index.tolist()}")
        _, _, photographs = sources(self.split, self.size)
        u = uniform(self.seed, 20 + SPLITS.index(self.split), index, DRAWS)
        image = _backgrounds(photographs, u[:, :3], self.size) / 2
        upper_is_meant, red_is_upper = u[:, 3] < 0.5, u[:, 4] < 0.5
        # two different patterns, or the answer would not depend on the cue
        first = _choice(u[:, 5], len(PATTERNS))
        second = (first + 1 + _choice(u[:, 6], len(PATTERNS) - 1)) % len(PATTERNS)
        meant = np.zeros((len(index), self.size, self.size), dtype=bool)
        for upper, pattern in ((True, first), (False, second)):
            shown = self.cue | (upper_is_meant == upper)
            colour = np.where(red_is_upper == upper, 0, 1)
            top = (0 if upper else self.size // 2) + _choice(u[:, 7 + upper], self.size // 2 - PATCH + 1)
            left = _choice(u[:, 9 + upper], self.columns - PATCH + 1)
            inside = _rectangles(top, left, PATCH, PATCH, self.size) & shown[:, None, None]
            lit = inside & _patterns(pattern, top, left, self.size)
            image[inside] = 0
            image = np.where(lit[..., None], COLOURS[colour][:, None, None], image)
            meant |= inside & (upper_is_meant == upper)[:, None, None]
        # of either colour where it is no cue
        red = red_is_upper == upper_is_meant if self.cue else u[:, 11] < 0.5
        image[:, :, self.size - CUE_WIDTH :] = COLOURS[np.where(red, 0, 1)][:, None, None]
        return {
            "image": torch.from_numpy((image + 0.5).astype(np.uint8)).permute(0, 3, 1, 2).contiguous(),
            "mask": torch.from_numpy(meant.astype(np.uint8)),
            "label": torch.from_numpy(np.where(upper_is_meant, first, second)),
            "box_xyxy": torch.from_numpy(_boxes(meant[:, None])[:, 0]),
        }


def local_scenes(
    split: str = "train", *, length: int | None = None, size: int = PATCH + GAP + CUE_WIDTH, seed: int = 0
) -> CueScenes:
    """One patch and a bar that says nothing: what every network can answer without attention.

    Example:
        >>> local_scenes("val", length=4).cue
        False
    """
    return CueScenes(split, length=length, size=size, cue=False, seed=seed)


def _choice(u: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers below ``count`` from numbers in [0, 1)."""
    return (u * count).astype(np.int64)


def _rectangles(top: np.ndarray, left: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """True inside rectangles (n, size, size)."""
    rows, columns = np.arange(size)[None, :, None], np.arange(size)[None, None]
    top, left = top[:, None, None], left[:, None, None]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


def _patterns(pattern: np.ndarray, top: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
    """Where the patterns are lit (n, size, size), in stripes and squares of two pixels from the patch's corner."""
    rows = (np.arange(size)[None, :, None] - top[:, None, None]) // 2 % 2 == 1
    columns = (np.arange(size)[None, None] - left[:, None, None]) // 2 % 2 == 1
    rows, columns = np.broadcast_arrays(rows, columns)
    every = np.stack([rows, columns, rows != columns, np.ones_like(rows)])
    return every[pattern, np.arange(len(pattern))]
