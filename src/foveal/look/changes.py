"""What of a block decides its attention, taken down so that a later change is noticed and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 2**16
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PLAIN = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class BlockState:
    """The modules, options and values of a block at one moment.

    Attributes:
        modules: {path: class} of the block and all inside it.
        options: {path.name: value} of their plain attributes, such as a scale.
        values: {path.name: (shape, dtype, device, checksums)} of their parameters and buffers.
    """

    modules: dict[str, str]
    options: dict[str, Any]
    values: dict[str, tuple[Any, ...]]

    def difference(self, other: BlockState) -> str | None:
        """The first thing that differs, in words; None where nothing does."""
        if self.modules != other.modules:
            return "the modules inside it changed"
        for name in self.options.keys() | other.options.keys():
            if repr(self.options.get(name)) != repr(other.options.get(name)):
                return f"its attribute {name} changed"
        for name in [*self.values, *other.values]:
            mine, others = self.values.get(name), other.values.get(name)
            if mine is None or others is None or mine[:3] != others[:3]:
                return f"the shape, type or device of its {name} changed"
            if not torch.equal(mine[3], others[3]):
                return f"the values of its {name} changed"
        return None


def block_state(block: nn.Module, training: Mapping[str, bool] | None = None) -> BlockState:
    """The state of a block now.

    Left out is what does not decide the attention: the mode, hooks, and the running statistics of BatchNorm in
    training mode, which every pass changes and none reads.

    Args:
        training: {path: mode} that counts as theirs; by default the mode they are in.

    Example:
        >>> block = nn.Linear(2, 2)
        >>> before = block_state(block)
        >>> _ = block.weight.data.mul_(2)
        >>> before.difference(block_state(block))
        'the values of its weight changed'
    """
    modules: dict[str, str] = {}
    options: dict[str, Any] = {}
    values: dict[str, tuple[Any, ...]] = {}
    for path, module in block.named_modules():
        dot = f"{path}." if path else ""
        modules[path] = f"{type(module).__module__}.{type(module).__qualname__}"
        options |= {
            f"{dot}{name}": value
            for name, value in vars(module).items()
            if isinstance(value, PLAIN) and name != "training" and not name.startswith("_")
        }
        unread = isinstance(module, nn.modules.batchnorm._BatchNorm) and (training or {}).get(
            path, module.training
        )
        held = [*module.named_parameters(recurse=False)]
        held += [] if unread else [*module.named_buffers(recurse=False)]
        for name, value in held:
            values[f"{dot}{name}"] = (tuple(value.shape), value.dtype, value.device, _checksums(value))
    return BlockState(modules, options, values)


@torch.no_grad()
def _checksums(value: Tensor) -> Tensor:
    """The bits of every `PIECE` values, each times an odd number of its place, summed up in 64 bits.

    The version counter of a tensor would not do: writing into ``parameter.data`` leaves it as it is.
    """
    flat = (torch.view_as_real(value) if value.is_complex() else value).detach().reshape(-1)
    bits = flat.view(INTEGERS[flat.element_size()])
    factors = _factors().to(bits.device)
    sums = [(piece * factors[: len(piece)]).sum() for piece in bits.split(PIECE)]
    return torch.stack(sums)


@cache
def _factors() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**63), 2**63 - 1, (PIECE,), generator=generator) | 1
