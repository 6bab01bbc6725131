"""Non-local block (Wang et al., CVPR 2018): every position receives a weighted sum over all positions."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.nn import check
from foveal.nn.batch_norm import BatchNorm, zero_init
from foveal.nn.positions import (
    Positions,
    flatten_spatial,
    gather_queries,
    max_pool,
    pointwise,
    unflatten_spatial,
    validate_positions,
)
from foveal.ops import attention, concatenation, dot_product, reference

PAIRWISE = ["gaussian", "embedded_gaussian", "dot_product", "concatenation"]


class NonLocal(nn.Module):
    """The non-local block, ``y_i = x_i + W(sum_j f(x_i, x_j) g(x_j) / C)`` over all positions j.

    Shapes: ``x`` (b, channels, *spatial) with ``dims`` spatial sizes, any of them from 1; ``y`` as ``x``.

    Args:
        channels: channels of ``x``.
        pairwise: ``"gaussian"``: softmax of x_i . x_j; ``"embedded_gaussian"``: softmax of
            theta(x_i) . phi(x_j); ``"dot_product"``: theta(x_i) . phi(x_j) / m; ``"concatenation"``:
            ReLU(w . [theta(x_i), phi(x_j)]) / m, over m keys.
        inner: width of theta, phi and g; ``channels // 2`` where not given.
        dims: number of spatial sizes: 1, 2, or 3 for clips (time, height, width).
        over: for clips, which keys a position sees: ``"spacetime"`` all, ``"space"`` those of its own frame,
            ``"time"`` its own place in every frame.
        subsample: halve the grid of keys by max pooling (height and width; time too for ``over="time"`` and
            for one spatial size): ``"none"``; ``"after"`` phi and g, as the paper's text says; ``"before"``
            them, as the released code does. The two are not equal.
        scaled: True: dot products are multiplied by 1/sqrt(width). The paper has no scale; the released code and mmcv
            have this one, under a softmax only (mmcv for the embedded Gaussian only): ``pairwise="dot_product"`` with
            ``scaled=True`` is nobody's released form. ``"mmdet"``: multiplied by sqrt(width) instead, as
            mmdetection's ``NonLocal2D(use_scale=True)`` once did by mistake, for weights trained with it.
        norm: ``"batch"``: BatchNorm after W, its scale starting at 0; ``"none"``: W starts at 0. Either way
            the block starts as the identity.
        out_bias: bias of W; where not given, only without BatchNorm. The common PyTorch port has it in both, though
            BatchNorm takes it away again.
        start: ``"paper"`` and ``"identity"`` are the same here.

    Raises:
        ValueError: no inner channel is left, an unknown or meaningless option, or an ``x`` that does not fit.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 16, 6, 5)
        >>> block = NonLocal(16, pairwise="dot_product", subsample="after")
        >>> torch.equal(block(x), x)
        True
        >>> block.attention(x, positions=[(0, 0), (3, 2)])["rows"].shape
        torch.Size([2, 2, 3, 2])

    Source: Wang et al., "Non-local Neural Networks", equations 1 to 6. A side too short for the pooling
    window is not pooled; equal maxima share their gradient.
    """

    def __init__(
        self,
        channels: int,
        *,
        pairwise: str = "embedded_gaussian",
        inner: int | None = None,
        dims: int = 2,
        over: str = "spacetime",
        subsample: str = "none",
        scaled: bool | str = False,
        norm: str = "batch",
        out_bias: bool | None = None,
        start: str = "paper",
    ) -> None:
        super().__init__()
        inner = check.default_width(channels, 2, inner=inner)
        check.choice("pairwise", pairwise, PAIRWISE)
        check.spatial_dims(dims)
        check.choice("over", over, ["spacetime", "space", "time"] if dims == 3 else ["spacetime"])
        check.choice("subsample", subsample, ["none", "after", "before"])
        check.choice("norm", norm, ["batch", "none"])
        check.choice("start", start, ["paper", "identity"])
        if scaled not in (True, False, "mmdet"):
            raise FovealError(f"scaled must be True, False or 'mmdet', got {scaled!r}")
        if scaled and pairwise == "concatenation":
            raise FovealError(f"scaled must be False for pairwise='concatenation', got {scaled!r}")
        if scaled == "mmdet" and pairwise != "embedded_gaussian":
            raise FovealError(f"scaled='mmdet' must come with pairwise='embedded_gaussian', got {pairwise!r}")
        self.channels, self.dims, self.pairwise = channels, dims, pairwise
        self.over, self.subsample = over, subsample
        width = channels if pairwise == "gaussian" else inner
        self.scaled = scaled
        self.scale = width**0.5 if scaled == "mmdet" else width**-0.5 if scaled else 1.0
        self.window = {1: (2,), 2: (2, 2), 3: (2, 1, 1) if over == "time" else (1, 2, 2)}[dims]
        if pairwise != "gaussian":
            self.theta = pointwise(dims, channels, inner)
            self.phi = pointwise(dims, channels, inner)
        if pairwise == "concatenation":
            self.pair_weight = nn.Parameter(torch.empty(2, inner).uniform_(-1, 1) * (2 * inner) ** -0.5)
        self.g = pointwise(dims, channels, inner)
        self.out = pointwise(dims, inner, channels, bias=norm == "none" if out_bias is None else out_bias)
        self.norm = BatchNorm(channels) if norm == "batch" else nn.Identity()
        if norm == "batch":
            zero_init(self.norm)
        else:
            nn.init.zeros_(self.out.weight)
            if self.out.bias is not None:
                nn.init.zeros_(self.out.bias)

    def _maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return theta(x), phi(x) and g(x) as maps, the last two on the grid of keys."""
        keys = max_pool(x, self.window) if self.subsample == "before" else x
        theta, phi = (x, keys) if self.pairwise == "gaussian" else (self.theta(x), self.phi(keys))
        g = self.g(keys)
        if self.subsample == "after":
            phi, g = max_pool(phi, self.window), max_pool(g, self.window)
        return theta, phi, g

    def _group(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "groups n c"]:
        """Group the positions that see each other: those of the clip, of a frame, or of a place over time."""
        if self.over == "space":
            return x.movedim(1, -1).flatten(0, 1).flatten(1, 2)
        if self.over == "time":
            return x.permute(0, 3, 4, 2, 1).flatten(0, 2)
        return flatten_spatial(x)

    def _ungroup(self, y: Float[Tensor, "groups n c"], spatial: torch.Size) -> Float[Tensor, "b c *spatial"]:
        if self.over == "space":
            return y.unflatten(1, spatial[1:]).unflatten(0, (-1, spatial[0])).movedim(-1, 1)
        if self.over == "time":
            return y.unflatten(0, (-1, *spatial[1:])).permute(0, 4, 3, 1, 2)
        return unflatten_spatial(y, spatial)

    def _concatenation_terms(self, theta: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b of ``w . [theta_i, phi_j] = a_i + b_j``."""
        for_theta, for_phi = self.pair_weight.to(theta.dtype)
        return theta @ for_theta, phi @ for_phi

    def forward(self, x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b c *spatial"]:
        check.feature_map(x, self.channels, self.dims)
        theta, phi, g = map(self._group, self._maps(x))
        if self.pairwise == "dot_product":
            y = dot_product.dot_product(theta, phi, g, scale=self.scale)
        elif self.pairwise == "concatenation":
            y = concatenation.concatenation(*self._concatenation_terms(theta, phi), g)
        else:
            y = attention.softmax_attention(theta, phi, g, scale=self.scale)
        return x + self.norm(self.out(self._ungroup(y, x.shape[2:])))

    def attention(
        self, x: Float[Tensor, "b c *spatial"], positions: Positions | None = None
    ) -> dict[str, Tensor]:
        """Return ``{"rows": (b, r, *key_spatial)}``, the weights with which r query positions sum the keys.

        They are float32. ``positions`` are r index tuples in ``x``; the default is the centre. Sub-sampled keys keep
        their smaller grid; keys a position cannot see (``over="space"``, ``"time"``) have weight 0.
        """
        check.feature_map(x, self.channels, self.dims)
        points = validate_positions(positions, x.shape[2:])
        theta, phi, _ = self._maps(x)
        exact = torch.promote_types(x.dtype, torch.float32)
        rows = phi.new_zeros(len(x), len(points), *phi.shape[2:], dtype=exact)
        for r, point in enumerate(points):
            seen = {"space": (point[0],), "time": (slice(None), *point[1:])}.get(self.over, (slice(None),))
            keys = phi[(slice(None), slice(None), *seen)]
            weights = self._weights(gather_queries(theta, [point]), flatten_spatial(keys)).reshape(
                len(x), *keys.shape[2:]
            )
            rows[(slice(None), r, *seen)] = weights
        return {"rows": rows}

    def _weights(self, theta: Float[Tensor, "b r d"], phi: Float[Tensor, "b m d"]) -> Float[Tensor, "b r m"]:
        exact = torch.promote_types(theta.dtype, torch.float32)
        with torch.autocast(theta.device.type, enabled=False):
            theta, phi = theta.to(exact), phi.to(exact)
            if self.pairwise == "concatenation":
                a, b = self._concatenation_terms(theta, phi)
                return reference.concatenation_scores(a, b, negative_slope=0.0) / phi.shape[1]
            scores = reference.dot_scores(theta, phi, self.scale)
            return (
                scores / phi.shape[1] if self.pairwise == "dot_product" else reference.softmax_weights(scores)
            )

    def extra_repr(self) -> str:
        options = f"pairwise={self.pairwise!r}, over={self.over!r}, subsample={self.subsample!r}"
        return f"{options}, scale={self.scale:.3g}"
