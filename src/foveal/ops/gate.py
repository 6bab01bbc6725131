"""Multiply a feature map by weights: channel and spatial gates, with few passes over the map.

A gate costs memory traffic, not arithmetic. While gradients are needed these functions save the input, the gates
and the places of the maxima, never a map in between; without gradients the gated map is finished in place.

A gate reads its map two or three times: for its statistics, and for the product. `GateInput` holds the map for all of
them, so that the gradients of these reads gather in one buffer instead of one new map each that autograd adds up::

    x = GateInput(x)
    channel_gate = ...x.squeeze(["mean", "max"])...
    statistics, source = x.spatial_statistics(channel_gate)
    spatial_gate = ...statistics...
    y = x.scale(channel_gate, spatial_gate)

The functions below do one of these steps on its own.

A maximum sends its gradient to the first of equal positions, as ``torch.max`` with indices does; the oracle, and
a compiled or exported network, share it among them, as ``torch.amax`` does. Both are subgradients.
Any number of spatial sizes, contiguous and channels-last; `explain` says which backend runs.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.errors import FovealError
from foveal.ops import gate_ops, reference
from foveal.ops.choice import Choice
from foveal.ops.gate_ops import StatisticsSource
from foveal.ops.gradient_buffer import GradientBuffer, ShareInput
from foveal.ops.numerics import exporting

BACKENDS = ("plain", "eager", "triton")

TRITON_FROM = {"squeeze": math.inf, "scale": math.inf, "spatial_statistics": 2**24, "dual_scale": 2**24}
"""Values of the map from which the Triton kernel of an operation is taken. Below, launching a kernel from Python costs
more than it saves (H100, benchmarks/README.md): kernels then run only where a CUDA graph is being recorded, which takes
launching out of the replay."""


# -------------------------------------------------------------------------------------------- choosing a backend


def explain(operation: str, x: Float[Tensor, "b c *spatial"], *gates: Tensor) -> Choice:
    """Say which backend an operation takes for these tensors, and why not the others.

    Args:
        operation: ``"squeeze"``, ``"spatial_statistics"``, ``"scale"`` (by one gate) or ``"dual_scale"`` (by both).
        x: the feature map.
        gates: the factors it is multiplied by, if any.

    Returns:
        A `Choice` of ``"plain"`` (the literal equation, differentiated by PyTorch), ``"eager"`` (PyTorch's operators in
        few passes, with gradients of ours) or ``"triton"`` (CUDA kernels).

    Raises:
        ValueError: an unknown operation.

    Example:
        >>> print(explain("dual_scale", torch.ones(1, 8, 4, 4), torch.ones(1, 8), torch.ones(1, 1, 4, 4)))
        eager: PyTorch's operators, in few passes over the map
        not plain: takes more passes over the map
        not triton: it needs a CUDA tensor, got one on cpu
    """
    if operation not in TRITON_FROM:
        raise FovealError(f"operation must be one of {', '.join(TRITON_FROM)}, got {operation!r}")
    backend, why = _choose(operation, x, *gates)
    others = {
        "plain": "takes more passes over the map",
        "eager": _why_plain(x, *gates) or "takes more passes over the map",
        "triton": _why_plain(x, *gates) or _why_not_triton(operation, x) or "",
    }
    if backend == "plain" and _why_plain(x, *gates) is None:
        others["eager"] = "takes as many passes here"
    del others[backend]
    return Choice(backend, why, others)


def _choose(operation: str, x: Tensor, *gates: Tensor | None) -> tuple[str, str]:
    """Return the backend and the reason: the one place where it is decided."""
    if operation in ("squeeze", "scale") and not x.is_cuda and not _needs_grad(x, *gates):
        return "plain", "without gradients one pass is all there is"
    if (reason := _why_plain(x, *gates)) is not None:
        return "plain", reason
    if _why_not_triton(operation, x) is None:
        return "triton", "a CUDA kernel reads the map once"
    return "eager", "PyTorch's operators, in few passes over the map"


def _why_plain(x: Tensor, *gates: Tensor | None) -> str | None:
    """Return why only the literal equations will do; None if the faster forms run."""
    if torch.compiler.is_compiling() or exporting() or torch._C._are_functorch_transforms_active():
        return "the operations are being traced, by torch.compile, an export or torch.func"
    # fake, distributed, ...
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"the map is a {type(x).__name__}, which only PyTorch's operators know"
    if any(gate is not None and gate.dtype != x.dtype for gate in gates):
        return f"a gate has another dtype than the map's {x.dtype}"
    if x.numel() == 0:
        return "the map is empty"
    if not (x.is_contiguous() or x.movedim(1, -1).is_contiguous()):
        return f"the map is neither contiguous nor channels-last, but has strides {x.stride()}"
    return None


def _why_not_triton(operation: str, x: Tensor) -> str | None:
    """Return why the Triton kernel of ``operation`` is not taken; None if it is."""
    if not x.is_cuda:
        return f"it needs a CUDA tensor, got one on {x.device.type}"
    if x.numel() < TRITON_FROM[operation] and not torch.cuda.is_current_stream_capturing():
        return f"it pays from {TRITON_FROM[operation]} values or in a CUDA graph, got {x.numel()}"
    try:
        from foveal.ops.kernels import triton_gate
    except ImportError as error:
        return f"Triton does not import: {error}"
    return triton_gate.can_run(x)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# ------------------------------------------------------------------------------------------- one map, several reads


class GateInput:
    """A feature map that a gate reads several times: for its statistics, and for the product.

    Shapes: ``x`` (b, c, *spatial), contiguous or channels-last for the faster forms. The methods return ordinary
    tensors and can be called in any order and number; all gradients of ``x`` and of what they return are right for
    whoever looks at them, with hooks, ``retain_grad`` or ``torch.autograd.grad``.

    Args:
        x: feature map.

    Example:
        >>> x = GateInput(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]))
        >>> x.scale(torch.sigmoid(x.squeeze(["mean"])))
        tensor([[[0.9241, 3.6966],
                 [2.7724, 1.8483]]])

    Source: CBAM equations 1 to 3; SENet equations 2 to 4.
    """

    def __init__(self, x: Float[Tensor, "b c *spatial"]) -> None:
        self._buffer = None
        if _needs_grad(x) and _why_plain(x) is None:
            self._buffer = GradientBuffer(x)
            x = ShareInput.apply(x, self._buffer)
        self._x = x
        # the gate, the map multiplied by it, and the backend that computed it
        self._gated: tuple[Tensor, Tensor, str] | None = None

    def squeeze(self, statistics: Sequence[str] = ("mean",)) -> Float[Tensor, "sb c"]:
        """Return the statistics of every channel over all positions, stacked along the batch.

        Args:
            statistics: ``"mean"``, ``"max"`` or both, in the order wanted.

        Returns:
            (s*b, c): b rows of the first statistic, then b rows of the next.

        Example:
            >>> GateInput(torch.arange(8.0).reshape(1, 2, 2, 2)).squeeze(["mean", "max"])
            tensor([[1.5000, 5.5000],
                    [3.0000, 7.0000]])
        """
        x = self._x
        backend, _ = _choose("squeeze", x)
        if backend != "plain" and _needs_grad(x):
            return gate_ops.Squeeze.apply(x, self._buffer, tuple(statistics), backend)
        if backend == "triton" and len(statistics) > 1:
            from foveal.ops.kernels import triton_gate

            mean, largest, _ = triton_gate.squeeze(x)
            return torch.cat([mean if statistic == "mean" else largest for statistic in statistics])
        rows = [reference.squeeze(x, statistic) for statistic in statistics]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def spatial_statistics(
        self, channel_gate: Float[Tensor, "b c"] | None = None
    ) -> tuple[Float[Tensor, "b 2 *spatial"], StatisticsSource | None]:
        """Return mean and maximum over the channels of ``x`` times ``channel_gate``, mean first.

        Returns:
            The statistics, and what an operation can recompute them from instead of keeping them for backward (see
            ``convolution.narrow_convolution``); None where that does not apply.

        Example:
            >>> x = GateInput(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]))
            >>> x.spatial_statistics(torch.tensor([[1.0, 2.0]]))[0]
            tensor([[[3.5000, 4.0000],
                     [6.0000, 4.0000]]])
        """
        x = self._x
        backend, _ = _choose("spatial_statistics", x, channel_gate)
        if backend != "plain" and _needs_grad(x, channel_gate):
            statistics, gated, argmax = gate_ops.SpatialStatistics.apply(
                x, channel_gate, self._buffer, backend
            )
            if channel_gate is not None and gated is not None:
                self._gated = channel_gate, gated, backend
            return statistics, StatisticsSource(statistics, statistics._version, x, channel_gate, argmax)
        if backend == "triton":
            from foveal.ops.kernels import triton_gate

            return triton_gate.spatial_statistics(x, channel_gate)[0], None
        if channel_gate is not None:
            gated = reference.channel_scale(x, channel_gate)
            self._gated = channel_gate, gated, backend
            x = gated
        return (gate_ops if backend == "eager" else reference).spatial_statistics(x), None

    def scale(
        self,
        channel_gate: Float[Tensor, "b c"] | None = None,
        spatial_gate: Float[Tensor, "b 1 *spatial"] | None = None,
    ) -> Tensor:
        """Return ``x`` times the gates that are given, ``y_cp = channel_gate_c spatial_gate_p x_cp``.

        Raises:
            ValueError: no gate is given.

        Example:
            >>> gates = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 10.0]]])
            >>> GateInput(torch.ones(1, 2, 2)).scale(*gates)
            tensor([[[ 2., 20.],
                     [ 3., 30.]]])
        """
        x = self._x
        if channel_gate is None and spatial_gate is None:
            raise FovealError("scale must be given a channel gate, a spatial gate or both, got none")
        one_gate = channel_gate is None or spatial_gate is None
        backend, _ = _choose("scale" if one_gate else "dual_scale", x, channel_gate, spatial_gate)
        gated = None if one_gate else self._take_gated(channel_gate, backend)
        if backend != "plain":
            if _needs_grad(x, channel_gate, spatial_gate):
                return gate_ops.Scale.apply(x, channel_gate, spatial_gate, gated, self._buffer, backend)
            return gate_ops.scale(x, channel_gate, spatial_gate, gated, backend)
        if gated is None:
            gated = x if channel_gate is None else reference.channel_scale(x, channel_gate)
        return gated if spatial_gate is None else gated * spatial_gate

    def channel_scaled(self, channel_gate: Float[Tensor, "b c"]) -> Float[Tensor, "b c *spatial"]:
        """Return ``x`` times ``channel_gate``, without gradients, in memory that is the caller's to overwrite.

        The product is not computed again where ``spatial_statistics`` has just needed it.
        """
        backend, _ = _choose("spatial_statistics", self._x, channel_gate)
        gated = self._take_gated(channel_gate, backend)
        return reference.channel_scale(self._x, channel_gate) if gated is None else gated

    def _take_gated(self, channel_gate: Tensor | None, backend: str) -> Tensor | None:
        """Return ``x`` times this very gate if it is at hand, once: whoever takes it overwrites it."""
        if self._gated is None or self._gated[0] is not channel_gate or self._gated[2] != backend:
            return None
        gated = self._gated[1]
        # the product of plain operators carries the gradient, if it was computed where gradients were wanted
        if backend == "plain" and gated.requires_grad != _needs_grad(self._x, channel_gate):
            return None
        self._gated = None
        return gated


# ------------------------------------------------------------------------------------------------ one step at a time


squeeze = reference.squeeze


def channel_scale(x: Float[Tensor, "b c *spatial"], gate: Float[Tensor, "b c"]) -> Tensor:
    """Compute ``y_cp = gate_c x_cp``, as ``reference.channel_scale`` does.

    Example:
        >>> channel_scale(torch.ones(1, 2, 2), torch.tensor([[2.0, 3.0]]))
        tensor([[[2., 2.],
                 [3., 3.]]])

    Source: SENet equation 4.
    """
    return GateInput(x).scale(gate)


def spatial_statistics(x: Float[Tensor, "b c *spatial"], gate: Float[Tensor, "b c"] | None = None) -> Tensor:
    """Compute mean and maximum over channels of (gated) ``x``: (b, 2, *spatial), mean first.

    Example:
        >>> spatial_statistics(torch.tensor([[[1.0, 4.0], [3.0, 2.0]]]))
        tensor([[[2., 3.],
                 [3., 4.]]])

    Source: CBAM section 3.2.
    """
    return GateInput(x).spatial_statistics(gate)[0]


def dual_scale(
    x: Float[Tensor, "b c *spatial"],
    channel_gate: Float[Tensor, "b c"],
    spatial_gate: Float[Tensor, "b 1 *spatial"],
) -> Tensor:
    """Compute ``y_cp = channel_gate_c spatial_gate_p x_cp``.

    Example:
        >>> gates = torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 10.0]]])
        >>> dual_scale(torch.ones(1, 2, 2), *gates)
        tensor([[[ 2., 20.],
                 [ 3., 30.]]])

    Source: CBAM equation 1, both gates at once.
    """
    return GateInput(x).scale(channel_gate, spatial_gate)
