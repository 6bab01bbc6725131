"""How a whole image goes through a segmentation network: at once, in windows, or at several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from foveal.tasks.segment import SegmentInference

PIXELS_AT_ONCE = 2**25
"""Values of logits that are brought to the size of a photograph at one time."""


def logits_of(
    net: nn.Module, images: Float[Tensor, "b c h w"], inference: SegmentInference
) -> Float[Tensor, "b k h w"]:
    """Logits in float32 at the images' size; where several predictions meet, logits are averaged.

    Args:
        inference: which way, with its defaults filled in.
    """
    match inference.inference:
        case "sliding":
            assert inference.crop is not None
            assert inference.stride is not None
            return sliding(net, images, inference.crop, inference.stride)
        case "multiscale":
            assert inference.scales is not None
            return multiscale(net, images, inference.scales, inference.flip)
    return net(images)["fused"].float()


def resized(logits: Float[Tensor, "b k h w"], size: Sequence[int]) -> Float[Tensor, "b k H W"]:
    """Logits in float32 at another size (height, width), bilinearly."""
    logits = logits.float()
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def sliding(
    net: nn.Module, images: Float[Tensor, "b c h w"], crop: int, stride: int
) -> Float[Tensor, "b k h w"]:
    """Mean logits over the windows that hold a pixel. Images smaller than a window are padded by 0, the mean colour."""
    h, w = images.shape[-2:]
    padded = F.pad(images, (0, max(0, crop - w), 0, max(0, crop - h)))
    count = images.new_zeros(padded.shape[-2:])
    # of the logits, as soon as their number is known
    total = count
    for top in window_starts(padded.shape[-2], crop, stride):
        for left in window_starts(padded.shape[-1], crop, stride):
            rows, columns = slice(top, top + crop), slice(left, left + crop)
            logits = net(padded[..., rows, columns])["fused"].float()
            if total is count:
                total = logits.new_zeros(*logits.shape[:2], *padded.shape[-2:])
            total[..., rows, columns] += logits
            count[rows, columns] += 1
    return (total / count)[..., :h, :w]


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """First pixels of windows that cover 0..length, the last one flush with the end.

    Example:
        >>> window_starts(10, 4, 3), window_starts(11, 4, 3), window_starts(4, 4, 3)
        ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    regular = list(range(0, length - crop + 1, stride))
    return regular if regular[-1] == length - crop else [*regular, length - crop]


def multiscale(
    net: nn.Module, images: Float[Tensor, "b c h w"], scales: Sequence[float], flip: bool
) -> Float[Tensor, "b k h w"]:
    """Mean logits over resized images and, with ``flip``, their mirror images."""
    h, w = images.shape[-2:]
    total: Tensor | None = None
    for scale in scales:
        size = (max(1, round(h * scale)), max(1, round(w * scale)))
        scaled = images
        if size != (h, w):
            scaled = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        logits = resized(net(scaled)["fused"], (h, w))
        if flip:
            logits = (logits + resized(net(scaled.flip(-1))["fused"], (h, w)).flip(-1)) / 2
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(scales)


def argmax_at_size(logits: Float[Tensor, "b k h w"], size: Sequence[int]) -> Shaped[Tensor, "b H W"]:
    """The class with the highest logit at another size; a few classes at a time, so that photographs fit in memory.

    Returns:
        uint8 for up to 256 classes, else int16 (int32 above 32,767).

    Example:
        >>> argmax_at_size(torch.tensor([[[[0.0]], [[1.0]]]]), (2, 2)).tolist()
        [[[1, 1], [1, 1]]]
    """
    b, k = logits.shape[:2]
    together = max(1, PIXELS_AT_ONCE // (b * size[0] * size[1]))
    dtype = torch.uint8 if k <= 256 else torch.int16 if k <= 32768 else torch.int32
    best = torch.full((b, *size), float("-inf"), device=logits.device)
    chosen = torch.zeros((b, *size), dtype=dtype, device=logits.device)
    for first in range(0, k, together):
        values, places = resized(logits[:, first : first + together], size).max(1)
        # the first of equals, as argmax chooses
        better = values > best
        best = torch.where(better, values, best)
        chosen = torch.where(better, (places + first).to(dtype), chosen)
    return chosen
