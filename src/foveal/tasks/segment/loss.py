"""The segmentation loss: cross-entropy of labelled pixels over every head, with class weights and hard pixels.

Masks hold class numbers; any value that is no class (11 in CamVid, 255 elsewhere) is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from foveal.models.segmentation import AUXILIARY_WEIGHT

NO_CLASS = -100
OHEM_CONFIDENCE = 0.7
OHEM_SHARE = 1 / 16


def targets(mask: Int[Tensor, "b h w"], classes: int) -> Int[Tensor, "b h w"]:
    """Class numbers as int64; ``NO_CLASS`` wherever the mask holds no class."""
    mask = mask.long()
    return torch.where((mask >= 0) & (mask < classes), mask, NO_CLASS)


def segmentation_losses(
    logits: dict[str, Float[Tensor, "b k h w"]],
    mask: Int[Tensor, "b h w"],
    *,
    class_weights: Sequence[float] | None = None,
    ohem: bool = False,
) -> dict[str, Float[Tensor, ""]]:
    """For each head the mean cross-entropy of a batch's labelled pixels; that of the auxiliary head times 0.4.

    Args:
        logits: one entry a head, at the size of the mask.
        mask: class numbers; other values are ignored. A batch without any labelled pixel has loss 0.
        class_weights: factor of each class.
        ohem: keep hard pixels only: those whose class has less than 0.7 probability, and at least a sixteenth of all.

    Example:
        >>> logits = {"fused": torch.zeros(1, 4, 2, 2)}
        >>> round(segmentation_losses(logits, torch.tensor([[[0, 1], [3, 255]]]))["fused"].item(), 4)  # log 4
        1.3863

    Source: Fu et al., DANet's published code, for three equal losses; mmsegmentation for the auxiliary weight and the
    hard-pixel rule's threshold of 0.7.
    """
    losses = {}
    for name, scores in logits.items():
        scores = scores.float()
        target = targets(mask, scores.shape[1])
        weight = None if class_weights is None else scores.new_tensor(class_weights)
        pixel_losses = F.cross_entropy(scores, target, weight=weight, ignore_index=NO_CLASS, reduction="none")
        counted = (target != NO_CLASS).float()
        if weight is not None:
            counted = counted * weight[target.clamp_min(0)]
        if ohem:
            counted = counted * _hard_pixels(scores.detach(), target)
            pixel_losses = pixel_losses * (counted > 0)
        mean = pixel_losses.sum() / counted.sum().clamp_min(1e-12)
        losses[name] = (AUXILIARY_WEIGHT if name == "auxiliary" else 1.0) * mean
    return losses


def _hard_pixels(scores: Tensor, target: Tensor) -> Tensor:
    """1 for the pixels that online hard example mining keeps, else 0."""
    labelled = target != NO_CLASS
    confidence = scores.softmax(1).gather(1, target.clamp_min(0)[:, None])[:, 0]
    confidence = torch.where(labelled, confidence, 2.0)
    kept = max(1, int(OHEM_SHARE * target.numel()))
    threshold = confidence.flatten().kthvalue(kept).values.clamp_min(OHEM_CONFIDENCE)
    return (labelled & (confidence <= threshold)).float()


def balanced_weights(data: Any, classes: int) -> list[float]:
    """Median frequency over the frequency of each class, in the images that hold it; 1 for a class in no image.

    Source: Eigen and Fergus (2015), section 6.3.2.
    """
    pixels, pixels_where_present = torch.zeros(classes), torch.zeros(classes)
    for index in range(len(data)):
        target = targets(data[index]["mask"], classes)
        counts = torch.bincount(target[target != NO_CLASS], minlength=classes)
        pixels += counts
        pixels_where_present += (counts > 0) * counts.sum()
    share = pixels / pixels_where_present  # nan for a class in no image
    return (share.nanmedian() / share).nan_to_num(nan=1.0).tolist()
