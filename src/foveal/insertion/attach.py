"""Put blocks at sites and take them out again; the network keeps every name and value it had."""

import functools
import keyword
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.insertion.find import Site, found, match
from foveal.insertion.make import Block, build, resolve
from foveal.insertion.trace import RECORD, Call, run, undisturbed


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
    module: nn.Module


def insert(
    net: nn.Module,
    block: Block,
    *,
    at: str = "residual",
    stages: Iterable[int] | None = None,
    start: str = "identity",
    example: Any = None,
    **options: Any,
) -> nn.Module:
    """Put a block at every site of ``net`` that ``at`` names, in place. Calls compose.

    The channels of each site come from one forward pass in eval mode that leaves the network as it was. A second
    such pass checks that every new block is called once, keeps shape and dtype and, with ``start="identity"``,
    changes no value; if not, everything is taken back.

    Args:
        net: any convolutional network, 1-D to 3-D.
        block: a name in `foveal.nn.BLOCKS`, or a class or factory called as ``block(channels, **options)``.
        at: ``"residual"`` (end of the residual branch, before the addition), ``"block"`` (after each block),
            ``"stage"`` (after each stage), or a pattern of module paths such as ``"layer3.*"`` or
            ``"features.1[0-9]"``: ``*`` and ``?`` stay between two dots, ``**`` crosses them.
        stages: numbers of the stages to take, from 1, such as ``(3, 4)``; all by default.
        start: ``"identity"``: the network's output is bit-equal before and after; ``"paper"``: the block's own
            initialisation. Passed on to blocks that have the option.
        example: a tensor, tuple or dictionary of inputs to trace with; by default one image of the network's own
            size (`default_cfg`), otherwise 224 x 224.
        **options: the block's own options.

    Returns:
        ``net``.

    Raises:
        ValueError: unknown block or option, a pattern that matches nothing, a site where no block can go, a
            stage that does not exist, a block that refuses the channels or changes the output at start.

    Example:
        >>> import foveal, torch
        >>> net = foveal.create_model("cifar_resnet8", num_classes=10).eval()
        >>> x = torch.randn(1, 3, 32, 32)
        >>> before = net(x)
        >>> net = foveal.insert(net, "se", at="residual", stages=(2, 3), reduction=4)
        >>> [one.path for one in foveal.inserted(net)]
        ['layer2.0.bn2.se', 'layer3.0.bn2.se']
        >>> torch.equal(net(x), before)
        True
        >>> net = foveal.remove(net)
    """
    name, make = resolve(block)
    listed, watched = found(net, at, stages=stages, example=example)
    targets = usable(listed, net, at)
    calls = {call.name: call for call in watched.calls}
    built = []
    for site in targets:
        dims = len(site.shape) - 1
        try:
            module = build(name, make, site.channels, dims, start, options)
        except ValueError as error:
            raise FovealError(f"{error}, at {site.name}") from error
        record = {"block": name, "options": dict(options), "start": start}
        record |= {"channels": site.channels, "dims": dims}
        built.append((site, _like(module, net.get_submodule(site.name), calls[site.name]), record))
    attached: list[Insertion] = []
    try:
        for site, module, record in built:
            attached.append(attach(net, site.name, module, record, before=site.before))
        _verify(net, attached, *watched.example)
    except BaseException:
        for one in reversed(attached):
            _detach(net, one)
        raise
    return net


def remove(net: nn.Module, pattern: str | None = None) -> nn.Module:
    """Take inserted blocks out again, in place: modules, state dict and output are as before their insertion.

    Args:
        net: a network with inserted blocks.
        pattern: of the paths of sites or blocks to clear, as in `insert`; all by default.

    Raises:
        ValueError: the pattern matches no inserted block.
    """
    present = inserted(net, check=False)
    if pattern is not None:
        matches = match(pattern)
        chosen = [one for one in present if matches(one.site) or matches(one.path)]
        if not chosen:
            listed = ", ".join(one.path for one in present) or "none"
            raise FovealError(f"pattern must match an inserted block ({listed}), got {pattern!r}")
        present = chosen
    for one in present:
        _detach(net, one)
    return net


