"""Maps, images and query positions: where a cell of a map lies in an image, and which cells to ask."""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor


def on_pixels(
    values: Float[Tensor, "*lead kh kw"], spatial: tuple[int, ...], size: tuple[int, ...]
) -> Tensor:
    """Lay a map over an image, or over a clip, without smoothing: each pixel shows the weight of the cell it lies in.

    Args:
        values: the map, on the site's grid or on a sub-sampled key grid.
        spatial: (h, w) of the site's map, of a clip (t, h, w), to undo sub-sampling: a 2x2 pool of a 7x7 map has 3x3
            keys, each of which covers 2x2 cells, and the last row and column of cells belong to no key and show 0.
        size: (H, W) of the image, of a clip (T, H, W).

    Returns:
        Tensor (*lead, *size).

    Example:
        >>> import torch
        >>> keys = torch.tensor([[1.0, 2.0]])  # pooled by 2 from a map of 3 x 5 cells
        >>> on_pixels(keys, (3, 5), (3, 5)).tolist()
        [[1.0, 1.0, 2.0, 2.0, 0.0], [1.0, 1.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    for dim, (cells, pixels) in enumerate(zip(spatial, size, strict=True), start=values.ndim - len(spatial)):
        keys = values.shape[dim]
        step = next((s for s in (1, 2) if cells // s == keys), cells // keys)
        key = (torch.arange(pixels, device=values.device) * cells // pixels) // step
        shape = [1] * values.ndim
        shape[dim] = pixels
        values = values.index_select(dim, key.clamp(max=keys - 1)) * (key < keys).reshape(shape)
    return values


def query_grid(spatial: tuple[int, ...], queries: int) -> list[tuple[int, ...]]:
    """Query positions on an even ``queries`` x ``queries`` (x ...) grid of a map, without repeats.

    Example:
        >>> query_grid((7, 2), 2)
        [(1, 0), (1, 1), (5, 0), (5, 1)]
    """
    axes = [
        sorted({int((i + 0.5) * size / min(queries, size)) for i in range(min(queries, size))})
        for size in spatial
    ]
    return list(itertools.product(*axes))
