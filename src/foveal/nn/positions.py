"""Feature maps (b, c, *spatial) as positions (b, n, c) and back, and the query positions that a caller asks for."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.ops.numerics import exporting

Positions = Sequence[Sequence[int]]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def pointwise(
    dims: int, in_channels: int, out_channels: int, bias: bool = True
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """Make a 1x1 convolution for ``dims`` spatial sizes."""
    return CONVOLUTIONS[dims](in_channels, out_channels, 1, bias=bias)


def flatten_spatial(x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b n c"]:
    """View a map as its positions, without a copy for contiguous and for channels-last memory."""
    return x.flatten(2).transpose(1, 2)


def unflatten_spatial(y: Float[Tensor, "b n c"], spatial: Sequence[int]) -> Float[Tensor, "b c *spatial"]:
    """View positions as the map of these spatial sizes."""
    return y.transpose(1, 2).unflatten(2, tuple(spatial))


def max_pool(x: Float[Tensor, "b c *spatial"], window: Sequence[int]) -> Float[Tensor, "b c *pooled"]:
    """Take the maximum over windows that do not overlap; a rest at the border is dropped, as in ``nn.MaxPool2d``.

    Unlike ``nn.MaxPool3d`` its backward is deterministic on CUDA, and a side shorter than its window is left
    as it is, so that any size from 1x1 passes. Gradients of equal maxima are shared between them.
    """
    window = [size if x.shape[dim] >= size else 1 for dim, size in enumerate(window, start=2)]
    # other runtimes know the operator, and its shape formula holds for every size
    if exporting():
        return MAX_POOLS[len(window)](x, window)
    for dim, size in enumerate(window, start=2):
        if size > 1:
            whole = x.shape[dim] // size
            x = x.narrow(dim, 0, whole * size).unflatten(dim, (whole, size)).amax(dim + 1)
    return x


def validate_positions(positions: Positions | None, spatial: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the asked positions as index tuples, or the centre of the map if none are asked for."""
    if positions is None:
        return [tuple(size // 2 for size in spatial)]
    points = [tuple(int(i) for i in point) for point in positions]
    for point in points:
        inside = len(point) == len(spatial) and all(
            0 <= i < size for i, size in zip(point, spatial, strict=True)
        )
        if not inside:
            raise FovealError(f"positions must lie within a map of size {tuple(spatial)}, got {point}")
    if not points:
        raise FovealError("positions must hold at least one point, got none")
    return points


def gather_queries(
    x: Float[Tensor, "b c *spatial"], points: Sequence[tuple[int, ...]]
) -> Float[Tensor, "b r c"]:
    """Return the vectors of ``x`` at ``points``."""
    return torch.stack([x[(slice(None), slice(None), *point)] for point in points], dim=1)
