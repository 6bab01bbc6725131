"""Between feature maps (b, c, *spatial) and positions (b, n, c), and the query points a caller asks for."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.ops.numerics import exporting

Points = Sequence[Sequence[int]]

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def pointwise(
    dims: int, in_channels: int, out_channels: int, bias: bool = True
) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
    """A 1x1 convolution for ``dims`` spatial sizes."""
    return CONV[dims](in_channels, out_channels, 1, bias=bias)


def to_positions(x: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b n c"]:
    """A view for contiguous and for channels-last maps."""
    return x.flatten(2).transpose(1, 2)


def to_map(y: Float[Tensor, "b n c"], spatial: Sequence[int]) -> Float[Tensor, "b c *spatial"]:
    return y.transpose(1, 2).unflatten(2, tuple(spatial))


def max_pool(x: Float[Tensor, "b c *spatial"], window: Sequence[int]) -> Float[Tensor, "b c *pooled"]:
    """Maximum over windows that do not overlap; a rest at the border is dropped, as in ``nn.MaxPool``.

    Unlike ``nn.MaxPool3d`` its backward is deterministic on CUDA, and a side shorter than its window is left
    as it is, so that any size from 1x1 passes. Gradients of equal maxima are shared between them.
    """
    window = [size if x.shape[dim] >= size else 1 for dim, size in enumerate(window, start=2)]
    if exporting():  # other runtimes know the operator, and its shape formula holds for every size
        return MAX_POOL[len(window)](x, window)
    for dim, size in enumerate(window, start=2):
        if size > 1:
            whole = x.shape[dim] // size
            x = x.narrow(dim, 0, whole * size).unflatten(dim, (whole, size)).amax(dim + 1)
    return x


def check_points(positions: Points | None, spatial: Sequence[int]) -> list[tuple[int, ...]]:
    """The asked query points as index tuples, the centre of the map where none are asked."""
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


def pick(x: Float[Tensor, "b c *spatial"], points: Sequence[tuple[int, ...]]) -> Float[Tensor, "b r c"]:
    """The vectors of ``x`` at ``points``."""
    return torch.stack([x[(slice(None), slice(None), *point)] for point in points], dim=1)
