"""Box arithmetic in any number of leading dimensions: formats, overlaps, offsets and position codes.

Boxes are (..., 4): ``xyxy`` are edges, ``cxcywh`` centre and size; in pixels, or as shares of the image's width and
height. Everything here is float32 (or float64), also under autocast: areas in pixels pass float16's 65504.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

TINY = 1e-9
LARGEST_LOG_SIZE = math.log(100_000 / 16)


def to_xyxy(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Edges from centre and size.

    Example:
        >>> to_xyxy(torch.tensor([0.5, 0.5, 1.0, 0.5])).tolist()
        [0.0, 0.25, 1.0, 0.75]
    """
    x, y, width, height = boxes.unbind(-1)
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], -1)


def to_cxcywh(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Centre and size from edges.

    Example:
        >>> to_cxcywh(torch.tensor([0.0, 0.25, 1.0, 0.75])).tolist()
        [0.5, 0.5, 1.0, 0.5]
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)


def scale_of(sizes: Int[Tensor, "b 2"]) -> Float[Tensor, "b 1 4"]:
    """Width, height, width, height of each image: what turns its shares into pixels."""
    return sizes.flip(-1).repeat(1, 2)[:, None].float()


def area(boxes_xyxy: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Width times height; negative where the edges of one axis are swapped."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def generalized_iou(a: Float[Tensor, "*n 4"], b: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Generalised intersection over union of boxes paired by broadcasting, in [-1, 1].

    It does not change when one axis is scaled, so shares of an image and pixels give the same. Two boxes without
    extent at the same place give 0.

    Example:
        >>> one, two = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
        >>> generalized_iou(one[:, None], two[None]).round(decimals=3).tolist()
        [[0.3330000042915344, -0.3330000042915344]]

    Source: Rezatofighi et al., Generalized Intersection over Union, algorithm 1.
    """
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection, hull = inner.prod(-1), outer.prod(-1)
    union = area(a) + area(b) - intersection
    return intersection / union.clamp(min=TINY) - (hull - union) / hull.clamp(min=TINY)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit, of shares kept ``eps`` away from 0 and 1."""
    x = x.clamp(eps, 1 - eps)
    return torch.log(x / (1 - x))


def apply_deltas(deltas: Float[Tensor, "*n 4"], boxes_xyxy: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Move and stretch boxes by the offsets of R-CNN, with Sparse R-CNN's weights (2, 2, 1, 1).

    The centre moves by half the delta times the size, the size grows by the exponential of its delta, which is limited
    above at log(100000 / 16).

    Source: Sun et al., Sparse R-CNN, released code; Girshick et al., R-CNN, appendix C.
    """
    x, y, width, height = to_cxcywh(boxes_xyxy).unbind(-1)
    dx, dy, log_width, log_height = deltas.unbind(-1)
    return to_xyxy(
        torch.stack(
            [
                x + dx / 2 * width,
                y + dy / 2 * height,
                width * log_width.clamp(max=LARGEST_LOG_SIZE).exp(),
                height * log_height.clamp(max=LARGEST_LOG_SIZE).exp(),
            ],
            -1,
        )
    )


def sine_code(
    position: Float[Tensor, "*n"], width: int, temperature: float = 10_000.0
) -> Float[Tensor, "*n width"]:
    """Sines and cosines, interleaved, of a position already in radians, at ``width / 2`` wavelengths.

    Source: Vaswani et al., Attention Is All You Need, section 3.5, with DETR's scaling to 2 pi.
    """
    exponent = torch.arange(width, dtype=torch.float32, device=position.device)
    wavelength = temperature ** (2 * torch.div(exponent, 2, rounding_mode="floor") / width)
    angle = position[..., None] / wavelength
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def sine_box_code(
    boxes: Float[Tensor, "*n d"], width: int, temperature: float = 10_000.0
) -> Float[Tensor, "*n e"]:
    """The codes of d shares of the image, ``width`` each, with y before x and height before width, as in the image's.

    Args:
        boxes: (..., 2) x, y or (..., 4) x, y, width, height.
    """
    swapped = boxes.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return sine_code(swapped * (2 * math.pi), width, temperature).flatten(-2)
