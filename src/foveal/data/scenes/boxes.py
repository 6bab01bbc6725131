"""Scenes of one to four digits with boxes around them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from foveal.data.scenes.dataset import Scenes
from foveal.data.scenes.render import draw_scenes
from foveal.errors import FovealError

BOX_DEFAULTS = {"size": 64, "objects": 4, "digit_size": (12.0, 24.0)}
BOX_LENGTHS = {"train": 4000, "val": 400, "test": 1000}


class SceneBoxes(Dataset):
    """Scenes of 1 to 4 digits, 12 to 24 pixels high, with boxes. Options as ``Scenes``, other defaults.

    Items are those of detection, see `foveal.data.open_dataset`. The number of digits is drawn for each scene, from 1
    up to ``objects``; item ``i`` of a seed is always the same. Ids of images and annotations count from 1 over the
    split, as COCO's do: image ``i`` has id ``i + 1`` and its annotations ``objects * i + 1`` and so on.

    Example:
        >>> scenes = SceneBoxes("train", length=8)
        >>> [len(scenes[i]["labels"]) for i in range(8)]
        [4, 2, 4, 1, 4, 1, 2, 3]
        >>> scenes[3]["boxes_xyxy"].shape, scenes[3]["image_id"]
        (torch.Size([1, 4]), 4)
    """

    mirror = augment = False
    ignore_index = None

    def __init__(self, split: str = "train", **options: Any) -> None:
        chosen: dict[str, Any] = {**BOX_DEFAULTS, "length": BOX_LENGTHS.get(split), **options}
        self.scenes = Scenes(split, **chosen)
        if self.scenes.frames != 1:
            raise FovealError(f"frames must be 1 for scenes with boxes, got {self.scenes.frames}")
        self.size, self.skipped = self.scenes.size, self.scenes.skipped
        self.left_out, self.notes = self.scenes.left_out, self.scenes.notes
        self.classes, self.names = self.scenes.classes, self.scenes.names
        self.category_ids = list(range(len(self.classes)))
        self.fingerprint = f"boxes-{self.scenes.fingerprint}"

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        scenes = self.scenes
        index = np.array([scenes_index(i, len(scenes)) for i in indices], dtype=np.int64)
        batch = draw_scenes(
            scenes.split, index, size=scenes.size, objects=scenes.objects, distractors=scenes.distractors,
            frames=1, digit_size=scenes.digit_size, seed=scenes.seed, fewest=1,
        )  # fmt: skip
        items = []
        for row, number in enumerate(index.tolist()):
            count = int(batch["objects"][row])
            boxes = batch["boxes_xyxy"][row, :count].clone()
            items.append(
                {
                    "image": batch["image"][row],
                    "boxes_xyxy": boxes,
                    "original_xyxy": boxes.clone(),
                    "labels": batch["labels"][row, :count].clone(),
                    "crowd": torch.zeros(count, dtype=torch.bool),
                    "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
                    "annotation_ids": torch.arange(count) + number * scenes.objects + 1,
                    "original_size": torch.tensor([scenes.size, scenes.size]),
                    "image_id": number + 1,
                    "file": f"{scenes.split}/{number}",
                }
            )
        return items


def scenes_index(index: int, length: int) -> int:
    """An index from 0, where negative ones count from the end.

    Raises:
        IndexError: it is outside.
    """
    if not -length <= index < length:
        raise IndexError(f"indices must be below {length}, got {index}")
    return index % length
