"""``relu(gate(x) + shortcut)`` in one native call, into the memory of ``x``: what ends a residual branch at inference.

What does not change from call to call is collected once, see `foveal.ops.prepared_calls`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.errors import FovealError
from foveal.ops.kernels.native.call import Call
from foveal.ops.numerics import exporting, is_channels_last
from foveal.ops.whole_gate import ChannelHalf, SpatialHalf, arguments_of, options_of, weights_of
from foveal.ops.whole_gate_ops import outputs_of, prepared


def nobody_watches(*maps: Tensor) -> bool:
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
        x: feature map, for which ``whole_gate.why_not_native(x)`` is None.
        shortcut: another, laid out alike.
        channel, spatial: the halves of the gate, as in ``whole_gate.apply``.
        relu: whether a ReLU follows.
        seen: the map that is squeezed instead of ``x``, laid out alike, where the first layer of ``channel`` is for its
            channels.

    Returns:
        What was prepared, for `PreparedCalls.keep`.

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
    given = [*arguments_of(x, weights_of(channel, spatial), options_of(channel, spatial)), False]
    outputs = x, *outputs_of(x, *given)[1:]
    call = prepared(x, given, outputs, shortcut=shortcut, seen=seen, relu=relu)
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
