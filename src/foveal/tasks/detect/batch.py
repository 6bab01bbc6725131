"""Batches of images of different sizes and with different numbers of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from foveal.errors import FovealError

KEPT = ("image_id", "file", "original_size", "original_xyxy", "labels", "crowd", "area", "annotation_ids")


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One batch: images padded by 0 at the right and below, which after normalising is the mean colour.

    Returns:
        ``image`` (b, c, h, w); ``sizes`` (b, 2) int64, height and width of each image without its padding;
        ``targets``, for each image ``boxes_xyxy`` and ``labels`` of what is to be learned, that is without crowds;
        ``records``, what evaluation needs of each image: its name, ids, size and boxes as stored.

    Example:
        >>> samples = [{"image": torch.zeros(3, h, 8), "boxes_xyxy": torch.zeros(0, 4),
        ...             "labels": torch.zeros(0).long()} for h in (4, 6)]
        >>> batch = collate(samples)
        >>> batch["image"].shape, batch["sizes"].tolist()
        (torch.Size([2, 3, 6, 8]), [[4, 8], [6, 8]])
    """
    shapes = [sample["image"].shape[-2:] for sample in samples]
    height, width = (max(sides) for sides in zip(*shapes, strict=True))
    images = [
        F.pad(s["image"], (0, width - w, 0, height - h)) for s, (h, w) in zip(samples, shapes, strict=True)
    ]
    return {
        "image": torch.stack(images),
        "sizes": torch.tensor([list(shape) for shape in shapes]),
        "targets": [_target(sample) for sample in samples],
        "records": [{name: sample[name] for name in KEPT if name in sample} for sample in samples],
    }


def _target(sample: dict[str, Any]) -> dict[str, Tensor]:
    boxes, labels = sample["boxes_xyxy"], sample["labels"]
    crowd = sample.get("crowd")
    if crowd is not None and crowd.any():
        boxes, labels = boxes[~crowd], labels[~crowd]
    return {"boxes_xyxy": boxes, "labels": labels}


def check_targets(batch: dict[str, Any]) -> None:
    """Raise where a box of the data is wrong, so that it is never mistaken for a network that diverged.

    Raises:
        FovealError: a box is not finite, or has no area; the message names the file.
    """
    for target, record in zip(batch["targets"], batch["records"], strict=True):
        boxes = target["boxes_xyxy"]
        bad = ~(boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
        if bad.any():
            box = ", ".join(f"{value:g}" for value in boxes[bad][0].tolist())
            raise FovealError(
                f"boxes must be finite and have an area, got {box} (x1, y1, x2, y2 as the network sees it) in "
                f"{record.get('file', 'an image')}; foveal check lists all such boxes"
            )


def inside_boxes(batch: dict[str, Any]) -> Bool[Tensor, "b h w"]:
    """Where an object is, as far as boxes tell.

    Example:
        >>> target = {"boxes_xyxy": torch.tensor([[1.0, 0.0, 2.0, 1.0]])}
        >>> inside_boxes({"image": torch.zeros(1, 3, 1, 3), "targets": [target]}).tolist()
        [[[False, True, False]]]
    """
    b, _, height, width = batch["image"].shape
    mask = torch.zeros(b, height, width, dtype=torch.bool, device=batch["image"].device)
    for one, target in zip(mask, batch["targets"], strict=True):
        for x1, y1, x2, y2 in target["boxes_xyxy"].round().int().tolist():
            one[max(0, y1) : y2, max(0, x1) : x2] = True
    return mask
