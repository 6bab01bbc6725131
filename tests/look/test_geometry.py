"""Keys back to pixels: each pixel shows the weight of the cell it lies in."""

import torch

from foveal.look.geometry import on_pixels, query_grid
from foveal.look.watching import watch

from .conftest import IMAGES, random_block, small_net


def test_sub_sampled_keys_cover_the_cells_they_pool() -> None:
    block = random_block("nonlocal", subsample="after")
    with watch(net := small_net(block)) as seen:
        net(IMAGES)
    row = seen["2"].rows((3, 3))[0, 0]
    assert row.shape == (3, 4)
    cells = on_pixels(row, (7, 9), (7, 9))
    assert torch.equal(cells[0:2, 2:4], row[0, 1].expand(2, 2))
    assert not cells[6].any()
    assert not cells[:, 8].any()
    pixels = on_pixels(row, (7, 9), (14, 18))
    assert torch.equal(pixels[::2, ::2], cells)


def test_a_map_keeps_its_values_on_pixels() -> None:
    values = torch.arange(6.0).reshape(1, 2, 3)
    pixels = on_pixels(values, (2, 3), (5, 7))
    assert pixels.shape == (1, 5, 7)
    assert set(pixels.unique().tolist()) == set(range(6))
    assert on_pixels(values, (2, 3), (2, 3)).equal(values)


def test_queries_lie_evenly_and_never_twice() -> None:
    assert query_grid((6, 3), 3) == [(y, x) for y in (1, 3, 5) for x in (0, 1, 2)]
    assert query_grid((2, 5, 1), 4) == [(t, y, 0) for t in (0, 1) for y in (0, 1, 3, 4)]
