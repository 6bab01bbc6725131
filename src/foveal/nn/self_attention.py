"""Self-attention over positions (Zhang et al., SAGAN, ICML 2019), with the article's four similarities."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.nn import check
from foveal.nn.positions import (
    Positions,
    flatten_spatial,
    gather_queries,
    max_pool,
    pointwise,
    unflatten_spatial,
    validate_positions,
)
from foveal.nn.spectral_norm import SpectralPointwise
from foveal.ops import attention, concatenation, reference

SIMILARITIES = ["dot", "scaled_dot", "cosine", "concatenation", "perceptron"]


class _Form(NamedTuple):
    # the value width is channels // value_reduction
    value_reduction: int
    out_conv: bool
    pool: int
    spectral_norm: bool
    bias: bool


FORMS = {
    "paper": _Form(value_reduction=8, out_conv=True, pool=1, spectral_norm=False, bias=False),
    "official": _Form(value_reduction=2, out_conv=True, pool=2, spectral_norm=True, bias=False),
    "article": _Form(value_reduction=1, out_conv=False, pool=1, spectral_norm=False, bias=True),
}


class SelfAttention(nn.Module):
    """SAGAN's self-attention, ``y_i = x_i + gamma * out(sum_j softmax_j(s(q_i, k_j)) v_j)``; gamma starts at 0.

    Shapes: ``x`` (b, channels, *spatial) with ``dims`` spatial sizes, any of them from 1; ``y`` as ``x``.

    Args:
        channels: channels of ``x``.
        similarity: ``"dot"``: q . k; ``"scaled_dot"``: q . k / sqrt(key width); ``"cosine"``: in [-1, 1], so
            no weight exceeds another by more than e^2; ``"concatenation"``: leaky_relu(w . [q, k]);
            ``"perceptron"``: w . tanh(q + k).
        form: sets the five options after the next. ``"article"`` (and the common PyTorch port): value width
            ``channels``, no output convolution, biases. ``"paper"``: value width ``channels // 8``, output
            convolution, no bias. ``"official"``: value width ``channels // 2``, output convolution, keys and
            values max-pooled by 2, spectral norm on all four convolutions, no bias.
        key_width: width of query and key; ``channels // 8`` where not given.
        value_width, out_conv, pool, spectral_norm, bias: instead of what ``form`` says.
        negative_slope: of the score of ``"concatenation"``. At 1 the query's term cancels in the softmax and
            every position receives the same context.
        dims: number of spatial sizes, 1 to 3.
        start: ``"paper"`` and ``"identity"`` are the same here: gamma is 0.

    Raises:
        ValueError: a width would be 0, an unknown or impossible option, or an ``x`` that does not fit.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 16, 6, 5)
        >>> block = SelfAttention(16, similarity="cosine")
        >>> torch.equal(block(x), x)
        True
        >>> block.attention(x, positions=[(0, 0), (3, 2)])["rows"].sum((2, 3)).round(decimals=5).tolist()
        [[1.0, 1.0], [1.0, 1.0]]

    Source: Zhang et al., "Self-Attention Generative Adversarial Networks", equations 1 to 3, and the
    released TensorFlow code. With ``form="official"`` outputs are those of the released code and two gradients are not:
    the code differentiates through the power iteration of the spectral norm too, where here, as in Miyato et al. and
    PyTorch, both singular vectors are constants; and equal maxima of a pooling window share their gradient here.
    Similarities other than ``"dot"`` are the article's. The paper trains all its layers under spectral norm;
    ``form="paper"`` leaves that to ``spectral_norm=True``.
    """

    def __init__(
        self,
        channels: int,
        *,
        similarity: str = "dot",
        form: str = "article",
        key_width: int | None = None,
        value_width: int | None = None,
        out_conv: bool | None = None,
        pool: int | None = None,
        spectral_norm: bool | None = None,
        bias: bool | None = None,
        negative_slope: float = 0.2,
        dims: int = 2,
        start: str = "paper",
    ) -> None:
        super().__init__()
        check.choice("similarity", similarity, SIMILARITIES)
        check.choice("form", form, FORMS)
        check.spatial_dims(dims)
        check.choice("start", start, ["paper", "identity"])
        default = FORMS[form]
        key_width = check.default_width(channels, 8, key_width=key_width)
        value_width = check.default_width(channels, default.value_reduction, value_width=value_width)
        out_conv = default.out_conv if out_conv is None else out_conv
        spectral_norm = default.spectral_norm if spectral_norm is None else spectral_norm
        bias = default.bias if bias is None else bias
        self.pool = default.pool if pool is None else pool
        check.positive(pool=self.pool)
        if not out_conv and value_width != channels:
            raise FovealError(
                f"value_width must equal channels={channels} without an output convolution, got {value_width}"
            )

        layer = SpectralPointwise if spectral_norm else pointwise
        self.channels, self.dims, self.similarity = channels, dims, similarity
        self.scale = key_width**-0.5 if similarity == "scaled_dot" else 1.0
        self.negative_slope = negative_slope
        self.query = layer(dims, channels, key_width, bias)
        self.key = layer(dims, channels, key_width, bias)
        self.value = layer(dims, channels, value_width, bias)
        self.out = layer(dims, value_width, channels, bias) if out_conv else nn.Identity()
        if similarity == "concatenation":
            self.pair_weight = nn.Parameter(torch.empty(2, key_width).uniform_(-1, 1) * key_width**-0.5)
        elif similarity == "perceptron":
            self.pair_weight = nn.Parameter(torch.empty(key_width).uniform_(-1, 1) * key_width**-0.5)
        self.gamma = nn.Parameter(torch.zeros(1))

    def _pool_keys(self, x: Tensor) -> Tensor:
        return max_pool(x, [self.pool] * self.dims)

    def context(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        """Compute what ``forward`` adds to ``x``."""
        query = flatten_spatial(self.query(x))
        key, value = (
            flatten_spatial(self._pool_keys(self.key(x))),
            flatten_spatial(self._pool_keys(self.value(x))),
        )
        if self.similarity == "cosine":
            y = attention.cosine_attention(query, key, value)
        elif self.similarity == "perceptron":
            y = attention.perceptron_attention(query, key, self.pair_weight.to(query.dtype), value)
        elif self.similarity == "concatenation":
            a, b = self._concatenation_terms(query, key)
            y = concatenation.concatenation_attention(a, b, value, negative_slope=self.negative_slope)
        else:
            y = attention.softmax_attention(query, key, value, scale=self.scale)
        return (self.gamma * self.out(unflatten_spatial(y, x.shape[2:]))).to(x.dtype)

    def _concatenation_terms(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b of ``w . [q_i, k_j] = a_i + b_j``."""
        for_query, for_key = self.pair_weight.to(query.dtype)
        return query @ for_query, key @ for_key

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        check.feature_map(x, self.channels, self.dims)
        return x + self.context(x)

    def attention(
        self, x: Float[Tensor, "b c *spatial"], positions: Positions | None = None
    ) -> dict[str, Tensor]:
        """Return ``{"rows": (b, r, *key_spatial)}``, the softmax weights of r query positions over all keys.

        They are float32. ``positions`` are r index tuples in ``x``; the default is the centre. Pooled keys keep their
        smaller grid. Changes no statistics of the spectral norm.
        """
        check.feature_map(x, self.channels, self.dims)
        points = validate_positions(positions, x.shape[2:])
        query, key = (
            layer.without_update(x) if isinstance(layer, SpectralPointwise) else layer(x)
            for layer in (self.query, self.key)
        )
        key = self._pool_keys(key)
        scores = self._scores(gather_queries(query, points), flatten_spatial(key))
        return {"rows": reference.softmax_weights(scores).unflatten(2, key.shape[2:])}

    def _scores(self, query: Float[Tensor, "b r d"], key: Float[Tensor, "b m d"]) -> Float[Tensor, "b r m"]:
        exact = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            query, key = query.to(exact), key.to(exact)
            if self.similarity == "cosine":
                return reference.cosine_scores(query, key)
            if self.similarity == "perceptron":
                return reference.perceptron_scores(query, key, self.pair_weight.to(exact))
            if self.similarity == "concatenation":
                a, b = self._concatenation_terms(query, key)
                return reference.concatenation_scores(a, b, self.negative_slope)
            return reference.dot_scores(query, key, self.scale)

    def extra_repr(self) -> str:
        return f"similarity={self.similarity!r}, pool={self.pool}"
