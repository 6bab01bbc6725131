"""What attention keeps for every pair of positions: how many bytes, and what is computed in tiles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.export.program import Program

SIZE = (1024, 2048)
"""Height and width of the image that bytes are said for: a street scene."""
QUADRATIC = 12
"""What has a value for every pair of positions grows 16 times with twice the sides, but for rounding."""


def bytes_of_pairs(program: Program) -> dict[str, int]:
    """The bytes of the largest tensor with a value for every pair of positions, of each module that has one.

    They are of one image of SIZE. Nothing is known of a program whose sizes are fixed.
    """
    image = next(node.meta["val"] for node in program.exported.graph.nodes if node.name in _inputs(program))
    free = {
        name: size.node.expr
        for axis, name in program.free.items()
        if isinstance(size := image.shape[axis], torch.SymInt)
    }
    if not {"height", "width"} <= free.keys():
        return {}
    known: dict[Any, tuple[float, float]] = {}
    found: dict[str, int] = {}
    for node in program.exported.graph.nodes:
        made = node.meta.get("val")
        if not isinstance(made, Tensor) or not any(isinstance(size, torch.SymInt) for size in made.shape):
            continue
        sizes = tuple(size.node.expr if isinstance(size, torch.SymInt) else size for size in made.shape)
        if sizes not in known:
            known[sizes] = _values(sizes, free, 1), _values(sizes, free, 2)
        large, small = known[sizes]
        if large < QUADRATIC * small:
            continue
        stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        path = program.readable(stack[-1]) if stack else ""
        found[path] = max(found.get(path, 0), int(large) * made.element_size())
    return found


def _inputs(program: Program) -> tuple[str, ...]:
    return tuple(program.exported.graph_signature.user_inputs)


def _values(sizes: tuple[Any, ...], free: dict[str, Any], smaller: int) -> float:
    """The number of values of a tensor, for one image of SIZE or so many times smaller."""
    height, width = (side // smaller for side in SIZE)
    given = {free["height"]: height, free["width"]: width}
    if "batch" in free:
        given[free["batch"]] = 1
    return math.prod(int(size.subs(given)) if hasattr(size, "subs") else size for size in sizes)


def pair_lines(pairs: dict[str, int], in_tiles: set[str]) -> list[str]:
    """A line for each module, for a person.

    Example:
        >>> pair_lines({"layer3.0.dual": 2**28, "layer4.0.nonlocal": 2**24}, {"layer4.0.nonlocal"})[0]
        'layer3.0.dual keeps a value for every pair of positions: 268 MB an image of 1024 x 2048'
        >>> pair_lines({"layer4.0.nonlocal": 2**24}, {"layer4.0.nonlocal"})
        ['layer4.0.nonlocal goes through its pairs of positions in tiles']
    """
    height, width = SIZE
    return [
        f"{path or 'the network'} goes through its pairs of positions in tiles"
        if path in in_tiles
        else f"{path or 'the network'} keeps a value for every pair of positions: "
        f"{count / 1e6:,.0f} MB an image of {height} x {width}"
        for path, count in pairs.items()
    ]


def no_tiles(path: Path) -> set[str]:
    """The modules that a runtime takes in tiles which computes a graph as it is written."""
    return set()
