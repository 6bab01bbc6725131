"""Squeeze-and-Excitation (Hu et al., CVPR 2018): a gate per channel, computed from the whole map."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.nn import check
from foveal.nn.positions import Positions
from foveal.ops import gate, whole_gate
from foveal.ops.prepared_calls import PreparedCalls

ACTIVATIONS = {"sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid}
STATISTICS = {"mean": ["mean"], "max": ["max"], "both": ["mean", "max"]}


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation, ``y = gate(x) x`` with ``gate = sigmoid(W2 relu(W1 squeeze(x)))``.

    Shapes: ``x`` (b, channels, *spatial) with 1 to 3 spatial sizes, any of them from 1; ``y`` as ``x``.

    Args:
        channels: channels of ``x``.
        reduction: the hidden width is ``channels // reduction``. 16 in the paper; small networks need 4 or 8.
        hidden: hidden width itself, instead of ``reduction``.
        bias: biases on both layers. The released networks and timm have them, the article's listing does not.
        squeeze: ``"mean"``; ``"max"``; or ``"both"``: the two go through the same layers and are added, which
            is CBAM's channel gate.
        activation: ``"sigmoid"`` or ``"hard_sigmoid"``.
        start: ``"paper"``: PyTorch's initialisation, gates near 0.5. ``"identity"``: the last layer starts at
            zero and the gate is ``2 sigmoid(.)``, exactly 1; it then ranges over (0, 2) instead of (0, 1).

    Raises:
        ValueError: no hidden channel is left, an option is unknown, or ``x`` has other channels.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 64, 7, 5)
        >>> block = SqueezeExcite(64, start="identity")
        >>> torch.equal(block(x), x)
        True
        >>> block.attention(x)["channel_gate"].shape
        torch.Size([2, 64])

    Source: Hu, Shen, Sun, "Squeeze-and-Excitation Networks", equations 2 to 4. ``max``, ``both``,
    ``hard_sigmoid`` and ``start="identity"`` are not in the paper.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 16,
        hidden: int | None = None,
        bias: bool = True,
        squeeze: str = "mean",
        activation: str = "sigmoid",
        start: str = "paper",
    ) -> None:
        super().__init__()
        hidden = check.reduced_width(channels, reduction, hidden)
        check.choice("squeeze", squeeze, STATISTICS)
        check.choice("activation", activation, ACTIVATIONS)
        check.choice("start", start, ["paper", "identity"])
        self.channels, self.squeeze, self.activation = channels, squeeze, activation
        self.gate_gain = 2.0 if start == "identity" else 1.0
        self.fc1 = nn.Linear(channels, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, channels, bias=bias)
        self.calls = PreparedCalls()
        if start == "identity":
            # only the last layer: with both at zero neither would ever receive a gradient
            nn.init.zeros_(self.fc2.weight)
            if bias:
                nn.init.zeros_(self.fc2.bias)

    def channel_gate(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c"]:
        return self.excite(gate.GateInput(x).squeeze(STATISTICS[self.squeeze]))

    def excite(self, squeezed: Float[Tensor, "sb c"]) -> Float[Tensor, "b c"]:
        """Compute the gate from the squeezed ``x``, as ``gate.GateInput.squeeze`` returns it."""
        logits = self.fc2(self.fc1(squeezed).relu())
        if self.squeeze == "both":
            logits = logits.unflatten(0, (2, -1)).sum(0)
        weights = self.activate(logits)
        return weights if weights.dtype == squeezed.dtype else weights.to(squeezed.dtype)

    def activate(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        weights = ACTIVATIONS[self.activation](logits)
        return weights if self.gate_gain == 1 else self.gate_gain * weights

    def channel_half(self) -> whole_gate.ChannelHalf | None:
        """Return what ``whole_gate`` needs; None if a layer is watched or is no longer a plain one."""
        layers = self._modules  # quicker than attributes
        first = check.plain_parameters(layers["fc1"], nn.Linear, "weight", "bias")
        second = check.plain_parameters(layers["fc2"], nn.Linear, "weight", "bias")
        if first is None or second is None:
            return None
        (w1, b1), (w2, b2) = first, second
        return whole_gate.ChannelHalf(w1, b1, w2, b2, self.squeeze, self.activation, self.gate_gain)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        check.feature_map(x, self.channels)
        half = self.channel_half()
        if half is not None and whole_gate.why_not_native(x, half) is None:
            return whole_gate.apply(x, half, None, self.calls)[0]
        shared = gate.GateInput(x)
        return shared.scale(self.excite(shared.squeeze(STATISTICS[self.squeeze])))

    def attention(
        self, x: Float[Tensor, "b c *spatial"], positions: Positions | None = None
    ) -> dict[str, Tensor]:
        """Return ``{"channel_gate": (b, c)}``, what ``forward`` multiplies by; ``positions`` has no meaning here."""
        check.feature_map(x, self.channels)
        return {"channel_gate": self.channel_gate(x)}

    def extra_repr(self) -> str:
        return f"squeeze={self.squeeze!r}, activation={self.activation!r}, gate_gain={self.gate_gain}"
