"""What a trained network says of a few validation images, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from foveal.data.loader import transformed_item
from foveal.files import atomic_write
from foveal.model_info import ModelInfo
from foveal.tasks import Task

COLUMNS, ROWS = 4, 3
TILE = 360
"""Pixels of the longer side of one image in the picture."""
GAP = 8


@torch.no_grad()
def write_examples(path: Path, net: nn.Module, task: Task, info: ModelInfo, data: Any) -> None:
    """Draw the answers of a network, in eval mode, for images spread evenly over a data set.

    The picture is white between the images, which are reduced to fit where they are larger than their place.
    """
    step = max(1, len(data) // (COLUMNS * ROWS))
    chosen = range(0, len(data), step)[: COLUMNS * ROWS]
    device = next(net.parameters()).device
    transform = task.eval_transform(info)
    view, normalize = transform.without_normalization(), transform.normalization_alone()
    tiles = []
    for index in chosen:
        image = data[index]["image"]
        seen = transformed_item(data, index, view)["image"]
        prepared = normalize.normalize(seen)
        (answer,) = task.predict(net, prepared[None].to(device), [(image.shape[-2], image.shape[-1])], info)
        if not isinstance(image, torch.Tensor):
            # of a video what the network sees, at its size
            image = seen
        shown = image if image.shape[0] == 3 else image.expand(3, -1, -1)
        tiles.append(_reduced(answer.draw(shown)))
    picture = contact_sheet(tiles, COLUMNS)
    atomic_write(path, lambda temporary: _save(temporary, picture))


def _reduced(picture: np.ndarray) -> np.ndarray:
    from PIL import Image

    longest = max(picture.shape[:2])
    if longest <= TILE:
        return picture
    height, width = (max(1, round(side * TILE / longest)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def contact_sheet(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Pictures, uint8 (h, w, 3), in rows, each in the upper left of a cell that takes the largest of them.

    Example:
        >>> contact_sheet([np.zeros((4, 6, 3), dtype=np.uint8)] * 3, 2).shape
        (32, 36, 3)
    """
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (
            GAP + (place * (side + GAP))
            for place, side in zip(divmod(number, columns), (height, width), strict=True)
        )
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def _save(path: Any, picture: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path, format="PNG")
