"""Bundled data: cluttered scenes of handwritten digits on photographs, drawn on the fly from scikit-learn's files.

A scene is a crop of one of two photographs, darkened to a third, with fragments of digits as clutter and one
light digit (or several) to name. What to answer depends on where one looks, and the truth about where is known:
every scene carries the mask and the box of its objects.

Item ``i`` of seed ``s`` is always the same, whoever asks for it, in whatever order and in whatever process:
its random numbers are a hash of ``(s, split, i)``, not the state of a generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveal.data.scenes.render import draw_scenes
from foveal.data.scenes.rendered import RenderedDataset
from foveal.errors import FovealError

LENGTHS = {"train": 4000, "val": 1000, "test": 1000}
# Scenes for segmentation: digits large enough that networks of stride 8 can draw their strokes.
MASK_DEFAULTS = {"size": 64, "objects": 2, "digit_size": (24.0, 30.0)}
MASK_LENGTHS = {"train": 1800, "val": 250, "test": 500}  # each four times the pixels of a scene to classify
SMALLEST_DIGIT = 8.0  # pixels; below this a digit cannot be told from another


class Scenes(RenderedDataset):
    """Scenes of one split. Items are dictionaries of uint8 images and their truth.

    With one object and one frame (the defaults) an item is::

        image     (3, size, size)  uint8
        label     int, the digit 0..9
        mask      (size, size)     uint8, 0 = no object, 1 = the object
        box_xyxy  (4,)             float32, pixel edges: x1, y1 inside, x2, y2 just outside

    With ``objects > 1`` the mask counts the objects 1, 2, ... and ``label``, ``box_xyxy`` are replaced by
    ``labels`` (objects,) and ``boxes_xyxy`` (objects, 4). With ``frames > 1`` the objects and the clutter move in
    straight lines over a still background, and a time axis comes before the height: image (3, t, size, size),
    mask (t, size, size), box_xyxy (t, 4), boxes_xyxy (objects, t, 4).

    Args:
        split: "train", "val" or "test". No digit image and no region of a photograph is in two splits,
            whatever the seed: 60, 20 and 20 % of the digits and of the photographs' columns.
        length: number of scenes; default 4,000 for train, 1,000 for val and test. Item ``i`` does not depend on it.
        size: height and width in pixels, 16 to 512.
        objects: digits in a scene, at least 1. They never overlap: each has its own cell of a square grid.
        distractors: digit fragments in a scene, at least 0. They lie under the objects.
        frames: length of the clip, 1 for still images.
        digit_size: smallest and largest height of a digit in pixels. Default 3/8 to 1/2 of a cell, which is 12 to
            16 pixels of the default 32.
        seed: any integer.

    Raises:
        ValueError: an argument is outside its range, or the digits would be too small to read.

    Example:
        >>> scenes = Scenes("train", length=100)
        >>> item = scenes[7]
        >>> item["image"].shape, item["label"], int(item["mask"].max())
        (torch.Size([3, 32, 32]), 8, 1)
        >>> torch.equal(scenes.as_tensors()["image"][7], item["image"])
        True

    Source: digits from scikit-learn's ``load_digits`` (UCI optical recognition of handwritten digits), photographs
    from ``load_sample_images`` (china.jpg, flower.jpg). Clutter made of fragments as in the cluttered MNIST of
    Mnih et al., "Recurrent Models of Visual Attention", 2014.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        length: int | None = None,
        size: int = 32,
        objects: int = 1,
        distractors: int = 2,
        frames: int = 1,
        digit_size: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        digits = [str(digit) for digit in range(10)]
        super().__init__(split, length=length, lengths=LENGTHS, size=size, seed=seed, classes=digits)
        ranges = {"size": (size, 16, 512), "objects": (objects, 1, 64)}
        ranges |= {"distractors": (distractors, 0, 64), "frames": (frames, 1, 256)}
        for name, (value, least, most) in ranges.items():
            if not least <= value <= most:
                raise FovealError(f"{name} must be between {least} and {most}, got {value}")
        grid = int(np.ceil(np.sqrt(objects)))
        cell = size / grid
        low, high = digit_size if digit_size is not None else (cell * 3 / 8, cell / 2)
        if not SMALLEST_DIGIT <= low <= high <= cell:
            raise FovealError(
                f"digits must be {SMALLEST_DIGIT:g} to {cell:g} pixels high for size={size} with "
                f"objects={objects}, got {low:g} to {high:g}; choose size or digit_size accordingly"
            )
        self.objects, self.distractors, self.frames = objects, distractors, frames
        self.digit_size = (float(low), float(high))

    def described(self) -> tuple[Any, ...]:
        options = (self.split, self.length, self.size, self.objects, self.distractors, self.frames)
        return (*options, self.digit_size, self.seed, self.classes)

    def render(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Draw the given items: tensors as in an item with a leading batch axis.

        Raises:
            IndexError: an index is outside 0..length-1 (negative ones count from the end).
        """
        index = self.places(indices)
        return draw_scenes(
            self.split, index, size=self.size, objects=self.objects, distractors=self.distractors,
            frames=self.frames, digit_size=self.digit_size, seed=self.seed,
        )  # fmt: skip


class SceneMasks(Dataset):
    """``Scenes`` with class masks: 0 = background, 1 + digit. Options as ``Scenes``, other defaults.

    Example:
        >>> item = SceneMasks("train", length=4)[0]
        >>> item["image"].shape, item["mask"].shape, item["mask"].dtype
        (torch.Size([3, 64, 64]), torch.Size([64, 64]), torch.uint8)
    """

    mirror = augment = False
    # no pixel of a scene has it; padding has
    ignore_index = 255

    def __init__(self, split: str = "train", **options: Any) -> None:
        chosen: dict[str, Any] = {**MASK_DEFAULTS, "length": MASK_LENGTHS.get(split), **options}
        self.scenes = Scenes(split, **chosen)
        self.size, self.skipped = self.scenes.size, self.scenes.skipped
        self.left_out, self.notes = self.scenes.left_out, self.scenes.notes
        self.classes = ["background", *self.scenes.classes]
        self.names = self.scenes.names
        self.fingerprint = f"masks-{self.scenes.fingerprint}"

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Tensor]]:
        batch = _with_class_mask(self.scenes.render(indices))
        return [{name: values[row] for name, values in batch.items()} for row in range(len(batch["image"]))]

    def as_tensors(self) -> dict[str, Tensor]:
        """The whole split: ``image`` (n, 3, h, w) and ``mask`` (n, h, w), both uint8."""
        return _with_class_mask(self.scenes.as_tensors())


def _with_class_mask(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"image": batch["image"], "mask": class_mask(batch)}


def class_mask(scenes: dict[str, Any]) -> Tensor:
    """The class of every pixel: 0 = background, 1 + digit on an object.

    Args:
        scenes: an item of ``Scenes``, or its ``as_tensors()``.

    Returns:
        uint8, the shape of ``scenes["mask"]``.

    Example:
        >>> item = Scenes("train", length=8)[0]
        >>> class_mask(item).unique().tolist() == [0, 1 + item["label"]]
        True
    """
    mask = scenes["mask"]
    labels = scenes["labels"] if "labels" in scenes else torch.as_tensor(scenes["label"])[..., None]
    classes = torch.cat([torch.zeros_like(labels[..., :1]), labels + 1], dim=-1)  # by object number
    return classes.gather(-1, mask.flatten(labels.ndim - 1).long()).reshape(mask.shape).to(torch.uint8)
