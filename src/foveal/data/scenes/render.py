"""How the bundled scenes are drawn: digits and clutter on a crop of a photograph, from numbers that are hashes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from foveal.data.bundled import load_digits, load_photographs
from foveal.data.split import SPLITS

# Shares of the digit images and of the photographs' columns: what one split shows, no other split shows.
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
GLYPH = 8  # rows and columns of a digit of load_digits
FRAGMENT = 4  # rows and columns of a digit that a distractor shows
OPAQUE = 0.4  # opacity from which a pixel belongs to the object


def draw_scenes(
    split: str,
    index: np.ndarray,
    *,
    size: int,
    objects: int,
    distractors: int,
    frames: int,
    digit_size: Sequence[float],
    seed: int,
    fewest: int | None = None,
) -> dict[str, Tensor]:
    """Draw the scenes of some numbers; arguments and entries are those of `foveal.data.Scenes`.

    Args:
        index: (n,) int64, which scenes of the split.
        fewest: where given, each scene has a number of objects of its own, from this up to ``objects``, all as likely.

    Returns:
        The entries of an item with a leading batch axis; with ``fewest`` also ``objects`` (n,), how many are there:
        the first ones. The boxes of the others are empty.
    """
    digits, digit_labels, photographs = sources(split, size)
    grid = int(np.ceil(np.sqrt(objects)))
    n, t, cells = len(index), frames, grid**2

    per_sprite = 9
    sprites = distractors + objects
    drawn = 3 + cells + per_sprite * sprites
    # one draw more changes none of those before it
    u = uniform(seed, SPLITS.index(split), index, drawn + 1)
    counts = np.full(n, objects)
    if fewest is not None:
        counts = fewest + (u[:, drawn] * (objects - fewest + 1)).astype(np.int64)
    image = _backgrounds(photographs, u[:, :3], size)
    image = np.repeat(image[:, None], t, axis=1)  # (n, t, size, size, 3)
    cell_order = np.argsort(u[:, 3 : 3 + cells], axis=1)
    draws = u[:, 3 + cells : drawn].reshape(n, sprites, per_sprite)

    mask = np.zeros((n, t, size, size), dtype=np.uint8)
    labels, boxes = [], []
    for sprite in range(sprites):
        which, scale, tone, y0, x0, y1, x1, cut_y, cut_x = draws[:, sprite].T
        chosen = (which * len(digits)).astype(np.int64)
        glyph = digits[chosen]
        number = sprite - distractors
        if number < 0:  # clutter may lie anywhere
            glyph = _fragment(glyph, cut_y, cut_x)
            room, corner_y, corner_x = float(size), np.zeros(n), np.zeros(n)
        else:
            room = size / grid
            cell = cell_order[:, number]
            corner_y, corner_x = cell // grid * room, cell % grid * room
        height = digit_size[0] + scale * (digit_size[1] - digit_size[0])
        along = np.linspace(0.0, 1.0, t)[None]  # where on its way the sprite is in each frame
        top = (corner_y + (room - height) * y0)[:, None] * (1 - along)
        top = top + (corner_y + (room - height) * y1)[:, None] * along
        left = (corner_x + (room - height) * x0)[:, None] * (1 - along)
        left = left + (corner_x + (room - height) * x1)[:, None] * along
        opacity = _draw(glyph, top, left, height, size)
        if fewest is not None and number >= 0:
            opacity = opacity * (number < counts)[:, None, None, None]
        brightness = (190 + 65 * tone).astype(np.float32)[:, None, None, None]
        image += opacity[..., None] * (brightness[..., None] - image)
        if number >= 0:
            inside = opacity > OPAQUE
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
    if fewest is not None:
        return batch | {"labels": label, "boxes_xyxy": box, "objects": torch.from_numpy(counts)}
    if objects == 1:
        return batch | {"label": label[:, 0], "box_xyxy": box[:, 0]}
    return batch | {"labels": label, "boxes_xyxy": box}


def uniform(seed: int, stream: int, index: np.ndarray, draws: int) -> np.ndarray:
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
def sources(split: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits (n, 8, 8) float32 in 0..1, their labels (n,) int64, photographs (2, h, w, 3) uint8 of this split."""
    start, stop = SHARES[split]
    images, labels = load_digits()
    # The file goes writer by writer: a fixed shuffle gives every split all of them.
    order = np.argsort(uniform(0, 99, np.arange(len(labels)), 1)[:, 0])
    order = order[round(start * len(order)) : round(stop * len(order))]
    digits = images[order] / 16

    photographs = load_photographs()
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
        labels[order],
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
