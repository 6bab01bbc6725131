"""How a block hangs on its site, how it comes off again, and how one tells which blocks a network has."""

import functools
import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from foveal.errors import FovealError

RECORD = "foveal_insertion"
"""Attribute of an inserted block that holds what was asked for; its presence is what makes a block inserted."""


@dataclass(frozen=True)
class Insertion:
    """One inserted block.

    Attributes:
        site: path of the module whose output (or, with ``before``, input) the block takes.
        path: path of the block itself; its parameters' names begin so.
        block: the name it was inserted by.
        options: the block's own options.
        start: ``"identity"`` or ``"paper"``.
        channels: width of the feature map.
        dims: number of its spatial dimensions.
        before: whether the block takes what the site is given.
        module: the block.
    """

    site: str
    path: str
    block: str
    options: dict[str, Any]
    start: str
    channels: int
    dims: int
    before: bool
    module: nn.Module = field(repr=False)


def require_module(net: object) -> None:
    """Refuse what is no network, such as the state dict that ``torch.load`` returns in its place."""
    if not isinstance(net, nn.Module):
        hint = "; its weights alone do not say what to compute" if isinstance(net, Mapping) else ""
        raise FovealError(f"a network must be an nn.Module, got {type(net).__name__}{hint}")


def inserted(net: nn.Module, *, check: bool = True) -> list[Insertion]:
    """The inserted blocks, in the order of the network's modules.

    Raises:
        FovealError: a block is no longer applied, because its site was replaced by another module after the
            insertion (``convert_sync_batchnorm`` and batch-norm folding do that), or is gone, as in a network that
            `foveal.fuse` made. ``check=False`` lists all.
    """
    require_module(net)
    listed = []
    for path, module in net.named_modules():
        record = getattr(module, RECORD, None)
        if record is None:
            continue
        site = path[: -len(record["suffix"])].rstrip(".")
        if check and record["hooked"] and hook_key(_site_of(net, site, path), record) is None:
            raise FovealError(
                f"the block {path} must be applied by its site, got {site} replaced by another module "
                "since the insertion; replace modules (such as by convert_sync_batchnorm) before inserting"
            )
        listed.append(_insertion(site, path, record, module))
    return listed


def _site_of(net: nn.Module, site: str, path: str) -> nn.Module:
    try:
        return net.get_submodule(site)
    except AttributeError:
        raise FovealError(
            f"the block {path} must lie below its site, got a network that was rewritten since the insertion, as "
            "foveal.fuse does; take the network it was made from"
        ) from None


def attach(
    net: nn.Module,
    site: str,
    module: nn.Module,
    record: dict[str, Any],
    *,
    before: bool,
    path: str | None = None,
) -> Insertion:
    """Register ``module`` below ``site`` and a forward hook of the site that applies it; nothing is traced.

    The block becomes a child of the site. A plain ``nn.Sequential`` runs its children itself, so there the block
    is simply the last one. Other containers (``ModuleDict``, a ``Sequential`` with its own forward) may walk over
    all their children in ways of their own, so there the block hangs on the container's last ordinary descendant,
    out of the way, and the container's hook applies it.

    Args:
        net: the network.
        site: path of the module.
        module: the block.
        record: what was asked for: ``block``, ``options``, ``start``, ``channels`` and ``dims``.
        before: whether the block takes what the site is given.
        path: where the block was before, for one that comes back from a file.
    """
    host = net.get_submodule(site)
    holder, way = host, []
    runs_itself = (
        isinstance(host, nn.Sequential) and type(host).forward is nn.Sequential.forward and not before
    )
    while not runs_itself and isinstance(holder, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        children = list(holder.named_children())
        if not children:
            raise FovealError(f"a container must hold a module to take a block, got {site}, which is empty")
        way.append(children[-1][0])
        holder = children[-1][1]
    name = path.rpartition(".")[2] if path is not None else _free_name(holder, record["block"].lower())
    if hasattr(holder, name):
        raise FovealError(f"a block must have a name of its own, got {site} with {name!r} already there")
    record = {**record, "suffix": ".".join([*way, name]), "before": before, "hooked": not runs_itself}
    setattr(module, RECORD, record)
    holder.add_module(name, module)
    if record["hooked"] and before:
        hook = functools.partial(_apply_before, record["suffix"])
        host.register_forward_pre_hook(hook, with_kwargs=True)
    elif record["hooked"]:
        host.register_forward_hook(functools.partial(_apply_after, record["suffix"]))
    return _insertion(site, f"{site}.{record['suffix']}", record, module)


def rename(one: Insertion, block: str, options: dict[str, Any]) -> None:
    """Record a block as what it is instead of by what made it: its class and the class's own options."""
    setattr(one.module, RECORD, {**getattr(one.module, RECORD), "block": block, "options": options})


def detach(net: nn.Module, one: Insertion) -> None:
    """Take one block and its hook off the network."""
    site = _site_of(net, one.site, one.path)
    record = getattr(one.module, RECORD)
    key = hook_key(site, record) if record["hooked"] else None
    if key is not None:
        remove_hook(site, key)
    holder, _, name = one.path.rpartition(".")
    del net.get_submodule(holder)._modules[name]
    delattr(one.module, RECORD)


def hook_key(site: nn.Module, record: dict[str, Any]) -> int | None:
    """The key, in the site's hooks, of the one that applies the block of this record; None where it has none."""
    hooks = site._forward_pre_hooks if record["before"] else site._forward_hooks
    apply = _apply_before if record["before"] else _apply_after
    for key, hook in hooks.items():
        if isinstance(hook, functools.partial) and hook.func is apply and hook.args == (record["suffix"],):
            return key
    return None


def remove_hook(site: nn.Module, key: int) -> None:
    """Unregister a forward hook by its key, which no two hooks of a module share."""
    for hooks in (
        site._forward_hooks,
        site._forward_pre_hooks,
        site._forward_hooks_with_kwargs,
        site._forward_pre_hooks_with_kwargs,
    ):
        hooks.pop(key, None)


def _apply_after(suffix: str, site: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return site.get_submodule(suffix)(output)


def _apply_before(suffix: str, site: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    block = site.get_submodule(suffix)
    if args:
        return (block(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: block(kwargs[name])}


def _insertion(site: str, path: str, record: dict[str, Any], module: nn.Module) -> Insertion:
    return Insertion(
        site=site,
        path=path,
        block=record["block"],
        options=dict(record["options"]),
        start=record["start"],
        channels=record["channels"],
        dims=record["dims"],
        before=record["before"],
        module=module,
    )


def _free_name(holder: nn.Module, name: str) -> str:
    if keyword.iskeyword(name):  # "nonlocal": generated code, such as that of torch.fx, writes site.nonlocal
        name += "_"
    free, count = name, 1
    while hasattr(holder, free):
        count += 1
        free = f"{name}_{count}"
    return free
