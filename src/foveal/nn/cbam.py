"""Convolutional Block Attention Module (Woo et al., ECCV 2018): a gate per channel, one per position."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.nn import check
from foveal.nn.batch_norm import BatchNorm, zero_init
from foveal.nn.positions import CONVOLUTIONS, Positions
from foveal.nn.squeeze_excite import SqueezeExcite
from foveal.ops import gate, whole_gate
from foveal.ops.convolution import narrow_convolution
from foveal.ops.gate_ops import StatisticsSource
from foveal.ops.prepared_calls import PreparedCalls


class _Variant(NamedTuple):
    # whether the two layers of the channel gate have biases
    mlp_bias: bool
    # what follows the spatial convolution: "none", "batch", or "zero", a BatchNorm whose scale starts at 0
    norm: str
    # whether the spatial convolution's first input channel is the maximum instead of the mean
    max_first: bool


VARIANTS = {
    "paper": _Variant(mlp_bias=False, norm="none", max_first=False),
    "article": _Variant(mlp_bias=False, norm="none", max_first=False),
    "official": _Variant(mlp_bias=True, norm="zero", max_first=True),
    "timm": _Variant(mlp_bias=False, norm="batch", max_first=False),
}

ARRANGEMENTS = ["channel-spatial", "spatial-channel", "parallel", "channel", "spatial"]


class ChannelGate(SqueezeExcite):
    """The channel half of CBAM, ``sigmoid(MLP(mean(x)) + MLP(max(x))) x`` with one shared MLP.

    ``SqueezeExcite`` with ``squeeze="both"``; arguments, shapes and errors as there.

    Args:
        variant: ``"official"`` has biases in the MLP; ``"paper"``, ``"article"`` and ``"timm"`` have none.

    Example:
        >>> import torch
        >>> ChannelGate(32, reduction=8)(torch.randn(1, 32, 5, 5)).shape
        torch.Size([1, 32, 5, 5])

    Source: Woo et al., "CBAM", equation 2.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        variant: str = "paper",
        start: str = "paper",
    ) -> None:
        check.choice("variant", variant, VARIANTS)
        bias = VARIANTS[variant].mlp_bias
        super().__init__(channels, reduction=reduction, hidden=hidden, bias=bias, squeeze="both", start=start)


class _NarrowConv2d(nn.Conv2d):
    """An ``nn.Conv2d`` from two channels to one, computed by ``ops.convolution.narrow_convolution``."""

    def forward(
        self, input: Float[Tensor, "b 2 h w"], source: StatisticsSource | None = None
    ) -> Float[Tensor, "b 1 h w"]:
        return narrow_convolution(input, self.weight, source)


GATE_CONVOLUTIONS = {**CONVOLUTIONS, 2: _NarrowConv2d}


