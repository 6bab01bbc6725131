"""Bundled data: cluttered scenes of handwritten digits on photographs, drawn on the fly from scikit-learn's files.

A scene is a crop of one of two photographs, darkened to a third, with fragments of digits as clutter and one
light digit (or several) to name. What to answer depends on where one looks, and the truth about where is known:
every scene carries the mask and the box of its objects.

Item ``i`` of seed ``s`` is always the same, whoever asks for it, in whatever order and in whatever process:
its random numbers are a hash of ``(s, split, i)``, not the state of a generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from foveal.errors import FovealError

SPLITS = ("train", "val", "test")
LENGTHS = {"train": 4000, "val": 1000, "test": 1000}
# Shares of the digit images and of the photographs' columns: what one split shows, no other split shows.
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}

GLYPH = 8  # rows and columns of a digit of load_digits
FRAGMENT = 4  # rows and columns of a digit that a distractor shows
SMALLEST_DIGIT = 8.0  # pixels; below this a digit cannot be told from another
INK = 0.4  # opacity from which a pixel belongs to the object


class Scenes(Dataset):
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

    mirror = False  # a mirrored digit is no digit: do not augment with flips
    ignore_index = None  # every pixel of a scene has a known class

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
        if split not in SPLITS:
            raise FovealError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if length is None:
            length = LENGTHS[split]
        ranges = {"length": (length, 1, 10**9), "size": (size, 16, 512), "objects": (objects, 1, 64)}
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
        self.split, self.length, self.size, self.seed = split, length, size, seed
        self.objects, self.distractors, self.frames = objects, distractors, frames
        self.digit_size = (float(low), float(high))
        self.classes = [str(digit) for digit in range(10)]
        self.skipped: dict[str, str] = {}
        self._grid = grid

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Several items at once: a DataLoader asks for its whole batch this way."""
        batch = self.render(indices)
        items = []
        for row in range(len(batch["image"])):
            item: dict[str, Any] = {name: values[row] for name, values in batch.items()}
            if "label" in item:
                item["label"] = int(item["label"])
            items.append(item)
        return items

    def as_tensors(self) -> dict[str, Tensor]:
        """The whole split: the items' tensors stacked, ``label`` as int64. For training from memory.

        Example:
            >>> split = Scenes("val", length=50).as_tensors()
            >>> {name: tuple(values.shape) for name, values in split.items()}
            {'image': (50, 3, 32, 32), 'mask': (50, 32, 32), 'label': (50,), 'box_xyxy': (50, 4)}
        """
        # Blocks of about 16 MB of floats stay in the processor's cache and bound the memory.
        block = max(1, (1 << 20) // (self.frames * self.size**2))
        parts = [self.render(range(i, min(i + block, self.length))) for i in range(0, self.length, block)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def render(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Draw the given items: tensors as in an item with a leading batch axis.

        Raises:
            IndexError: an index is outside 0..length-1 (negative ones count from the end).
        """
        index = np.asarray(list(indices), dtype=np.int64)
        if ((index < -self.length) | (index >= self.length)).any():
            raise IndexError(f"indices must be below {self.length}, got {index.tolist()}")
        index = np.where(index < 0, index + self.length, index)
        digits, digit_labels, photographs = _sources(self.split, self.size)
        n, t, size, cells = len(index), self.frames, self.size, self._grid**2

        per_sprite = 9
        sprites = self.distractors + self.objects
        u = _uniform(self.seed, SPLITS.index(self.split), index, 3 + cells + per_sprite * sprites)
        image = _backgrounds(photographs, u[:, :3], size)
        image = np.repeat(image[:, None], t, axis=1)  # (n, t, size, size, 3)
        cell_order = np.argsort(u[:, 3 : 3 + cells], axis=1)
        draws = u[:, 3 + cells :].reshape(n, sprites, per_sprite)

        mask = np.zeros((n, t, size, size), dtype=np.uint8)
        labels, boxes = [], []
        for sprite in range(sprites):
            which, scale, tone, y0, x0, y1, x1, cut_y, cut_x = draws[:, sprite].T
            chosen = (which * len(digits)).astype(np.int64)
            glyph = digits[chosen]
            number = sprite - self.distractors
            if number < 0:  # clutter may lie anywhere
                glyph = _fragment(glyph, cut_y, cut_x)
                room, corner_y, corner_x = float(size), np.zeros(n), np.zeros(n)
            else:
                room = size / self._grid
                cell = cell_order[:, number]
                corner_y, corner_x = cell // self._grid * room, cell % self._grid * room
            height = self.digit_size[0] + scale * (self.digit_size[1] - self.digit_size[0])
            along = np.linspace(0.0, 1.0, t)[None]  # where on its way the sprite is in each frame
            top = (corner_y + (room - height) * y0)[:, None] * (1 - along)
            top = top + (corner_y + (room - height) * y1)[:, None] * along
            left = (corner_x + (room - height) * x0)[:, None] * (1 - along)
            left = left + (corner_x + (room - height) * x1)[:, None] * along
            opacity = _draw(glyph, top, left, height, size)
            brightness = (190 + 65 * tone).astype(np.float32)[:, None, None, None]
            image += opacity[..., None] * (brightness[..., None] - image)
            if number >= 0:
                inside = opacity > INK
                mask[inside] = number + 1
                labels.append(digit_labels[chosen])
                boxes.append(_boxes(inside))

        batch = {
            "image": torch.from_numpy((image + 0.5).astype(np.uint8)).permute(0, 4, 1, 2, 3),
            "mask": torch.from_numpy(mask),
        }
        if t == 1:
            batch = {"image": batch["image"].squeeze(2), "mask": batch["mask"].squeeze(1)}
            boxes = [box[:, 0] for box in boxes]
        batch["image"] = batch["image"].contiguous()
        label = torch.from_numpy(np.stack(labels, axis=1))
        box = torch.from_numpy(np.stack(boxes, axis=1))
        if self.objects == 1:
            return batch | {"label": label[:, 0], "box_xyxy": box[:, 0]}
        return batch | {"labels": label, "boxes_xyxy": box}


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


def _uniform(seed: int, stream: int, index: np.ndarray, draws: int) -> np.ndarray:
    """(len(index), draws) float64 in [0, 1): a hash of (seed, stream, index, draw), so that no draw needs another.

    Source: the SplitMix64 output function of Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
    Generators", 2014, applied once to the stream and once to the counter.
    """

    def mix(z: np.ndarray) -> np.ndarray:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    gamma = np.uint64(0x9E3779B97F4A7C15)
    # Arrays wrap around silently, as meant here; numpy warns of it for scalars.
    key = mix(mix(np.array([seed % 2**64], dtype=np.uint64) + gamma) ^ np.uint64(stream + 1))
    row = mix(key + index.astype(np.uint64) * gamma)[:, None]
    counter = (np.arange(1, draws + 1, dtype=np.uint64) * gamma)[None]
    return (mix(row + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=8)
def _sources(split: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits (n, 8, 8) float32 in 0..1, their labels (n,) int64, photographs (2, h, w, 3) uint8 of this split."""
    from sklearn.datasets import load_digits, load_sample_images

    start, stop = SHARES[split]
    data: Any = load_digits()
    # The file goes writer by writer: a fixed shuffle gives every split all of them.
    order = np.argsort(_uniform(0, 99, np.arange(len(data.target)), 1)[:, 0])
    order = order[round(start * len(order)) : round(stop * len(order))]
    digits = (data.images[order] / 16).astype(np.float32)

    photographs: list[Any] = list(load_sample_images().images)
    # The narrowest region is a fifth of 640 columns: from 64 pixels on, enlarge so that crops still differ.
    if size > 64:
        from PIL import Image

        factor = size / 64
        bigger = [round(side * factor) for side in photographs[0].shape[1::-1]]
        photographs = [np.asarray(Image.fromarray(p).resize((bigger[0], bigger[1]))) for p in photographs]
    stacked = np.stack(photographs)
    width = stacked.shape[2]
    return (
        digits,
        data.target[order].astype(np.int64),
        stacked[:, :, round(start * width) : round(stop * width)],
    )


def _backgrounds(photographs: np.ndarray, u: np.ndarray, size: int) -> np.ndarray:
    """Crops at a third of their brightness, (n, size, size, 3) float32, from draws (n, 3): photograph, top, left."""
    count, height, width, _ = photographs.shape
    which = (u[:, 0] * count).astype(np.int64)
    top = (u[:, 1] * (height - size + 1)).astype(np.int64)
    left = (u[:, 2] * (width - size + 1)).astype(np.int64)
    rows = top[:, None] + np.arange(size)
    columns = left[:, None] + np.arange(size)
    crops = photographs[which[:, None, None], rows[:, :, None], columns[:, None, :]]
    return crops.astype(np.float32) / 3


def _fragment(glyph: np.ndarray, cut_y: np.ndarray, cut_x: np.ndarray) -> np.ndarray:
    """The digits (n, 8, 8) with all but a window of FRAGMENT x FRAGMENT erased."""
    places = GLYPH - FRAGMENT + 1
    y = np.arange(GLYPH) - (cut_y * places).astype(np.int64)[:, None]
    x = np.arange(GLYPH) - (cut_x * places).astype(np.int64)[:, None]
    inside_y, inside_x = (y >= 0) & (y < FRAGMENT), (x >= 0) & (x < FRAGMENT)
    return glyph * (inside_y[:, :, None] & inside_x[:, None, :])


def _draw(glyph: np.ndarray, top: np.ndarray, left: np.ndarray, height: np.ndarray, size: int) -> np.ndarray:
    """Opacity (n, t, size, size) of glyphs (n, 8, 8) enlarged to ``height`` (n,) at ``top``, ``left`` (n, t).

    Bilinear interpolation is separable: rows @ glyph @ columns, with hat functions in rows and columns.
    """

    def hats(start: np.ndarray) -> np.ndarray:
        pixel = np.arange(size) + 0.5
        source = (pixel - start[..., None]) * (GLYPH / height)[:, None, None] - 0.5
        return np.maximum(0, 1 - np.abs(source[..., None] - np.arange(GLYPH))).astype(np.float32)

    return hats(top) @ glyph[:, None] @ hats(left).swapaxes(-1, -2)


def _boxes(inside: np.ndarray) -> np.ndarray:
    """Tight boxes (n, t, 4) float32 x1, y1, x2, y2 around the true pixels of (n, t, h, w)."""
    edges = []
    for axis in (2, 3):  # columns, then rows
        line = np.asarray(inside.any(axis=axis))
        edges.append((line.argmax(axis=-1), line.shape[-1] - line[..., ::-1].argmax(axis=-1)))
    (x1, x2), (y1, y2) = edges
    return np.stack([x1, y1, x2, y2], axis=-1).astype(np.float32)
