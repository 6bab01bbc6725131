"""Maps and positions are views of each other, and pooling is PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from foveal.nn.positions import (
    flatten_spatial,
    gather_queries,
    max_pool,
    unflatten_spatial,
    validate_positions,
)

SIZES = [(5,), (4, 3), (2, 3, 4)]


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back_is_the_same_map_without_a_copy(size):
    x = torch.randn(2, 3, *size)
    positions = flatten_spatial(x)
    assert positions.shape == (2, torch.Size(size).numel(), 3)
    back = unflatten_spatial(positions, size)
    assert torch.equal(back, x)
    assert back.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("size", SIZES)
def test_queries_are_the_vectors_at_their_places(size):
    x = torch.randn(2, 3, *size)
    points = [(0,) * len(size), tuple(s - 1 for s in size)]
    assert torch.equal(gather_queries(x, points), flatten_spatial(x)[:, [0, -1]])


@pytest.mark.parametrize("size", [(7, 6), (8, 8), (2, 2), (5, 2)])
def test_pooling_is_pytorchs_and_leaves_a_short_side(size):
    x = torch.randn(2, 3, *size, requires_grad=True)
    y = max_pool(x, (2, 2))
    assert torch.equal(y, F.max_pool2d(x, 2))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.autograd.grad(F.max_pool2d(x, 2).sum(), x)[0])
    assert torch.equal(max_pool(x[:, :, :1], (2, 2)), F.max_pool2d(x[:, :, :1], (1, 2)))


def test_the_centre_is_asked_for_by_default():
    assert validate_positions(None, (5, 4)) == [(2, 2)]
    assert validate_positions([[0, 3]], (5, 4)) == [(0, 3)]


@pytest.mark.parametrize("positions", [[], [(5, 0)], [(0, -1)], [(0,)], [(0, 0, 0)]])
def test_positions_outside_the_map_are_refused(positions):
    with pytest.raises(ValueError, match="positions must"):
        validate_positions(positions, (5, 4))
