"""Norms that start at zero before an inserted block: found by what flows, and set to one."""

import functools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from foveal.insertion.example import example_inputs, preserve_state, run
from foveal.insertion.hooks import inserted


def undo_zero_init(net: nn.Module, example: Any = None) -> list[str]:
    """Set to 1 the scale of every zero-initialised norm that feeds an inserted block nothing but a constant.

    timm (``zero_init_last``) and torchvision (``zero_init_residual``) start the last norm of a residual branch at
    zero, and then a gate behind it sees zeros and gets a gradient of exactly zero. For networks trained from random
    weights; where the norm's scale was learned it is not zero, and nothing is changed.

    The norms are found by two forward passes: one finds the blocks whose input is constant over batch and space and
    the last zero norm that ran before each, the other shows that their inputs now vary.

    Args:
        net: network with inserted blocks; changed in place, as its outputs are.
        example: as in `insert`; a batch of random images of the network's own size by default.

    Returns:
        Paths of the norms that were changed; empty where no block is fed by one.

    Raises:
        FovealError: the forward pass fails.

    Example:
        >>> import foveal
        >>> net = foveal.insert(foveal.create_model("resnet10t", num_classes=2), "se", stages=(1,))
        >>> undo_zero_init(net)
        ['layer1.0.bn2']
    """
    norms = {name: m for name, m in net.named_modules() if _starts_at_zero(m)}
    blocks = {one.path: one.module for one in inserted(net)}
    if not norms or not blocks:
        return []
    args, kwargs = example_inputs(net, example)[0]
    fed = _last_norms(net, norms, blocks, args, kwargs)
    changed = [name for name in norms if name in set(fed.values())]
    with torch.no_grad():
        for name in changed:
            norms[name].weight.fill_(1.0)  # type: ignore[operator, union-attr]
        still = _last_norms(net, norms, {path: blocks[path] for path in fed}, args, kwargs)
        for name in [name for path, name in fed.items() if path in still]:
            if name in changed:  # it was not this norm that made the input constant
                norms[name].weight.zero_()  # type: ignore[operator, union-attr]
                changed.remove(name)
    return changed


def _starts_at_zero(module: nn.Module) -> bool:
    """Whether a module is a norm whose whole scale is zero."""
    weight = getattr(module, "weight", None)
    return (
        "Norm" in type(module).__name__
        and isinstance(weight, Tensor)
        and weight.ndim == 1
        and not weight.is_meta
        and not weight.any()
    )


def _last_norms(
    net: nn.Module, norms: dict[str, nn.Module], blocks: dict[str, nn.Module], args: tuple, kwargs: dict
) -> dict[str, str]:
    """By path of each block with a constant input, the last of the norms that ran before it."""
    ran: list[str] = []
    found: dict[str, str] = {}

    def note(module: nn.Module, given: Any, name: str) -> None:
        ran.append(name)

    def look(module: nn.Module, given: tuple, path: str) -> None:
        x = given[0].transpose(0, 1).flatten(1)
        if ran and (x == x[:, :1]).all():
            found[path] = ran[-1]

    with ExitStack() as stack:
        stack.enter_context(preserve_state(net))
        for name, norm in norms.items():
            # before it runs: the hook that applies a block hanging on the norm comes before one added here
            stack.callback(norm.register_forward_pre_hook(functools.partial(note, name=name)).remove)
        for path, block in blocks.items():
            stack.callback(block.register_forward_pre_hook(functools.partial(look, path=path)).remove)
        run(net, args, kwargs, rule=f"a forward pass of {type(net).__name__} must succeed on the example")
    return found
