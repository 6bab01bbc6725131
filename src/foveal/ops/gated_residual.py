"""``relu(gate(x) + shortcut)`` in one native call, into the memory of ``x``: what ends a residual branch at inference.

A gate takes microseconds, and so does Python when it collects what a kernel needs. What does not change from call to
call is therefore collected once, in `ResidualCalls`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.errors import FovealError
from foveal.ops.kernels.native import openmp
from foveal.ops.kernels.native.call import SUMS, Call
from foveal.ops.numerics import exporting, is_channels_last
from foveal.ops.whole_gate import ChannelHalf, SpatialHalf, arguments_of
from foveal.ops.whole_gate_ops import KEPT, OPTIONS, WEIGHTS, checked, outputs_of

KEPT_BYTES = 2**22
"""Of memory that a call needs between its steps, so much is kept for the next one."""


class ResidualCalls:
    """Calls that were prepared for maps of one size and the weights of one gate; a copy begins without any."""

    def __init__(self) -> None:
        self._kept: tuple[list[Any], list[Call]] = ([], [])
        """What the calls are for, and those that nobody uses at this moment: one value, as threads replace it."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()

    def run(self, x: Tensor, shortcut: Tensor, seen: Tensor, weights: Sequence[Tensor]) -> bool:
        """Run a call that is there for such maps and weights, with as little Python as there can be; else say no."""
        key, free = self._kept
        if not _nobody_watches(x, shortcut) or key != _key(x, shortcut, seen, weights):
            return False
        try:
            call = free.pop()
        except IndexError:  # another thread has it
            return False
        call.run(x=x, y=x, shortcut=shortcut, seen=seen)
        free.append(call)
        return True

    def keep(self, call: Call, x: Tensor, shortcut: Tensor, seen: Tensor, weights: Sequence[Tensor]) -> None:
        """Keep a call for the next such maps, unless it needs much memory, or copies of weights."""
        # what was converted or copied would not follow its origin
        follows = all(weight.dtype == SUMS[x.dtype] and weight.is_contiguous() for weight in weights)
        if follows and call.bytes_between <= KEPT_BYTES:
            key = _key(x, shortcut, seen, weights)
            kept = self._kept
            if key != kept[0]:
                kept = self._kept = (key, [])
            kept[1].append(call)


def _key(x: Tensor, shortcut: Tensor, seen: Tensor, weights: Sequence[Tensor]) -> list[Any]:
    maps = [fact for one in (x, shortcut, seen) for fact in (one.shape, one.stride(), one.dtype)]
    return [openmp.threads_for(x.numel()), *maps, *[weight.data_ptr() for weight in weights]]


def _nobody_watches(*maps: Tensor) -> bool:
    """Whether no graph is recorded and no operator is replaced, as ``whole_gate.why_not_native`` asks at length."""
    return (
        all(type(one) is Tensor for one in maps)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and not exporting()
    )


def add_residual_(
    x: Float[Tensor, "b c *spatial"],
    shortcut: Float[Tensor, "b c *spatial"],
    channel: ChannelHalf | None,
    spatial: SpatialHalf | None,
    relu: bool,
    seen: Float[Tensor, "b seen *_"] | None = None,
) -> Call:
    """Compute ``g_c s_p x + shortcut``, and its ReLU if asked for, into the memory of ``x``; for inference.

    Args:
        x: feature map, for which ``whole_gate.why_not_native(x, None, None)`` is None.
        shortcut: another, laid out alike.
        channel, spatial: the halves of the gate, as in ``whole_gate.apply``.
        relu: whether a ReLU follows.
        seen: the map that is squeezed instead of ``x``, laid out alike, where the first layer of ``channel`` is for its
            channels.

    Returns:
        What was prepared, for `ResidualCalls.keep`.

    Raises:
        FovealError: maps that are not laid out alike, or weights of other shapes.

    Example:
        >>> x, shortcut, zeros = torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), -3.0), torch.zeros(2, 2)
        >>> half = ChannelHalf(zeros, None, zeros, torch.tensor([0.0, 100.0]), "mean", "sigmoid", 4.0)
        >>> _ = add_residual_(x, shortcut, half, None, relu=True)
        >>> x.flatten()
        tensor([0., 0., 0., 0., 1., 1., 1., 1.])
    """
    seen = x if seen is None else seen
    for name, one in (("shortcut", shortcut), ("seen", seen)):
        fits = one.shape == x.shape if name == "shortcut" else len(one) == len(x)
        if not (fits and laid_out_alike(one, x)):
            raise FovealError(
                f"{name} must be laid out as the map, {tuple(x.shape)} with strides {x.stride()}, {x.dtype}, got "
                f"{tuple(one.shape)} with strides {one.stride()}, {one.dtype}"
            )
    given = [*arguments_of(x, channel, spatial), False]
    named: dict[str, Any] = dict(zip((*WEIGHTS, *OPTIONS), given, strict=True))
    named |= checked(x, named, seen.shape[1])
    named |= dict(zip(KEPT, outputs_of(x, *given)[1:], strict=True))
    if named["w1"] is None:
        named["gate"].fill_(1)
    elif seen is not x:
        named["squeezed"] = named["squeezed"].new_empty(2, *seen.shape[:2])
    call = Call("forward", x, **named, y=x, shortcut=shortcut, seen=seen, relu=relu)
    call.run()
    return call


def laid_out_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two maps have one dtype and are both contiguous, or both channels-last.

    Example:
        >>> x = torch.ones(2, 3, 4, 5)
        >>> laid_out_alike(x, x.clone()), laid_out_alike(x, x.to(memory_format=torch.channels_last))
        (True, False)
    """
    if one.dtype != other.dtype:
        return False
    return one.is_contiguous() if other.is_contiguous() else is_channels_last(one)
