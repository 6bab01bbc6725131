"""Figures of a segmentation network on a data set: one confusion matrix over all its pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from foveal.data import segmentation_eval_transform
from foveal.errors import FovealError
from foveal.train.batches import InOrder, make_loader, open_data, worker_count
from foveal.train.inference import class_places, open_weights
from foveal.train.segment import NO_CLASS, confusion, in_turn, targets
from foveal.train.windows import Inference, resized

RESAMPLES = 2000
INTERVAL_OF = "images drawn, not training runs"


@dataclass(frozen=True)
class MaskEvaluation:
    """Figures of one network on one split of a data set, shares in [0, 1].

    Attributes:
        images: how many were segmented.
        miou: mean over classes of the IoU over all pixels of the data set; not a mean over images.
        interval: 95 % interval of miou, by resampling images.
        interval_of: what the interval is over.
        pixel_accuracy: of the labelled pixels.
        loss: mean cross-entropy of a labelled pixel.
        iou: of each class; None where neither masks nor predictions hold it.
        inference: how images went through the network, see `foveal.train.windows.Inference`.
        image_size: shorter side of the images as the network saw them, in pixels.
        skipped: unreadable files with the reason.
    """

    weights: str
    data: str
    split: str
    images: int
    miou: float
    interval: tuple[float, float]
    interval_of: str
    pixel_accuracy: float
    loss: float
    iou: dict[str, float | None]
    inference: dict[str, Any]
    image_size: int
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate_masks(
    weights: str | os.PathLike[str],
    data: str | None = None,
    *,
    split: str = "val",
    data_options: dict[str, Any] | None = None,
    inference: str = "whole",
    crop: int | None = None,
    stride: int | None = None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    batch_size: int = 16,
    workers: int | None = None,
    device: str = "auto",
) -> MaskEvaluation:
    """Segment every image of a data set and count its pixels, at the masks' own size.

    Args:
        weights: a file of `foveal train --task segment`.
        data: as for training; by default the data it was trained on.
        split: "train", "val" or "test".
        data_options: more options of the data set; ``ignore_index`` of a folder is by default that of training.
        inference, crop, stride, scales, flip: as in `foveal.train.windows.Inference`; windows have by default the
            size of the training crops.
        batch_size: images at a time.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ValueError: wrong weights, an option out of its range, or data with a class that the network does not know.
    """
    net, info = open_weights(weights, device, task="segment")
    size = info["image_size"]
    way = Inference.of(inference, crop=crop, stride=stride, scales=scales, flip=flip, trained=info)
    if data is None:
        data_options = data_options or info["data_options"]
    elif data != "scenes" and not data.startswith("torchvision:"):
        data_options = {"ignore_index": info["ignore_index"], **(data_options or {})}
    data = str(data or info["data"])
    dataset = open_data(data, split, data_options or {}, "segment")
    ours: list[str] = info["classes"]
    place = class_places(list(dataset.classes), ours, data)
    loader = make_loader(
        dataset,
        segmentation_eval_transform(info["mean"], info["std"], shorter=size),
        InOrder(len(dataset), batch_size),
        workers=worker_count(workers, size),
        by_size=True,
    )
    target_device = next(net.parameters()).device
    matrix = torch.zeros(len(ours), len(ours), dtype=torch.float64)
    parts: list[Tensor] = []
    losses, pixels = 0.0, 0
    for batches in loader:
        for batch in batches:
            for images, stored in in_turn(batch):
                masks = _placed(stored, place).to(target_device)
                logits = resized(way(net, images.to(target_device)), masks.shape[-2:])
                losses += F.cross_entropy(logits, masks, ignore_index=NO_CLASS, reduction="sum").item()
                pixels += int((masks != NO_CLASS).sum())
                for predicted, mask in zip(logits.argmax(1), masks, strict=True):
                    counted = confusion(predicted[None], mask[None], len(ours)).cpu()
                    matrix += counted
                    parts.append(margins(counted))
    if pixels == 0:
        raise FovealError(f"the masks must hold at least 1 labelled pixel, got none in {data}, split {split}")
    known = place.unique()
    total = margins(matrix)[..., known]
    iou = dict.fromkeys(ours) | {
        ours[c]: None if torch.isnan(v) else float(v)
        for c, v in zip(known.tolist(), ious(total), strict=True)
    }
    return MaskEvaluation(
        weights=str(weights),
        data=data,
        split=split,
        images=len(parts),
        miou=float(ious(total).nanmean()),
        interval=bootstrap_interval(torch.stack(parts)[..., known]),
        interval_of=INTERVAL_OF,
        pixel_accuracy=float(matrix.diagonal().sum() / matrix.sum()),
        loss=losses / pixels,
        iou={name: iou[name] for name in ours if name in dataset.classes},
        inference=way.described(),
        image_size=size,
        skipped=dict(dataset.skipped),
    )


def _placed(mask: Tensor, place: Tensor) -> Tensor:
    """The network's class numbers for a data set's."""
    target = targets(mask, len(place))
    return torch.where(target == NO_CLASS, NO_CLASS, place[target.clamp_min(0)])


def margins(matrix: Float[Tensor, "k k"]) -> Float[Tensor, "3 k"]:
    """Of a confusion matrix, for each class: pixels that are right, that have it, that are predicted as it."""
    return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])


def ious(margins: Float[Tensor, "*b 3 k"]) -> Float[Tensor, "*b k"]:
    """Intersection over union of each class; NaN where nothing has or gets it.

    Example:
        >>> ious(torch.tensor([[3.0, 4], [4, 4], [3, 5]])).tolist()
        [0.75, 0.800000011920929]
    """
    right, true, predicted = margins.unbind(-2)
    return right / (true + predicted - right)


def bootstrap_interval(
    parts: Float[Tensor, "n 3 k"], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mIoU over images: images are drawn anew with replacement, their counts added.

    Args:
        parts: `margins` of each image.

    Source: Efron and Tibshirani (1993), the percentile bootstrap.
    """
    n = len(parts)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (resamples, n), generator=generator)
    times = torch.zeros(resamples, n, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(times))
    sums = (times @ parts.double().flatten(1)).unflatten(1, parts.shape[1:])
    low, high = ious(sums).nanmean(1).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