def inserted(net: nn.Module, *, check: bool = True) -> list[Insertion]:
    """The inserted blocks, in the order of the network's modules.

    Raises:
        ValueError: a block is no longer applied, because its site was replaced by another module after the
            insertion (``convert_sync_batchnorm`` and batch-norm folding do that). ``check=False`` lists all.
    """
    listed = []
    for path, module in net.named_modules():
        record = getattr(module, RECORD, None)
        if record is None:
            continue
        site = path[: -len(record["suffix"])].rstrip(".")
        if check and record["hooked"] and _hook_key(net.get_submodule(site), record) is None:
            raise FovealError(
                f"the block {path} must be applied by its site, got {site} replaced by another module "
                "since the insertion; replace modules (such as by convert_sync_batchnorm) before inserting"
            )
        listed.append(
            Insertion(
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
        )
    return listed


def usable(listed: list[Site], net: nn.Module, at: str) -> list[Site]:
    """The sites, once each; refused as a whole when one of them cannot take a block."""
    unusable = [site for site in listed if site.reason is not None]
    if unusable:
        shown = "; ".join(f"{site.name}: {site.reason}" for site in unusable[:3])
        more = f"; and {len(unusable) - 3} more" if len(unusable) > 3 else ""
        raise FovealError(
            f"every site of at={at!r} must be able to take a block, got {len(unusable)} of {len(listed)} "
            f"in {type(net).__name__} that cannot: {shown}{more}"
        )
    return list({site.name: site for site in listed}.values())


def _like(module: nn.Module, site: nn.Module, call: Call) -> nn.Module:
    """Device and dtype of what the site returns, training flag of the site."""
    return module.to(call.device, call.dtype).train(site.training)


# ----------------------------------------------------------------------------------- how a block hangs on a site


def attach(
    net: nn.Module,
    site: str,
    module: nn.Module,
    record: dict[str, Any],
    *,
    before: bool,
    path: str | None = None,
) -> Insertion:
    """Hang a block on a site by name, without tracing; ``record`` says what was asked for.

    ``path`` is where the block went before, for one that comes back from a file.

    The block becomes a child of the site, and a forward hook of the site applies it. A plain ``nn.Sequential``
    runs its children itself, so there the block is simply the last one. Other containers (``ModuleDict``, a
    ``Sequential`` with its own forward) may walk over all their children in ways of their own, so there the block
    hangs on the container's last ordinary descendant, out of the way, and the container's hook applies it.
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
    name = path.rpartition(".")[2] if path is not None else _free_name(holder, record["block"])
    if hasattr(holder, name):
        raise FovealError(f"a block must have a name of its own, got {site} with {name!r} already there")
    record = {**record, "suffix": ".".join([*way, name]), "before": before, "hooked": not runs_itself}
    setattr(module, RECORD, record)
    holder.add_module(name, module)
    if record["hooked"] and before:
        host.register_forward_pre_hook(functools.partial(_apply_before, record["suffix"]))
    elif record["hooked"]:
        host.register_forward_hook(functools.partial(_apply_after, record["suffix"]))
    path = f"{site}.{record['suffix']}"
    listed = {k: record[k] for k in ("block", "options", "start", "channels", "dims", "before")}
    return Insertion(site=site, path=path, module=module, **listed)


def _apply_after(suffix: str, site: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return site.get_submodule(suffix)(output)


def _apply_before(suffix: str, site: nn.Module, args: tuple) -> tuple:
    return (site.get_submodule(suffix)(args[0]), *args[1:])


def _hook_key(site: nn.Module, record: dict[str, Any]) -> int | None:
    hooks = site._forward_pre_hooks if record["before"] else site._forward_hooks
    apply = _apply_before if record["before"] else _apply_after
    for key, hook in hooks.items():
        if isinstance(hook, functools.partial) and hook.func is apply and hook.args == (record["suffix"],):
            return key
    return None


def _detach(net: nn.Module, one: Insertion) -> None:
    site = net.get_submodule(one.site)
    record = getattr(one.module, RECORD)
    key = _hook_key(site, record) if record["hooked"] else None
    if key is not None:
        del (site._forward_pre_hooks if one.before else site._forward_hooks)[key]
    holder, _, name = one.path.rpartition(".")
    del net.get_submodule(holder)._modules[name]
    delattr(one.module, RECORD)


def _free_name(holder: nn.Module, name: str) -> str:
    if keyword.iskeyword(name):  # "nonlocal": generated code, such as that of torch.fx, writes site.nonlocal
        name += "_"
    free, count = name, 1
    while hasattr(holder, free):
        count += 1
        free = f"{name}_{count}"
    return free


def _verify(net: nn.Module, attached: list[Insertion], args: tuple, kwargs: dict) -> None:
    """Run once and hold every new block to its promises."""
    calls = dict.fromkeys((one.path for one in attached), 0)
    broken: list[str] = []

    def check(module: nn.Module, given: tuple, output: Any, one: Insertion) -> None:
        calls[one.path] += 1
        (x,) = given
        if not isinstance(output, Tensor) or output.shape != x.shape or output.dtype != x.dtype:
            got = type(output).__name__
            got = f"{tuple(output.shape)} {output.dtype}" if isinstance(output, Tensor) else got
            broken.append(
                f"the block {one.block} must return the shape and dtype it is given at {one.site} "
                f"({tuple(x.shape)} {x.dtype}), got {got}"
            )
        elif one.start == "identity" and not x.is_meta and not _equal(x, output):
            broken.append(
                f"the block {one.block} must change no value at {one.site} with start='identity', got a "
                f"change of {(output - x).abs().max().item():.3g}; pass start='paper' to insert it as it is"
            )

    with ExitStack() as stack:
        stack.enter_context(undisturbed(net))
        for one in attached:
            stack.callback(one.module.register_forward_hook(functools.partial(check, one=one)).remove)
        try:
            run(net, args, kwargs, rule=f"the block {attached[0].block} must run at its sites")
        except ValueError as error:
            if broken:  # what a block did wrong may show only in the module after it
                raise FovealError(broken[0]) from error
            raise
    for one in attached:
        if calls[one.path] != 1:
            broken.append(
                f"forward must call the block at {one.site} once, got {calls[one.path]} calls: "
                f"{one.site} does not run as an ordinary module"
            )
    if broken:
        raise FovealError(broken[0])


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
