"""The inside of boxes from the levels of a feature pyramid: RoIAlign, for small maps by matrix products."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import roi_align

from foveal.ops.numerics import exporting

SAMPLES = 2
CANONICAL_STRIDE = 16
FEW_POSITIONS = 1024
"""Maps of at most so many positions are pooled by matrix products, whose backward is many times quicker on a CPU."""


def pooled(
    maps: Sequence[Float[Tensor, "b c _h _w"]],
    strides: Sequence[int],
    boxes: Float[Tensor, "b q 4"],
    reference: Float[Tensor, " b"],
    pool: int,
) -> Float[Tensor, "n p c"]:
    """The inside of each box, ``pool`` x ``pool`` by RoIAlign, from the level that suits its size.

    Args:
        maps: fine to coarse. strides: of the maps. boxes: edges in pixels; no gradient goes to them.
        reference: side of a box that is read from stride 16, for each image.

    Returns:
        n = b * q boxes, p = pool * pool places row by row. Boxes that are not finite read nothing.

    Source: He et al., Mask R-CNN, RoIAlign (aligned, 2 samples an axis); Lin et al., FPN, equation 1.
    """
    # RoIAlign would read where no memory is; what is not finite shows in the loss
    boxes = boxes.nan_to_num(0, 0, 0)
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    side = (width * height).sqrt() / reference[:, None]
    level = torch.floor(math.log2(CANONICAL_STRIDE) + torch.log2(side + 1e-8)) - math.log2(strides[0])
    level = level.clamp(0, len(maps) - 1)
    found = None
    for i, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        here = level == i
        if exporting():
            # which boxes are of this level is not known while a graph is recorded: all are read, and the others zeroed
            part = by_sampling(features, boxes, 1 / stride, pool)
            part = part * here.flatten()[:, None, None].to(part.dtype)
        elif features.shape[-2] * features.shape[-1] <= FEW_POSITIONS and here.any():
            part = by_products(features, boxes, 1 / stride, pool, here[..., None, None].to(features.dtype))
        else:
            part = by_sampling(features, boxes, 1 / stride, pool, here)
        found = part if found is None else found + part
    assert found is not None
    return found


def by_sampling(
    features: Float[Tensor, "b c h w"],
    boxes: Float[Tensor, "b q 4"],
    scale: float,
    pool: int,
    chosen: Tensor | None = None,
) -> Float[Tensor, "n p c"]:
    """torchvision's RoIAlign of all boxes, or of the ``chosen`` (b, q) ones with zeros for the others."""
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand(-1, boxes.shape[1])
    rois = torch.cat([image.flatten()[:, None].to(boxes.dtype), boxes.flatten(0, 1)], 1)
    # also where no box is of this level: processes that train together wait for every gradient
    here = None if chosen is None else chosen.flatten().nonzero()[:, 0]
    rois = rois if here is None else rois[here]
    inside = roi_align(features, rois.to(features.dtype), pool, scale, SAMPLES, aligned=True)
    inside = inside.flatten(2).transpose(1, 2)
    if chosen is None or here is None:
        return inside
    return inside.new_zeros(chosen.numel(), pool**2, features.shape[1]).index_copy(0, here, inside)


def by_products(
    features: Float[Tensor, "b c h w"],
    boxes: Float[Tensor, "b q 4"],
    scale: float,
    pool: int,
    weight: Tensor | float = 1.0,
) -> Float[Tensor, "n p c"]:
    """RoIAlign as ``rows @ features @ columns``: bilinear interpolation is separable, and so is the mean of samples.

    The same figures as `by_sampling` up to rounding, for all boxes times ``weight`` (b, q, 1, 1). Its cost grows with
    the map, ``pool * h * w * c`` a box.
    """
    b, q = boxes.shape[:2]
    h, w = features.shape[-2:]
    boxes = boxes * scale - 0.5
    rows = (weight * hats(boxes[..., 1], boxes[..., 3], pool, h)).to(features.dtype)
    columns = hats(boxes[..., 0], boxes[..., 2], pool, w).to(features.dtype)
    lines = features.permute(0, 2, 3, 1).flatten(2)
    y = torch.bmm(rows.flatten(1, 2), lines).view(b * q, pool, w, -1)
    columns = columns.flatten(0, 1)[:, None].expand(-1, pool, -1, -1)
    return (columns @ y).flatten(1, 2)


def hats(
    start: Float[Tensor, "b q"], end: Float[Tensor, "b q"], pool: int, size: int
) -> Float[Tensor, "b q p s"]:
    """How much of each of ``size`` cells each of ``pool`` bins between start and end reads, along one axis.

    Samples within one cell of the map are moved to its border, those further out read nothing.
    """
    bins = pool * SAMPLES
    place = (torch.arange(bins, device=start.device, dtype=start.dtype) + 0.5) / bins
    sample = start[..., None] + (end - start)[..., None] * place
    outside = (sample < -1) | (sample > size)
    sample = sample.clamp(0, size - 1)
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    weights = (1 - (sample[..., None] - cells).abs()).clamp(min=0).masked_fill(outside[..., None], 0)
    return weights.unflatten(2, (pool, SAMPLES)).mean(3)
