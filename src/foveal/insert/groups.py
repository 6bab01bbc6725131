"""What an optimiser needs to know of inserted blocks."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from foveal.insert.attach import inserted
from foveal.insert.find import match


def parameter_groups(
    net: nn.Module, lr: float, inserted_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for an optimiser: inserted parameters at their own rate; no decay on biases, scales and norms.

    Weight decay is kept from every parameter of at most one dimension or one value: it would pull gates (whose
    last bias is 0 where the gate is 1) and learned scales back to where they start. Parameters without
    ``requires_grad`` are included, so that a backbone frozen for the first epochs can thaw.

    Args:
        net: network, with or without inserted blocks.
        lr: learning rate of the network's own parameters.
        inserted_lr: learning rate of inserted parameters; by default ``lr``.
        weight_decay: of the groups that decay.

    Returns:
        Up to four groups, each with ``name``, ``params``, ``lr`` and ``weight_decay``; empty ones left out.

    Example:
        >>> import foveal
        >>> net = foveal.insert(foveal.create_model("cifar_resnet8"), "se", reduction=4)
        >>> [(g["name"], g["lr"]) for g in foveal.parameter_groups(net, lr=0.1, inserted_lr=0.5, weight_decay=1e-4)]
        [('own', 0.1), ('own, no decay', 0.1), ('inserted', 0.5), ('inserted, no decay', 0.5)]
    """
    new = _inserted_ids(net)
    groups = {
        (is_new, decays): {
            "name": ("inserted" if is_new else "own") + ("" if decays else ", no decay"),
            "params": [],
            "lr": lr if not is_new or inserted_lr is None else inserted_lr,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for is_new in (False, True)
        for decays in (True, False)
    }
    for parameter in net.parameters():
        decays = parameter.ndim > 1 and parameter.numel() > 1
        groups[id(parameter) in new, decays]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def freeze_backbone(net: nn.Module, keep: Iterable[str] = ()) -> Callable[[], None]:
    """Stop training everything but the inserted blocks; the returned function thaws it again.

    Parameters get ``requires_grad=False`` (and no gradient), and batch normalisation keeps its running
    statistics (momentum 0), so that a thawed network is the one it was.

    Args:
        net: network with inserted blocks.
        keep: path patterns (as in `insert`) of modules that go on training, such as a new classifier ``"fc"``.

    Returns:
        A function without arguments that restores what was changed. It does nothing the second time.

    Raises:
        ValueError: nothing would be left to train, or a pattern matches no module.

    Example:
        >>> import foveal
        >>> net = foveal.insert(foveal.create_model("cifar_resnet8"), "se", reduction=4)
        >>> thaw = foveal.freeze_backbone(net, keep=["fc"])
        >>> net.conv1.weight.requires_grad, net.fc.weight.requires_grad
        (False, True)
        >>> thaw()
        >>> net.conv1.weight.requires_grad
        True
    """
    kept_modules = {m for one in inserted(net) for m in one.module.modules()}
    for pattern in keep:
        matches = match(pattern)
        matched = [module for name, module in net.named_modules() if matches(name)]
        if not matched:
            raise ValueError(
                f"freeze_backbone: keep must match modules of {type(net).__name__}, got {pattern!r}"
            )
        kept_modules |= {m for module in matched for m in module.modules()}
    kept = {id(p) for m in kept_modules for p in m.parameters(recurse=False)}
    frozen = [p for p in net.parameters() if p.requires_grad and id(p) not in kept]
    if not any(p.requires_grad for p in net.parameters() if id(p) in kept):
        raise ValueError(
            "freeze_backbone: something must be left to train, got no inserted blocks and no keep"
        )
    norms = [
        (module, module.momentum)
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in kept_modules
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
        parameter.grad = None
    for module, _ in norms:
        module.momentum = 0.0

    def thaw() -> None:
        while frozen:
            frozen.pop().requires_grad_(True)
        while norms:
            module, momentum = norms.pop()
            module.momentum = momentum

    return thaw


def _inserted_ids(net: nn.Module) -> set[int]:
    return {id(p) for one in inserted(net) for p in one.module.parameters()}
