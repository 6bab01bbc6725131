"""What a format is: how its files are recognised, which network they fit, and what each tensor is called there.

One table of rules serves both directions: every tensor of ours has exactly one name and shape in the peer's file,
and no value changes on the way, so that converting back gives the same bits.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Shape = tuple[int, ...]

STATE = "(weight|bias|running_mean|running_var|num_batches_tracked)"
"""Last part of the names of a layer with its statistics."""


class Shapes(dict[str, Shape]):
    """Shapes by name. What is asked for and absent gives a default: the table then lists it as missing."""

    def size(self, name: str, axis: int, default: int) -> int:
        shape = self.get(name, ())
        return shape[axis] if axis < len(shape) else default

    def blocks(self, pattern: str) -> Shape:
        """How many residual blocks each stage has; ``pattern`` captures stage and block."""
        found = {m.groups() for name in self if (m := re.match(pattern, name))}
        stages = sorted({stage for stage, _ in found})
        return tuple(sum(1 for s, _ in found if s == stage) for stage in stages)

    def any(self, pattern: str) -> bool:
        return any(re.match(pattern, name) for name in self)


@dataclass(frozen=True)
class Rule:
    """Names of ours that match ``ours`` as a whole are ``theirs`` in the file, as `re.Match.expand` reads it.

    ``unit#`` in ``theirs`` becomes the group ``unit`` counted from 1; ``shape`` gives the shape in the file.
    """

    ours: str
    theirs: str
    shape: Callable[[Shape], Shape] = lambda shape: shape

    def __call__(self, name: str) -> str | None:
        match = re.fullmatch(self.ours, name)
        if match is None:
            return None
        theirs = match.expand(self.theirs)
        return theirs.replace("unit#", f"unit{int(match['unit']) + 1}") if "unit#" in theirs else theirs


def pointwise(shape: Shape) -> Shape:
    """A linear layer's weight as a 1x1 convolution's."""
    return (*shape, 1, 1)


@dataclass(frozen=True)
class Format:
    """One kind of published file.

    Attributes:
        signature: patterns that each match the beginning of some name in such a file.
        build: from the shapes in a file and the stated options, the network of ours that fits, and in words which
            variant it is. Called under the meta device: nothing is allocated.
        rules: for a network; the first that matches a name applies, other names are the same here and there.
        ambiguous_options: options that the file does not show.
        assumed: in words, options of the peer that no file shows and that are taken to be its defaults.
        ignored_names: pattern of names whose tensors the peer's own forward never reads.
        only: pattern that begins every name of such a file; for single blocks, whose names occur in networks too.
        info: from the network, what its weights file says beside the weights.
        join, part: from a file's tensors (or shapes) to those that ``rules`` name, and back; where the peer keeps in
            several tensors what is one here.
    """

    name: str
    signature: tuple[str, ...]
    build: Callable[[Shapes, dict[str, Any]], tuple[nn.Module, str]]
    rules: tuple[Rule, ...] | Callable[[nn.Module], tuple[Rule, ...]]
    ambiguous_options: tuple[str, ...] = ()
    assumed: str = ""
    ignored_names: str | None = None
    only: str | None = None
    info: Callable[[nn.Module], dict[str, Any]] | None = None
    join: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    part: Callable[[Mapping[str, Any]], dict[str, Any]] = dict

    def matches(self, shapes: Shapes) -> bool:
        alone = self.only is None or all(re.match(self.only, name) for name in shapes)
        return alone and all(shapes.any(mark) for mark in self.signature)

    def table(self, net: nn.Module) -> dict[str, tuple[str, Shape]]:
        """By each name of ours, name and shape in the file."""
        rules = self.rules if isinstance(self.rules, tuple) else self.rules(net)
        return {
            name: _there(rules, name, tuple(tensor.shape))
            for name, tensor in tensors(net.state_dict()).items()
        }


def _there(rules: tuple[Rule, ...], name: str, shape: Shape) -> tuple[str, Shape]:
    for rule in rules:
        theirs = rule(name)
        if theirs is not None:
            return theirs, rule.shape(shape)
    return name, shape


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
