"""From what the user names to a new block: a name, a class or a factory, with its options."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from foveal.errors import FovealError
from foveal.nn import BLOCKS

Block = str | Callable[..., nn.Module]
"""A name in `foveal.nn.BLOCKS`, a module class that takes ``(channels, ...)``, a factory that does, or
``FILE.py:NAME``, which `foveal.insertion.own.from_file` makes one of these."""


def resolve(
    block: Block, blocks: Mapping[str, Any] | None = None
) -> tuple[str, Callable[..., nn.Module], dict[str, Any]]:
    """The name a block is recorded by, what makes it, and the options that a ``functools.partial`` fixed.

    A class of one's own is recorded by its own name, a function without one as ``block``.
    """
    known = {**BLOCKS, **(blocks or {})}
    if isinstance(block, str):
        if block not in known:
            close = difflib.get_close_matches(block, known, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise FovealError(
                f"block must be one of {', '.join(known)}, a class or a factory, got {block!r}{hint}"
            )
        return block, known[block], {}
    if isinstance(block, nn.Module):
        raise FovealError(
            f"block must be a class or factory that makes one module for each site, "
            f"got one {type(block).__name__} instance"
        )
    if not callable(block):
        raise FovealError(f"block must be a name, a class or a factory, got {type(block).__name__}")
    make: Callable[..., nn.Module] = block
    fixed: dict[str, Any] = {}
    # what a partial fixes is an option like any other, and must come back from a file
    if isinstance(block, functools.partial) and not block.args:
        make, fixed = block.func, dict(block.keywords)
    for name, known_class in BLOCKS.items():
        if make is known_class:
            return name, make, fixed
    maker = make.func if isinstance(make, functools.partial) else make
    name = getattr(maker, "__name__", "block")
    name = name if name.isidentifier() else "block"
    if name in BLOCKS:
        raise FovealError(
            f"a block of one's own must have another name than foveal's {', '.join(BLOCKS)}, got {name!r}"
        )
    return name, make, fixed


def build(
    name: str,
    make: Callable[..., nn.Module],
    channels: int,
    dims: int,
    start: str,
    options: dict[str, Any],
) -> nn.Module:
    """One new block for a feature map; ``start`` and ``dims`` are passed on to blocks that have the option."""
    if start not in ("identity", "paper"):
        raise FovealError(f"start must be 'identity' or 'paper', got {start!r}")
    known = inspect.signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for option in options:
        if option not in known and not takes_any:
            offered = [n for n, p in known.items() if p.kind is not p.VAR_POSITIONAL][1:]
            raise FovealError(f"{name} must be given its own options ({', '.join(offered)}), got {option!r}")
    found = {key: value for key, value in {"start": start, "dims": dims}.items() if key in known}
    try:
        module = make(channels, **{**found, **options})
    except (TypeError, ValueError) as error:
        raise FovealError(f"{name} of {channels} channels: {error}") from error
    if not isinstance(module, nn.Module):
        raise FovealError(f"{name} must make an nn.Module, got {type(module).__name__}")
    return module
