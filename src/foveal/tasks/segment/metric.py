"""mIoU over the images of a split: one confusion matrix of all pixels, and its interval by resampling images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.tasks.classes import class_indices
from foveal.tasks.segment import SegmentInference
from foveal.tasks.segment.inference import logits_of, resized
from foveal.tasks.segment.loss import NO_CLASS, targets

RESAMPLES = 2000
PIXELS_AT_ONCE = 2**22
"""Pixels of one batch that go through the network together."""


class MeanIoU:
    """Pixel counts over a split, at the masks' own size.

    Args:
        ours: the classes of the network, in the order of its outputs.
        theirs: the classes of the data, in the order of the mask values.
        inference: how whole images go through the network, with its defaults filled in.
    """

    def __init__(self, ours: Sequence[str], theirs: Sequence[str], inference: SegmentInference) -> None:
        self.ours, self.theirs = list(ours), list(theirs)
        self.index_of = class_indices(theirs, ours)
        self.inference = inference
        # one (3, classes) for each image, whose sum is all that mIoU needs; kept apart for the interval
        self.parts: list[Tensor] = []
        self.loss_sum, self.pixels = 0.0, 0

    @property
    def images(self) -> int:
        return len(self.parts)

    def update(self, net: nn.Module, batch: dict[str, Any]) -> None:
        for images, stored in split_batch(batch):
            masks = self._as_ours(stored)
            logits = resized(logits_of(net, images, self.inference), masks.shape[-2:])
            losses = F.cross_entropy(logits, masks, ignore_index=NO_CLASS, reduction="none")
            # summed on the CPU, as not every device has float64
            self.loss_sum += losses.sum((1, 2)).cpu().double().sum().item()
            self.pixels += int((masks != NO_CLASS).sum())
            for predicted, mask in zip(logits.argmax(1), masks, strict=True):
                self.parts.append(intersect_and_union(confusion(predicted[None], mask[None], len(self.ours))))

    def _as_ours(self, mask: Tensor) -> Tensor:
        """The network's class numbers for the data's."""
        target = targets(mask, len(self.theirs))
        return torch.where(target == NO_CLASS, NO_CLASS, self.index_of.to(mask.device)[target.clamp_min(0)])

    def merge(self, other: MeanIoU) -> None:
        self.parts += other.parts
        self.loss_sum += other.loss_sum
        self.pixels += other.pixels

    def _known(self) -> Float[Tensor, "n 3 k"]:
        """The counts of the classes that the data have."""
        return torch.stack(self.parts)[..., self.index_of.unique()]

    def compute(self) -> dict[str, float]:
        """``loss`` a labelled pixel, ``miou`` and ``pixel_accuracy``, over all images, in [0, 1]."""
        if self.pixels == 0:
            raise FovealError("the masks must hold at least 1 labelled pixel, got none")
        total = torch.stack(self.parts).sum(0)
        return {
            "loss": self.loss_sum / self.pixels,
            "miou": float(ious(self._known().sum(0)).nanmean()),
            "pixel_accuracy": float(total[0].sum() / total[1].sum()),
        }

    def report(self) -> dict[str, Any]:
        values = ious(torch.stack(self.parts).sum(0)).tolist()
        by_class = dict(zip(self.ours, values, strict=True))
        return {
            "interval": bootstrap_interval(self._known()),
            "interval_of": "images drawn, not training runs",
            "per_class": {n: _none_if_nan(by_class[n]) for n in self.ours if n in self.theirs},
        }


def _none_if_nan(value: float) -> float | None:
    return None if value != value else value


def split_batch(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Images and masks of a batch, in parts that the memory for their logits allows."""
    images, masks = batch["image"], batch["mask"]
    together = max(1, PIXELS_AT_ONCE // max(images[0, 0].numel(), masks[0].numel()))
    return list(zip(images.split(together), masks.split(together), strict=True))


def confusion(
    predicted: Int[Tensor, "b h w"], mask: Int[Tensor, "b h w"], classes: int
) -> Float[Tensor, "k k"]:
    """Pixels by (true class, predicted class), float64 on the CPU; pixels without a class are left out.

    Example:
        >>> confusion(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]), 2).tolist()
        [[1.0, 1.0], [0.0, 0.0]]
    """
    target = targets(mask, classes)
    labelled = target != NO_CLASS
    cells = target[labelled] * classes + predicted[labelled].long()
    return torch.bincount(cells, minlength=classes**2).reshape(classes, classes).cpu().double()


def intersect_and_union(matrix: Float[Tensor, "k k"]) -> Float[Tensor, "3 k"]:
    """Of a confusion matrix, for each class: pixels that are right, that have it, that are predicted as it."""
    return torch.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)])


def ious(counts: Float[Tensor, "*b 3 k"]) -> Float[Tensor, "*b k"]:
    """Intersection over union of each class; NaN where nothing has or gets it.

    Example:
        >>> ious(torch.tensor([[3.0, 4], [4, 4], [3, 5]])).tolist()
        [0.75, 0.800000011920929]
    """
    right, true, predicted = counts.unbind(-2)
    return right / (true + predicted - right)


def bootstrap_interval(
    parts: Float[Tensor, "n 3 k"], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mIoU over images: images are drawn anew with replacement, their counts added.

    Args:
        parts: `intersect_and_union` of each image.

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
