"""Channels last, for images and for clips."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> torch.memory_format:
    """The memory format with the channels last of a batch of images (b, c, h, w) or clips (b, c, t, h, w).

    Example:
        >>> channels_last(torch.zeros(1, 3, 4, 8, 8))
        torch.channels_last_3d
    """
    return torch.channels_last_3d if x.ndim == 5 else torch.channels_last
