"""A running average of a network's weights."""

import copy

import torch
from torch import nn

from foveal.nn.spectral_norm import singular_value, spectral_layers


class ModelEma:
    """Exponential moving average of a network's weights and batch statistics, in ``self.net``.

    The decay begins small and rises to ``decay``, (1 + t) / (10 + t) after t updates, so that a short run's
    average is not its initial weights. Singular vectors of spectral norms are not averaged, as averages of them are too
    short for their weights: each follows the averaged weight by a power iteration of its own.

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
        self.spectral = spectral_layers(self.net)
        self.vectors = {id(layer.u) for layer in self.spectral}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the weights of ``net``."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        # with keep_vars they are the buffers themselves, and not views of them
        mine_too = self.net.state_dict(keep_vars=True).values()
        moved = set(self.vectors)
        for mine, theirs in zip(mine_too, net.state_dict().values(), strict=True):
            # a tensor of two names, such as tied weights, moves once
            if id(mine) in moved:
                continue
            moved.add(id(mine))
            if mine.is_floating_point():
                mine.lerp_(theirs.to(mine.dtype), weight)
            else:
                mine.copy_(theirs)
        for layer in self.spectral:
            singular_value(layer.matrix(), layer.u, update=True)
