"""Dual attention (Fu et al., DANet, CVPR 2019): one attention over positions, one over channels, summed."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.nn import check
from foveal.nn.positions import Positions
from foveal.nn.self_attention import SelfAttention
from foveal.ops import attention, reference

FORMS = ["code", "paper"]


class PositionAttention(SelfAttention):
    """The position module of DANet, ``y = x + gamma sum_j softmax_j(q_i . k_j) v_j``; ``gamma`` starts at 0.

    ``SelfAttention`` with dot products and biased convolutions; shapes and errors as there.

    Args:
        channels: channels of ``x``.
        form: ``"code"``: queries and keys of width ``channels // 8``; ``"paper"``: of width ``channels``.
        key_width: that width itself, instead of ``form``.
        dims: number of spatial sizes, 1 to 3.
        start: ``"paper"`` and ``"identity"`` are the same here.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 16, 6, 5)
        >>> PositionAttention(16).attention(x, positions=[(0, 0)])["rows"].shape
        torch.Size([1, 1, 6, 5])

    Source: Fu et al., "Dual Attention Network for Scene Segmentation", equations 1 and 2.
    """

    def __init__(
        self,
        channels: int,
        *,
        form: str = "code",
        key_width: int | None = None,
        dims: int = 2,
        start: str = "paper",
    ) -> None:
        check.choice("form", form, FORMS)
        if key_width is None and form == "paper":
            key_width = channels
        super().__init__(channels, key_width=key_width, dims=dims, start=start)


class ChannelAttention(nn.Module):
    """The channel module of DANet, ``y = x + gamma M x`` with M a softmax over channels; ``gamma`` starts at 0.

    Shapes: ``x`` (b, channels, *spatial) with 1 to 3 spatial sizes, any of them from 1; ``y`` as ``x``.

    Args:
        channels: channels of ``x``; only checked, no weight depends on it.
        form: ``"code"``: M = softmax_j(max_j(x_i . x_j) - x_i . x_j), what all released weights use: the
            least similar channel weighs most. ``"paper"``: M = softmax_j(x_i . x_j).
        start: ``"paper"`` and ``"identity"`` are the same here.

    Raises:
        ValueError: an unknown option, or an ``x`` of other channels.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 16, 6, 5)
        >>> ChannelAttention(16).attention(x)["channel_matrix"].shape
        torch.Size([2, 16, 16])

    Source: Fu et al., "Dual Attention Network for Scene Segmentation", equations 3 and 4; its code for
    ``form="code"``.
    """

    def __init__(self, channels: int, *, form: str = "code", start: str = "paper") -> None:
        super().__init__()
        check.positive(channels=channels)
        check.choice("form", form, FORMS)
        check.choice("start", start, ["paper", "identity"])
        self.channels, self.form = channels, form
        self.gamma = nn.Parameter(torch.zeros(1))

    def context(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """Compute what ``forward`` adds to ``x``."""
        y = attention.channel_attention(x.flatten(2), self.form).unflatten(2, x.shape[2:])
        return (self.gamma * y).to(x.dtype)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        check.feature_map(x, self.channels)
        return x + self.context(x)

    def attention(
        self, x: Float[Tensor, "b c *spatial"], positions: Positions | None = None
    ) -> dict[str, Tensor]:
        """Return ``{"channel_matrix": (b, c, c)}`` in float32; its rows sum to 1. ``positions`` has no meaning here."""
        check.feature_map(x, self.channels)
        with torch.autocast(x.device.type, enabled=False):
            exact = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
            return {"channel_matrix": reference.channel_attention_weights(exact, self.form)}

    def extra_repr(self) -> str:
        return f"form={self.form!r}"


class DualAttention(nn.Module):
    """The two modules of DANet and their sum, ``position(x) + channel(x)``.

    Shapes: ``x`` (b, channels, *spatial) with ``dims`` spatial sizes, any of them from 1; ``y`` as ``x``.

    Args:
        channels: channels of ``x``.
        form: ``"code"`` or ``"paper"``, for both modules.
        key_width: width of the position module's queries and keys, instead of ``form``.
        dims: number of spatial sizes, 1 to 3.
        start: ``"paper"``: both modules carry ``x``, so the sum starts at ``2 x``. ``"identity"``: ``x`` is
            added once, so the block starts as the identity.

    Raises:
        ValueError: the key width would be 0, an unknown option, or an ``x`` that does not fit.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 16, 6, 5)
        >>> torch.equal(DualAttention(16, start="identity")(x), x)
        True
        >>> torch.equal(DualAttention(16)(x), 2 * x)
        True

    Source: Fu et al., "Dual Attention Network for Scene Segmentation", section 3.4, without the convolutions
    around the modules, which belong to the network's head.
    """

    def __init__(
        self,
        channels: int,
        *,
        form: str = "code",
        key_width: int | None = None,
        dims: int = 2,
        start: str = "paper",
    ) -> None:
        super().__init__()
        check.choice("start", start, ["paper", "identity"])
        self.channels, self.dims, self.start = channels, dims, start
        self.position = PositionAttention(channels, form=form, key_width=key_width, dims=dims)
        self.channel = ChannelAttention(channels, form=form)

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        check.feature_map(x, self.channels, self.dims)
        if self.start == "identity":
            return x + self.position.context(x) + self.channel.context(x)
        return self.position(x) + self.channel(x)

    def attention(
        self, x: Float[Tensor, "b c *spatial"], positions: Positions | None = None
    ) -> dict[str, Tensor]:
        """Return ``{"rows": (b, r, *spatial), "channel_matrix": (b, c, c)}``, both in float32.

        ``positions`` are r index tuples in ``x``; the default is the centre.
        """
        check.feature_map(x, self.channels, self.dims)
        return self.position.attention(x, positions) | self.channel.attention(x)

    def extra_repr(self) -> str:
        return f"start={self.start!r}"
