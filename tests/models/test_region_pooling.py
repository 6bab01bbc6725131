"""RoIAlign by matrix products is torchvision's, and every box reads the level of its size."""

import pytest
import torch
from torchvision.ops import roi_align

from foveal.models import region_pooling
from foveal.models.region_pooling import by_products, by_sampling, pooled


def boxes(n: int, extent: float) -> torch.Tensor:
    """Boxes of any size around and beyond an image."""
    corner, size = (
        torch.rand(2, n, 2).double() * 1.5 * extent - 0.3 * extent,
        torch.rand(2, n, 2).double() * extent,
    )
    return torch.cat([corner, corner + size], -1)


def test_products_and_sampling_give_the_same_figures_and_gradients():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 9, 13, dtype=torch.float64, requires_grad=True)
    rois = boxes(60, 100.0)
    every = torch.ones(2, 60, dtype=torch.bool)
    one, two = by_sampling(features, rois, 1 / 8, 7, every), by_products(features, rois, 1 / 8, 7)
    assert one.abs().max() > 1
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    direction = torch.randn_like(one)
    gradients = [torch.autograd.grad(y, features, direction)[0] for y in (one, two)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-11)


def test_places_come_row_by_row():
    """The flattened inside is torchvision's (pool, pool) read line by line: a swap of axes shows."""
    features = torch.arange(8 * 8.0).view(1, 1, 8, 8)
    box = torch.tensor([[[0.0, 0.0, 64.0, 32.0]]])
    inside = by_products(features, box, 1 / 8, 3).view(3, 3)
    expected = roi_align(features, [box[0]], 3, 1 / 8, 2, aligned=True)[0, 0]
    torch.testing.assert_close(inside, expected)
    assert (inside[:, 1] > inside[:, 0]).all()


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (1000, 3)]
)
def test_a_box_reads_the_level_that_the_paper_says(side, level):
    """floor(4 + log2(side / 224)), from 2 to 5: of four maps of one value each, the value tells."""
    maps = [torch.full((1, 1, 64 // 2**i, 64 // 2**i), float(i + 1)) for i in range(4)]
    box = torch.tensor([[[128.0 - side / 2] * 2 + [128.0 + side / 2] * 2]])
    inside = pooled(maps, (4, 8, 16, 32), box, torch.tensor([224.0]), 7)
    assert inside.max().round() == level + 1


def test_large_and_small_maps_may_meet_in_one_pyramid(monkeypatch):
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 32 // 2**i, 40 // 2**i) for i in range(3)]
    rois = boxes(30, 160.0).float()
    reference = torch.tensor([64.0, 40.0])
    both = []
    for few in (0, 400, 10_000):
        monkeypatch.setattr(region_pooling, "FEW_POSITIONS", few)
        both.append(pooled(maps, (4, 8, 16), rois, reference, 5))
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(both[0], both[2], rtol=0, atol=1e-5)


def test_boxes_that_are_not_finite_read_nothing_and_crash_nothing():
    maps = [torch.randn(1, 2, 64, 64)]
    rois = torch.tensor([[[float("nan")] * 4, [0.0, 0.0, float("inf"), 4.0], [-1e30, -1e30, 1e30, 1e30]]])
    assert pooled(maps, (4,), rois, torch.tensor([224.0]), 7).isfinite().all()


def test_every_level_has_a_gradient_even_where_no_box_reads_it():
    maps = [torch.randn(1, 2, 64 // 2**i, 64 // 2**i, requires_grad=True) for i in range(3)]
    pooled(
        maps, (4, 8, 16), torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), torch.tensor([224.0]), 7
    ).sum().backward()
    assert all(one.grad is not None for one in maps)
