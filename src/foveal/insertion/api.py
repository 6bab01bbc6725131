"""Put blocks at sites and take them out again; the network keeps every name and value it had."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from foveal.errors import FovealError
from foveal.insertion.build import Block, build, resolve
from foveal.insertion.example import compiled_parts
from foveal.insertion.hooks import Insertion, attach, detach, inserted
from foveal.insertion.locate import find_sites, require_usable
from foveal.insertion.own import from_file
from foveal.insertion.patterns import match
from foveal.insertion.trace import ModuleCall
from foveal.insertion.verify import verify


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
    such pass checks that every new block is called once, that what it returns is what flows on from its site (at
    ``"residual"``: into the addition), that it keeps shape and dtype and, with ``start="identity"``, changes no
    value, also none that is zero only as long as a norm starts at zero. If not, everything is taken back.

    Args:
        net: any convolutional network, 1-D to 3-D.
        block: a name in `foveal.nn.BLOCKS`, a class or factory called as ``block(channels, **options)``, or a
            Python file that defines one and its name, ``"mine.py:MyBlock"``; the file is run.
        at: ``"residual"`` (end of the residual branch, before the addition), ``"block"`` (after each block),
            ``"stage"`` (after each stage), ``"pre"`` (what the branch is given, but not the shortcut), ``"shortcut"``
            (where a module makes it), or a pattern of module paths such as ``"layer3.*"`` or
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
        FovealError: unknown block or option, a pattern that matches nothing, a site where no block can go, a
            stage that does not exist, a block that refuses the channels or changes a value at start; a network that
            is compiled, scripted, or has lazy modules that saw no batch yet.

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
    _refuse_compiled(net)
    name, make, fixed = resolve(from_file(block))
    options = {**fixed, **options}
    listed, trace = find_sites(net, at, stages=stages, example=example)
    targets = require_usable(listed, net, at)
    calls = {call.name: call for call in trace.calls}
    built = []
    # parameters made in inference mode could never be trained
    with torch.inference_mode(False):
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
        verify(net, attached, at, stages, trace.example)
    except BaseException:
        for one in reversed(attached):
            detach(net, one)
        raise
    return net


def remove(net: nn.Module, pattern: str | None = None) -> nn.Module:
    """Take inserted blocks out again, in place: modules, state dict and output are as before their insertion.

    Args:
        net: a network with inserted blocks.
        pattern: of the paths of sites or blocks to clear, as in `insert`; all by default.

    Raises:
        FovealError: the network is compiled, or the pattern matches no inserted block.
    """
    _refuse_compiled(net)
    present = inserted(net, check=False)
    if pattern is not None:
        matches = match(pattern)
        chosen = [one for one in present if matches(one.site) or matches(one.path)]
        if not chosen:
            listed = ", ".join(one.path for one in present) or "none"
            raise FovealError(f"pattern must match an inserted block ({listed}), got {pattern!r}")
        present = chosen
    for one in present:
        detach(net, one)
    return net


def _refuse_compiled(net: nn.Module) -> None:
    """Code that was compiled without a block would go on running without it."""
    compiled = compiled_parts(net)
    if compiled:
        part = f" in {compiled[0]}" if compiled[0] else ""
        raise FovealError(
            "blocks must be inserted and removed before the network is compiled, got "
            f"{type(net).__name__} compiled by torch.compile{part}"
        )


def _like(module: nn.Module, site: nn.Module, call: ModuleCall) -> nn.Module:
    """The module with device and dtype of what the site returns, and the site's training flag."""
    return module.to(call.device, call.dtype).train(site.training)
