"""The maximum along a dimension and where it is, faster than ``torch.max`` on a CPU."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foveal.ops.numerics import autocast_disabled

# the maximum is searched in the best of this many windows
WINDOWS = 16
# of the comparison map in `_first_equal`, which should stay in the first-level cache
ROW_BYTES = 2**19


def max_and_argmax(x: Float[Tensor, "b c n"], dim: int) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """Return what ``x.max(dim)`` returns, for ``dim`` 1 or 2: the first of equal maxima, NaN before all others.

    ``torch.max`` with indices is not vectorised on a CPU. Here maxima of overlapping windows are taken, then the
    place inside the first window that holds the maximum.

    Example:
        >>> max_and_argmax(torch.tensor([[[1.0, 4.0, 4.0], [3.0, 2.0, 0.0]]]), 2)
        (tensor([[4., 3.]]), tensor([[1, 0]]))
    """
    if x.device.type != "cpu":
        values, indices = x.max(dim)
        return values, indices
    if x.stride(1) == 1:  # channels-last: work in memory order
        x, dim = x.mT, 3 - dim
    size = x.shape[dim]
    # short innermost windows do not vectorise
    if size < 4 * WINDOWS or (dim == 2 and size < 64 * WINDOWS):
        values = x.amax(dim)
        return values, _first_equal(x, values, dim)
    step = size // WINDOWS
    # the windowed dimension, and last the window
    windows = x.unfold(dim, size - (WINDOWS - 1) * step, step)
    maxima = windows.amax(-1)
    values = maxima.amax(dim)
    best = _first_equal(maxima, values, dim)
    index = best.unsqueeze(dim).unsqueeze(-1).expand(*windows.shape[:dim], 1, *windows.shape[dim + 1 :])
    inside = _first_equal(windows.gather(dim, index).squeeze(dim), values, 2)
    return values, best.mul_(step).add_(inside)


def smallest_int(index: Tensor, size: int) -> Tensor:
    """Return indices below ``size`` in the smallest integer type that holds them."""
    return index.to(torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32)


def _first_equal(x: Tensor, values: Tensor, dim: int) -> Tensor:
    """Return the first index along ``dim`` of the contiguous ``x`` at which it equals ``values``.

    The product of the 0/1 map of matches with size, size + 1, ... is size + index where there is one match,
    exact in float32 below 2**23. Rows with several (ties) or none (NaN) go through ``argmax``.
    """
    size = x.shape[dim]
    if x.numel() < 2**14 or size >= 2**23:
        return x.max(dim).indices
    codes = torch.arange(size, 2 * size, dtype=torch.float32)
    with autocast_disabled(x.device):
        if dim == 1:
            matches = torch.eq(x, values.unsqueeze(1), out=torch.empty_like(x, dtype=torch.float32))
            product = torch.bmm(codes.expand(len(x), 1, size), matches)[:, 0]
        else:
            product = torch.empty_like(values, dtype=torch.float32)
            rows = max(1, ROW_BYTES // (4 * size))
            matches = torch.empty(rows, size)
            columns = (x.flatten(0, 1), values.view(-1, 1), product.view(-1))
            for row, value, result in zip(*(column.split(rows) for column in columns), strict=True):
                torch.mv(torch.eq(row, value, out=matches[: len(row)]), codes, out=result)
    index = product.to(torch.int64).sub_(size)
    unclear = (index < 0) | (index >= size)
    if unclear.any():
        index[unclear] = x.movedim(dim, -1)[unclear].argmax(-1)
    return index
