"""The optimiser over the network's parameter groups, and its learning rate over the steps of a run."""

import math
from collections.abc import Sequence
from typing import Any

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
    backbone_lr: float = 1.0,
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over `foveal.parameter_groups`.

    Args:
        backbone_lr: factor on the rate of what is below ``net.backbone``, but for inserted blocks.

    Raises:
        FovealError: an unknown optimiser.
    """
    groups = parameter_groups(net, lr, inserted_lr=inserted_lr, weight_decay=weight_decay)
    groups = with_backbone(net, groups, backbone_lr)
    match optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    raise FovealError(f"optimizer must be sgd or adamw, got {optimizer}")


def with_backbone(net: nn.Module, groups: Sequence[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Groups with the backbone's own parameters in groups of their own, at ``factor`` times the rate.

    Example:
        >>> net = nn.ModuleDict({"backbone": nn.Linear(1, 1, bias=False), "head": nn.Linear(1, 1, bias=False)})
        >>> net.backbone = net["backbone"]
        >>> groups = parameter_groups(net, lr=0.1, weight_decay=0.5)
        >>> [(group["name"], round(group["lr"], 3)) for group in with_backbone(net, groups, 0.1)]
        [('own, no decay', 0.1), ('backbone, no decay', 0.01)]
    """
    if factor == 1:
        return list(groups)
    inside = {id(parameter) for parameter in net.get_submodule("backbone").parameters()}
    found = []
    for group in groups:
        own = group["name"].startswith("own")
        there = [p for p in group["params"] if own and id(p) in inside]
        rest = [p for p in group["params"] if not (own and id(p) in inside)]
        if rest:
            found.append({**group, "params": rest})
        if there:
            name = f"backbone{group['name'].removeprefix('own')}"
            found.append({**group, "name": name, "params": there, "lr": factor * group["lr"]})
    return found
