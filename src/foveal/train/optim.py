"""The optimiser over the network's parameter groups, and its learning rate over the steps of a run."""

import math

import torch
from torch import nn

from foveal.errors import FovealError
from foveal.insertion import parameter_groups


def lr_scale(step: int, *, steps: int, warmup_steps: int = 0, schedule: str = "cosine") -> float:
    """Share of the highest learning rate to use in optimiser step ``step``, in [0, 1].

    Linear rise over ``warmup_steps`` (the first step is not 0), then, with t running from 0 to 1 over the rest:
    cosine (1 + cos(pi t)) / 2, poly (1 - t)^0.9, or constant 1.

    Example:
        >>> [round(lr_scale(i, steps=10, warmup_steps=2), 2) for i in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.04]

    Source:
        Cosine: Loshchilov and Hutter, SGDR (2017), without restarts. Poly: the DeepLab recipe.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    t = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    match schedule:
        case "cosine":
            return (1 + math.cos(math.pi * t)) / 2
        case "poly":
            return (1 - t) ** 0.9
        case "constant":
            return 1.0
    raise FovealError(f"schedule must be cosine, poly or constant, got {schedule}")


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Give every group ``scale`` times the learning rate it was made with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * scale


def make_optimizer(
    net: nn.Module,
    *,
    optimizer: str = "sgd",
    lr: float,
    inserted_lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over `foveal.parameter_groups`.

    Raises:
        FovealError: an unknown optimiser.
    """
    groups = parameter_groups(net, lr, inserted_lr=inserted_lr, weight_decay=weight_decay)
    match optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    raise FovealError(f"optimizer must be sgd or adamw, got {optimizer}")
