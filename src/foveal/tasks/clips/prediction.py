"""What a network says of a clip, from one view or many."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from foveal.tasks.classify.prediction import LabelPrediction

# the logarithm of a probability of 0 stays finite
TINY = 1e-30
SHOWN_FRAMES = 8
SMALLEST_HEIGHT = 80
"""Pixels of a frame in a picture."""


def view_logits(net: nn.Module, clips: Float[Tensor, "b *views c t h w"]) -> Float[Tensor, "b k"]:
    """Logits of clips, or, where each comes in several views, the logarithm of the mean of their probabilities.

    Views go through the network one after the other, as many clips at a time as there are in the batch.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> view_logits(net, torch.randn(5, 3, 1, 2, 2)).shape, view_logits(net, torch.randn(5, 4, 3, 1, 2, 2)).shape
        (torch.Size([5, 2]), torch.Size([5, 2]))

    Source: Wang et al., Non-local Neural Networks, section 5.1: the softmax scores of all views are averaged.
    """
    if clips.ndim == 5:
        return net(clips).float()
    total = torch.stack([net(view).float().softmax(1) for view in clips.unbind(1)]).mean(0)
    return total.clamp_min(TINY).log()


class ClipPrediction(LabelPrediction):
    """What a network says of one clip, as of an image; ``image`` is the video itself, uint8 (3, frames, h, w)."""

    def draw(self, image: UInt8[Tensor, "3 t h w"]) -> np.ndarray:
        """Frames spread over the clip, side by side, with the most probable labels written below."""
        return self.captioned(film_strip(image))


def film_strip(clip: UInt8[Tensor, "3 t h w"], most: int = SHOWN_FRAMES) -> np.ndarray:
    """At most ``most`` frames of a clip, evenly spread and side by side, uint8 (h, w, 3), with a gap between.

    Small frames are enlarged by a whole number.

    Example:
        >>> film_strip(torch.zeros(3, 20, 10, 12, dtype=torch.uint8), most=4).shape
        (80, 390, 3)
    """
    count = min(most, clip.shape[1])
    chosen = [n * (clip.shape[1] - 1) // max(1, count - 1) for n in range(count)]
    factor = max(1, SMALLEST_HEIGHT // clip.shape[2])
    gap = np.full((factor * clip.shape[2], 2, 3), 255, dtype=np.uint8)
    parts: list[np.ndarray] = []
    for frame in chosen:
        picture = clip[:, frame].permute(1, 2, 0).cpu().numpy()
        parts += [picture.repeat(factor, axis=0).repeat(factor, axis=1), gap]
    return np.concatenate(parts[:-1], axis=1)
