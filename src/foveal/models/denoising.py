"""Denoising queries: noisy copies of the objects, which the decoder learns to restore without any matching.

Source: Li et al., DN-DETR, sections 4.2 to 4.4. Deviation: the queries of a group see their own group alone, neither
other groups nor the queries that are matched; no mask of n x n is needed then.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveal.models.boxes import to_cxcywh, to_xyxy
from foveal.models.set_loss import Objects


class Noisy(NamedTuple):
    """Noisy copies of a batch's objects: ``groups`` times all of them, group after group.

    ``labels`` (b, g * t) and ``boxes`` (b, g * t, 4) are what the decoder gets, ``present`` (b, g * t) which are real.
    """

    groups: int
    labels: Int[Tensor, "b n"]
    boxes: Float[Tensor, "b n 4"]
    present: Bool[Tensor, "b n"]


def noisy_copies(
    objects: Objects, groups: int, num_classes: int, *, label_noise: float = 0.2, box_noise: float = 0.4
) -> Noisy:
    """Copies with some labels replaced and every box moved and stretched.

    Args:
        groups: copies of each object.
        label_noise: share of the labels drawn anew.
        box_noise: largest shift of an edge, as a share of half the box's size along its axis.
    """
    copies = objects.repeated(groups)
    drawn = torch.randint_like(copies.labels, num_classes)
    flipped = torch.rand_like(copies.boxes[..., 0]) < label_noise
    labels = torch.where(flipped, drawn, copies.labels)
    half = copies.boxes[..., 2:].repeat(1, 1, 2) / 2
    moved = to_xyxy(copies.boxes) + (torch.rand_like(half) * 2 - 1) * half * box_noise
    return Noisy(groups, labels, to_cxcywh(moved.clamp(0, 1)), copies.present)
