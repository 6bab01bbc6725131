"""Handwritten digits alone: white on black, of any size and place; what a small generator can learn in minutes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.scenes.render import _draw, sources, uniform
from foveal.data.scenes.rendered import RenderedDataset
from foveal.data.split import SPLITS
from foveal.errors import FovealError

LENGTHS = {"train": 6000, "val": 1000, "test": 1000}
STREAM = 20
# of the image's side, from the smallest to the largest height of a digit
HEIGHTS = (0.75, 0.95)


class Digits(RenderedDataset):
    """One digit an image, enlarged from scikit-learn's 8 x 8: ``image`` (3, size, size) uint8 and ``label``.

    Args:
        split: "train", "val" or "test"; no digit image is in two of them.
        length: number of images; item ``i`` does not depend on it.
        size: height and width in pixels, 16 to 512.
        seed: any integer.

    Raises:
        FovealError: an argument is outside its range.

    Example:
        >>> item = Digits("train", length=8)[3]
        >>> item["image"].shape, 0 <= item["label"] <= 9
        (torch.Size([3, 32, 32]), True)

    Source: scikit-learn's ``load_digits`` (UCI optical recognition of handwritten digits).
    """

    def __init__(
        self, split: str = "train", *, length: int | None = None, size: int = 32, seed: int = 0
    ) -> None:
        digits = [str(digit) for digit in range(10)]
        super().__init__(split, length=length, lengths=LENGTHS, size=size, seed=seed, classes=digits)
        if not 16 <= size <= 512:
            raise FovealError(f"size must be between 16 and 512, got {size}")

    def described(self) -> tuple[Any, ...]:
        return ("digits", self.split, self.length, self.size, self.seed)

    def render(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Draw the given items: tensors as in an item with a leading batch axis.

        Raises:
            IndexError: an index is outside (negative ones count from the end).
        """
        index = self.places(indices)
        glyphs, labels, _ = sources(self.split, self.size)
        which, scale, y, x = uniform(self.seed, STREAM + SPLITS.index(self.split), index, 4).T
        chosen = (which * len(glyphs)).astype(np.int64)
        least, most = (share * self.size for share in HEIGHTS)
        height = least + scale * (most - least)
        opacity = _draw(
            glyphs[chosen],
            (y * (self.size - height))[:, None],
            (x * (self.size - height))[:, None],
            height,
            self.size,
        )
        grey = torch.from_numpy((opacity * 255 + 0.5).astype(np.uint8))
        return {"image": grey.expand(-1, 3, -1, -1).contiguous(), "label": torch.from_numpy(labels[chosen])}