class SpatialGate(nn.Module):
    """The spatial half of CBAM, ``sigmoid(conv([mean_c(x), max_c(x)])) x``: one number multiplies each position.

    Shapes: ``x`` (b, channels, *spatial) with ``dims`` spatial sizes, any of them from 1; ``y`` as ``x``.

    Args:
        channels: channels of ``x``; only checked, no weight depends on it.
        kernel_size: side of the convolution, odd: 7 or 3 in the paper.
        variant: ``"paper"`` and ``"article"``: no BatchNorm; ``"timm"``: BatchNorm; ``"official"``: BatchNorm
            whose scale starts at 0 (the gate starts at 0.5 everywhere), and the kernel's first input channel
            sees the maximum instead of the mean.
        dims: number of spatial sizes, 1 to 3.
        start: ``"identity"``: the last layer starts at zero and the gate is ``2 sigmoid(.)``, exactly 1.

    Raises:
        ValueError: an even kernel, an unknown option, or an ``x`` of other channels or dimensions.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 8, 7, 5)
        >>> SpatialGate(8, kernel_size=3).attention(x)["spatial_mask"].shape
        torch.Size([2, 1, 7, 5])

    Source: Woo et al., "CBAM", equation 3.
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int = 7,
        variant: str = "paper",
        dims: int = 2,
        start: str = "paper",
    ) -> None:
        super().__init__()
        check.positive(channels=channels, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise FovealError(f"kernel_size must be odd, got {kernel_size}")
        check.choice("variant", variant, VARIANTS)
        check.spatial_dims(dims)
        check.choice("start", start, ["paper", "identity"])
        self.channels, self.dims, self.max_first = channels, dims, VARIANTS[variant].max_first
        self.gate_gain = 2.0 if start == "identity" else 1.0
        self.conv = GATE_CONVOLUTIONS[dims](2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = None if VARIANTS[variant].norm == "none" else BatchNorm(1)
        self.calls = PreparedCalls()
        # one layer at zero, never two in a row: convolution and scale would starve each other of gradients
        if self.norm is not None and (start == "identity" or VARIANTS[variant].norm == "zero"):
            zero_init(self.norm)
        elif start == "identity":
            nn.init.zeros_(self.conv.weight)

    def spatial_gate(
        self,
        x: Float[Tensor, "b c *spatial"],
        channel_gate: Float[Tensor, "b c"] | None = None,
        update_statistics: bool = True,
    ) -> Float[Tensor, "b 1 *spatial"]:
        """Compute the spatial gate of ``x`` times ``channel_gate``."""
        statistics = gate.spatial_statistics(x, channel_gate)
        return self.attend(statistics, update_statistics=update_statistics)

    def attend(
        self,
        statistics: Float[Tensor, "b 2 *spatial"],
        source: StatisticsSource | None = None,
        update_statistics: bool = True,
    ) -> Float[Tensor, "b 1 *spatial"]:
        """Compute the gate from what ``gate.GateInput.spatial_statistics`` returns."""
        if self.max_first:
            logits = self.conv(statistics.flip(1))
        elif self.dims == 2:
            logits = self.conv(statistics, source)
        else:
            logits = self.conv(statistics)
        if self.norm is not None:
            logits = self.norm(logits) if update_statistics else self.norm.without_update(logits)
        weights = torch.sigmoid(logits)
        if self.gate_gain != 1:
            weights = self.gate_gain * weights
        return weights if weights.dtype == statistics.dtype else weights.to(statistics.dtype)

    def spatial_half(self, values: int) -> whole_gate.SpatialHalf | None:
        """Return what ``whole_gate`` needs for so many positions; None if a layer is watched or no longer plain."""
        layers = self._modules  # quicker than attributes
        kernel = check.plain_parameters(layers["conv"], GATE_CONVOLUTIONS[self.dims], "weight", "bias")
        if kernel is None or kernel[1] is not None:
            return None
        norm: Any = layers.get("norm")
        if norm is None:
            return whole_gate.SpatialHalf(kernel[0], self.max_first, self.gate_gain, None, 0.0)
        scale, shift = check.plain_parameters(norm, BatchNorm, "weight", "bias") or (None, None)
        mean, variance = norm._buffers.get("running_mean"), norm._buffers.get("running_var")
        if scale is None or shift is None or mean is None or variance is None:
            return None
        if norm.normalises_batch(values):
            mean = variance = None
        parts = scale, shift, mean, variance
        return whole_gate.SpatialHalf(kernel[0], self.max_first, self.gate_gain, parts, norm.eps)

    def whole(
        self, x: Float[Tensor, "b c *spatial"], channel: whole_gate.ChannelHalf | None
    ) -> Tensor | None:
        """Compute the gated map in one operator, after a channel gate if there is one; None if that cannot be."""
        values = x.shape[0] * math.prod(x.shape[2:])
        half = self.spatial_half(values)
        if half is None or whole_gate.why_not_native(x) is not None:
            return None
        y, moments = whole_gate.apply(x, channel, half, self.calls)
        norm = self.norm
        if norm is not None and norm.normalises_batch(values):
            norm.track(moments[:1], moments[1:], values)
        return y

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        check.feature_map(x, self.channels, self.dims)
        if (y := self.whole(x, None)) is not None:
            return y
        shared = gate.GateInput(x)
        return shared.scale(spatial_gate=self.attend(*shared.spatial_statistics()))

    def attention(
        self, x: Float[Tensor, "b c *spatial"], positions: Positions | None = None
    ) -> dict[str, Tensor]:
        """Return ``{"spatial_mask": (b, 1, *spatial)}``, what ``forward`` multiplies by; no statistics change."""
        check.feature_map(x, self.channels, self.dims)
        return {"spatial_mask": self.spatial_gate(x, update_statistics=False)}

    def extra_repr(self) -> str:
        return f"max_first={self.max_first}, gate_gain={self.gate_gain}"


class CBAM(nn.Module):
    """A channel gate, then a spatial gate: ``x' = M_c(x) x``, ``y = M_s(x') x'``.

    Shapes: ``x`` (b, channels, *spatial) with ``dims`` spatial sizes, any of them from 1; ``y`` as ``x``.

    Args:
        channels: channels of ``x``.
        reduction, hidden: hidden width of the channel gate, as in ``SqueezeExcite``.
        kernel_size: side of the spatial gate's convolution, odd: 7 or 3 in the paper.
        arrangement: ``"channel-spatial"``; ``"spatial-channel"``; ``"parallel"`` (both gates from ``x``);
            ``"channel"`` or ``"spatial"`` alone.
        variant: whose biases, BatchNorm and order of the two pooled maps: ``"paper"`` and ``"article"`` (no
            bias, no BatchNorm, mean first), ``"official"`` (MLP biases, BatchNorm with scale 0, max first),
            ``"timm"`` (BatchNorm, mean first).
        dims: number of spatial sizes, 1 to 3.
        start: ``"paper"``: both gates near 0.5, so that the map shrinks to about 0.3. ``"identity"``: both
            exactly 1 and over (0, 2).

    Raises:
        ValueError: no hidden channel is left, an even kernel, an unknown option, or ``x`` does not fit.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 64, 7, 5)
        >>> block = CBAM(64, start="identity")
        >>> torch.equal(block(x), x)
        True
        >>> {name: tuple(weights.shape) for name, weights in block.attention(x).items()}
        {'channel_gate': (2, 64), 'spatial_mask': (2, 1, 7, 5)}

    Source: Woo et al., "CBAM", equations 1 to 3 and tables 2 and 3. The paper does not say how parallel gates
    are combined: here both multiply ``x``. Equal maxima: the gradient goes to the first, as in PyTorch's ``max``.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        kernel_size: int = 7,
        arrangement: str = "channel-spatial",
        variant: str = "paper",
        dims: int = 2,
        start: str = "paper",
    ) -> None:
        super().__init__()
        check.choice("arrangement", arrangement, ARRANGEMENTS)
        check.choice("variant", variant, VARIANTS)
        check.spatial_dims(dims)
        self.channels, self.dims, self.arrangement = channels, dims, arrangement
        self.channel = self.spatial = None
        if arrangement != "spatial":
            self.channel = ChannelGate(
                channels, reduction=reduction, hidden=hidden, variant=variant, start=start
            )
        if arrangement != "channel":
            self.spatial = SpatialGate(
                channels, kernel_size=kernel_size, variant=variant, dims=dims, start=start
            )

    def gates(
        self, x: Float[Tensor, "b c *spatial"], update_statistics: bool = True
    ) -> tuple[Float[Tensor, "b c"] | None, Float[Tensor, "b 1 *spatial"] | None]:
        """Compute the channel gate and the spatial gate; None for the one that the arrangement lacks."""
        if self.spatial is None:
            assert self.channel is not None
            return self.channel.channel_gate(x), None
        if self.channel is None:
            return None, self.spatial.spatial_gate(x, None, update_statistics)
        if self.arrangement == "channel-spatial":
            channel = self.channel.channel_gate(x)
            return channel, self.spatial.spatial_gate(x, channel, update_statistics)
        spatial = self.spatial.spatial_gate(x, None, update_statistics)
        return self.channel.channel_gate(x if self.arrangement == "parallel" else x * spatial), spatial

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        check.feature_map(x, self.channels, self.dims)
        channel, spatial = self.channel, self.spatial
        if spatial is None or channel is None:
            half = channel or spatial
            assert half is not None
            return half(x)
        if self.arrangement == "spatial-channel":
            return channel(spatial(x))
        if self.arrangement == "channel-spatial" and (half := channel.channel_half()) is not None:
            plain = check.is_plain(channel, ChannelGate) and check.is_plain(spatial, SpatialGate)
            if plain and (y := spatial.whole(x, half)) is not None:
                return y
        shared = gate.GateInput(x)
        opened = channel.excite(shared.squeeze(["mean", "max"]))
        statistics = shared.spatial_statistics(None if self.arrangement == "parallel" else opened)
        return shared.scale(opened, spatial.attend(*statistics))

    def attention(
        self, x: Float[Tensor, "b c *spatial"], positions: Positions | None = None
    ) -> dict[str, Tensor]:
        """Return ``{"channel_gate": (b, c), "spatial_mask": (b, 1, *spatial)}``, what ``forward`` multiplies by.

        An arrangement with one gate returns that one. ``positions`` has no meaning here, and no statistics change.
        """
        check.feature_map(x, self.channels, self.dims)
        gates = zip(["channel_gate", "spatial_mask"], self.gates(x, update_statistics=False), strict=True)
        return {name: weights for name, weights in gates if weights is not None}

    def extra_repr(self) -> str:
        return f"arrangement={self.arrangement!r}"
