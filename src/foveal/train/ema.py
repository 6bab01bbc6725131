"""A running average of a network's weights."""

import copy

import torch
from torch import nn


class ModelEma:
    """Exponential moving average of a network's weights and batch statistics, in ``self.net``.

    The decay begins small and rises to ``decay``, (1 + t) / (10 + t) after t updates, so that a short run's
    average is not its initial weights.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> ema = ModelEma(layer, decay=0.9)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> ema.update(layer)
        >>> float(ema.net.weight) != 0
        True
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the weights of ``net``."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for mine, theirs in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs.to(mine.dtype), weight)
            else:
                mine.copy_(theirs)
