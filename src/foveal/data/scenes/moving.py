"""Clips that a single frame does not answer: which of two digits moves, and to which side one moves.

In the first, a network that reads frames one by one sees both digits and can only guess which of them is meant: in
every frame either may be anywhere on its way. One that compares frames can know. In the second a clip and its reverse
show the same frames and have different labels: what forgets the order of frames, as attention without positions
does, stays at chance.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.data.scenes.render import _draw, sources, uniform
from foveal.data.scenes.rendered import RenderedDataset
from foveal.data.split import SPLITS
from foveal.errors import FovealError

LENGTHS = {"train": 2000, "val": 500, "test": 1000}
STREAM = 30
DIRECTIONS = ("left", "right")
# of the image's side, the heights of digits: two lie above each other
HEIGHTS = (0.40, 0.48)
DRAWS = 10


class MovingDigits(RenderedDataset):
    """Clips of two digits, one above the other, of which one moves sideways: ``label`` is the class of that one.

    An item holds ``image`` (3, frames, size, size) uint8, white digits on black, and ``label``. The moving digit
    crosses the image from one third to the other, at an even speed; the other one lies at a place drawn like that of
    the moving one in a random frame, so that where a digit is says nothing in any frame. They are of different classes.

    Args:
        split: "train", "val" or "test"; no digit image is in two of them.
        length: number of clips; item ``i`` does not depend on it.
        size: height and width in pixels, 20 to 128.
        frames: of a clip, 2 to 64.
        direction: True leaves the moving digit alone, and the label says whether it moves to the left or to the
            right. A clip and its reverse are as likely, with different labels.
        seed: any integer.

    Raises:
        FovealError: an argument is outside its range.

    Example:
        >>> item = MovingDigits("train", length=8)[3]
        >>> item["image"].shape, 0 <= item["label"] <= 9
        (torch.Size([3, 6, 28, 28]), True)

    Source: our own, with digits from scikit-learn's ``load_digits`` (UCI optical recognition of handwritten digits).
    """

    def __init__(
        self,
        split: str = "train",
        *,
        length: int | None = None,
        size: int = 28,
        frames: int = 6,
        direction: bool = False,
        seed: int = 0,
    ) -> None:
        classes = DIRECTIONS if direction else [str(digit) for digit in range(10)]
        super().__init__(split, length=length, lengths=LENGTHS, size=size, seed=seed, classes=classes)
        for name, value, least, most in (("size", size, 20, 128), ("frames", frames, 2, 64)):
            if not least <= value <= most:
                raise FovealError(f"{name} must be between {least} and {most}, got {value}")
        self.frames, self.direction = frames, direction

    def described(self) -> tuple[Any, ...]:
        return ("moving", self.split, self.length, self.size, self.frames, self.direction, self.seed)

    def render(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Draw the given items: tensors as in an item with a leading batch axis.

        Raises:
            IndexError: an index is outside (negative ones count from the end).
        """
        index = self.places(indices)
        u = uniform(self.seed, STREAM + SPLITS.index(self.split), index, DRAWS)
        glyphs, labels = _digits(self.split)
        moving = (u[:, 0] * len(labels)).astype(np.int64)
        # digits are sorted by class: a step of at least a class further and at most to a class before
        first, end = np.searchsorted(labels, labels[moving]), np.searchsorted(labels, labels[moving], "right")
        others = len(labels) - (end - first)
        still = (end + (u[:, 1] * others).astype(np.int64)) % len(labels)
        height = self.size * (HEIGHTS[0] + u[:, 2] * (HEIGHTS[1] - HEIGHTS[0]))
        upper_moves, to_the_right = u[:, 3] < 0.5, u[:, 4] < 0.5
        along = np.linspace(0.0, 1.0, self.frames)[None]
        when = np.where(to_the_right[:, None], along, 1 - along)
        places = _way(u[:, 5], u[:, 6], when)
        clip = self._drawn(glyphs[moving], height, upper_moves, places)
        if not self.direction:
            frame = np.floor(u[:, 9:] * self.frames)
            place = _way(u[:, 7], u[:, 8], frame / (self.frames - 1))
            clip = clip + self._drawn(glyphs[still], height, ~upper_moves, np.repeat(place, self.frames, 1))
        grey = torch.from_numpy((clip.clip(0, 1) * 255 + 0.5).astype(np.uint8))[:, None]
        label = to_the_right.astype(np.int64) if self.direction else labels[moving]
        return {"image": grey.expand(-1, 3, -1, -1, -1).contiguous(), "label": torch.from_numpy(label)}

    def _drawn(
        self, glyphs: np.ndarray, height: np.ndarray, upper: np.ndarray, places: np.ndarray
    ) -> np.ndarray:
        """Opacity (n, frames, size, size) of digits in their half of the image, at shares of their way (n, frames)."""
        half = self.size / 2
        top = np.where(upper, (half - height) / 2, half + (half - height) / 2)
        left = places * (self.size - height)[:, None]
        return _draw(glyphs, np.repeat(top[:, None], self.frames, 1), left, height, self.size)


def direction_clips(
    split: str = "train", *, length: int | None = None, size: int = 28, frames: int = 6, seed: int = 0
) -> MovingDigits:
    """One digit that moves to the left or to the right: see `MovingDigits`.

    Example:
        >>> direction_clips("val", length=4).classes
        ['left', 'right']
    """
    return MovingDigits(split, length=length, size=size, frames=frames, direction=True, seed=seed)


def _way(start: np.ndarray, end: np.ndarray, when: np.ndarray) -> np.ndarray:
    """Places in 0..1 (n, t) at moments in 0..1 on the way from the first third to the last."""
    first, last = start[:, None] / 3, 2 / 3 + end[:, None] / 3
    return first + when * (last - first)


@lru_cache(maxsize=4)
def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Digits (n, 8, 8) of a split and their labels, sorted by label."""
    glyphs, labels, _ = sources(split, 28)
    order = np.argsort(labels, kind="stable")
    return glyphs[order], labels[order]
