"""Parameter groups for optimisers, and freezing: which parameters are inserted and which are the network's own."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from foveal.errors import FovealError
from foveal.insertion.hooks import inserted
from foveal.insertion.patterns import match


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


def backbone(
    net: nn.Module, keep: Iterable[nn.Module] = ()
) -> tuple[list[nn.Parameter], list[nn.modules.batchnorm._NormBase]]:
    """Parameters, and normalisations with running statistics, in neither inserted blocks nor the modules ``keep``.

    Of a network that calls a part of it ``backbone``, as those for segmentation do, what lies in that part.
    """
    body = getattr(net, "backbone", None)
    body = body if isinstance(body, nn.Module) else net
    kept = {m for top in [*(one.module for one in inserted(net)), *keep] for m in top.modules()}
    kept_parameters = {id(p) for m in kept for p in m.parameters(recurse=False)}
    norms = [m for m in body.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m not in kept]
    return (
        [p for p in body.parameters() if id(p) not in kept_parameters],
        [m for m in norms if m.running_mean is not None],
    )


def freeze_backbone(net: nn.Module, keep: Iterable[str | nn.Module] = ()) -> Callable[[], None]:
    """Stop training everything but the inserted blocks; the returned function thaws it again.

    Parameters get ``requires_grad=False`` (and no gradient), and batch normalisation keeps its running
    statistics (momentum 0), so that a thawed network is the one it was. Backward computes no gradient of a frozen
    weight, and nothing at all below the first module that trains.

    Args:
        net: network with inserted blocks. Where it calls a part of it ``backbone``, only that part is frozen.
        keep: modules that go on training, or path patterns of them (as in `insert`), such as a new classifier
            ``"fc"``.

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
    kept: list[nn.Module] = []
    for pattern in keep:
        if isinstance(pattern, nn.Module):
            kept.append(pattern)
            continue
        matches = match(pattern)
        matched = [module for name, module in net.named_modules() if matches(name)]
        if not matched:
            raise FovealError(f"keep must match modules of {type(net).__name__}, got {pattern!r}")
        kept += matched
    parameters, normalisations = backbone(net, kept)
    frozen = [p for p in parameters if p.requires_grad]
    if len(frozen) == sum(p.requires_grad for p in net.parameters()):
        raise FovealError("something must be left to train, got no inserted blocks and no keep")
    norms = [(module, module.momentum) for module in normalisations]
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
