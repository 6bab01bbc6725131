"""Multiply a feature map by weights: channel and spatial gates, with few passes over the map.

A gate costs memory traffic, not arithmetic. While gradients are needed these functions save the input, the gates
and the places of the maxima, never a map in between; without gradients the gated map is finished in place.

``squeeze_through`` and ``gated_statistics`` also return ``x``. Use that one from there on: the gradients of
everything computed from it then gather in one buffer, instead of one new map each that autograd adds up::

    x, squeezed = squeeze_through(x, ["mean", "max"])
    channel_gate = ...
    x, statistics, gated = gated_statistics(x, channel_gate)
    spatial_gate = ...
    y = dual_scale(x, channel_gate, spatial_gate, gated)

A maximum sends its gradient to the first of equal positions, as ``torch.max`` with indices does; the oracle, and
a compiled or exported network, share it among them, as ``torch.amax`` does. Both are subgradients.
Any number of spatial sizes, contiguous and channels-last; other layouts, tensor subclasses, ``torch.compile``,
``torch.export`` and ``torch.func`` take the plain formulas. On CUDA, Triton kernels where they pay.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.ops import _gate, reference

squeeze = reference.squeeze


def squeeze_through(
    x: Float[Tensor, "b c *spatial"], statistics: Sequence[str] = ("mean",)
) -> tuple[Float[Tensor, "b c *spatial"], Float[Tensor, "sb c"]]:
    """``x``, and ``squeeze(x, s)`` for each s of ``statistics``, one below the other.

    Args:
        x: feature map.
        statistics: ``"mean"``, ``"max"`` or both, in the order wanted.

    Returns:
        ``x`` to go on with, and (s*b, c): b rows of the first statistic, then b rows of the next.

    Example:
        >>> x = torch.arange(8.0).reshape(1, 2, 2, 2)
        >>> squeeze_through(x, ["mean", "max"])[1]
        tensor([[1.5000, 5.5000],
                [3.0000, 7.0000]])

    Source: SENet equation 2; CBAM section 3.1.
    """
    if _needs_grad(x) and _gate.can_run(x):
        return _gate.Squeeze.apply(x, tuple(statistics))
    if len(statistics) > 1 and (kernels := _gate.kernels(x, smallest=math.inf)):
        mean, peak, _ = kernels.squeeze(x)
        return x, torch.cat([mean if statistic == "mean" else peak for statistic in statistics])
    rows = [squeeze(x, statistic) for statistic in statistics]
    return x, rows[0] if len(rows) == 1 else torch.cat(rows)


def channel_scale(x: Float[Tensor, "b c *spatial"], gate: Float[Tensor, "b c"]) -> Tensor:
    """``y_cp = gate_c x_cp``, as ``reference.channel_scale``.

    Example:
        >>> channel_scale(torch.ones(1, 2, 2), torch.tensor([[2.0, 3.0]]))
        tensor([[[2., 2.],
                 [3., 3.]]])

    Source: SENet equation 4.
    """
    if _needs_grad(x, gate) and _gate.can_run(x, gate):
        return _gate.Scale.apply(x, gate, None, None)
    return reference.channel_scale(x, gate)


def gated_statistics(
    x: Float[Tensor, "b c *spatial"], gate: Float[Tensor, "b c"] | None = None
) -> tuple[
    Float[Tensor, "b c *spatial"], Float[Tensor, "b 2 *spatial"], Float[Tensor, "b c *spatial"] | None
]:
    """``x``, ``spatial_statistics(x, gate)``, and what ``dual_scale`` needs to finish the product.

    Returns:
        ``x`` to go on with; mean and maximum over channels; where it had to be computed, ``x`` times ``gate``,
        a scratch map whose one use is as ``gated`` of ``dual_scale``, else None.

    Example:
        >>> gated_statistics(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]), torch.tensor([[1.0, 2.0]]))[1]
        tensor([[[3.5000, 4.0000],
                 [6.0000, 4.0000]]])

    Source: CBAM section 3.2.
    """
    if _needs_grad(x, gate) and _gate.can_run(x, gate):
        x, statistics, gated, place = _gate.Statistics.apply(x, gate)
        statistics.recomputed_from = x, gate, place  # so that the convolution after it need not keep it
        return x, statistics, gated
    if kernels := _gate.kernels(x):
        return x, kernels.spatial_statistics(x, gate)[0], None
    gated = None if gate is None else reference.channel_scale(x, gate)
    y = x if gated is None else gated
    if not torch.is_grad_enabled() and _gate.can_run(y):
        return x, _gate.spatial_statistics(y), gated
    return x, reference.spatial_statistics(y), gated


def spatial_statistics(x: Float[Tensor, "b c *spatial"], gate: Float[Tensor, "b c"] | None = None) -> Tensor:
    """Mean and max over channels of (gated) ``x``: (b, 2, *spatial), mean first.

    Example:
        >>> spatial_statistics(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]))
        tensor([[[2., 3.],
                 [3., 4.]]])

    Source: CBAM section 3.2.
    """
    return gated_statistics(x, gate)[1]


def dual_scale(
    x: Float[Tensor, "b c *spatial"],
    channel_gate: Float[Tensor, "b c"] | None,
    spatial_gate: Float[Tensor, "b 1 *spatial"],
    gated: Float[Tensor, "b c *spatial"] | None = None,
) -> Tensor:
    """``y_cp = channel_gate_c spatial_gate_p x_cp``; without a channel gate ``spatial_gate_p x_cp``.

    Args:
        x: feature map.
        channel_gate, spatial_gate: factors.
        gated: third result of ``gated_statistics``; it is overwritten and becomes the output.

    Example:
        >>> gates = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 10.0]]])
        >>> dual_scale(torch.ones(1, 2, 2), *gates)
        tensor([[[ 2., 20.],
                 [ 3., 30.]]])

    Source: CBAM equation 1, both gates at once.
    """
    if _needs_grad(x, channel_gate, spatial_gate) and _gate.can_run(x, channel_gate, spatial_gate):
        return _gate.Scale.apply(x, channel_gate, spatial_gate, gated)
    if gated is not None and not torch.is_grad_enabled() and gated.dtype == spatial_gate.dtype:
        return gated.mul_(spatial_gate)
    if channel_gate is None:
        return x * spatial_gate
    if (
        gated is None
        and spatial_gate.dtype == channel_gate.dtype == x.dtype
        and (kernels := _gate.kernels(x))
    ):
        return kernels.scale_add_relu(x, channel_gate, spatial_gate)
    return (reference.channel_scale(x, channel_gate) if gated is None else gated) * spatial_gate


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
