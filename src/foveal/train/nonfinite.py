"""Values that became infinite or not a number: where they came from."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from foveal.errors import FovealError


class NonFiniteError(FovealError):
    """A loss or a weight became infinite or not a number; the message names the epoch and the batch."""


def first_non_finite(net: nn.Module, images: Tensor) -> str:
    """The first module, in order of execution, whose output for ``images`` is not finite; or why there is none.

    Modules whose own weights are not finite are named as such: the update before this batch broke them.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = nn.init.constant_(net[1].weight, float("inf"))
        >>> first_non_finite(net, torch.ones(1, 2))
        "module '1' (Linear), whose weight is not finite since an earlier update"
    """
    if not images.isfinite().all():
        return "the images themselves, before any module"
    found: list[str] = []

    def check(name: str):
        def hook(module: nn.Module, _inputs: tuple, output: object) -> None:
            parts = output.values() if isinstance(output, dict) else output
            tensors = parts if not isinstance(parts, Tensor) and isinstance(parts, Iterable) else [parts]
            if not found and any(isinstance(t, Tensor) and not t.isfinite().all() for t in tensors):
                bad = [n for n, p in module.named_parameters() if not p.isfinite().all()]
                why = f", whose {bad[0]} is not finite since an earlier update" if bad else ""
                found.append(f"module '{name}' ({type(module).__name__}){why}")

        return hook

    handles = [m.register_forward_hook(check(name)) for name, m in net.named_modules() if name]
    try:
        with torch.no_grad():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself, since every module's output was finite"
