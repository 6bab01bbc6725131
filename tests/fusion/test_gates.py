"""A gate joined with its addition computes what the two did."""

import torch
from torch import nn

import foveal
from foveal.fusion import GatedResidual


def test_a_strided_expansion_takes_its_squeeze_from_the_positions_it_reads():
    convolution = nn.Conv2d(4, 16, 1, stride=2)
    block = foveal.nn.SqueezeExcite(16, reduction=4)
    joined = GatedResidual(block, convolution, relu=True).requires_grad_(False)
    u, shortcut = torch.randn(2, 4, 7, 9), torch.randn(2, 16, 4, 5)
    assert joined.squeezes_early
    torch.testing.assert_close(joined(u, shortcut), torch.relu(block(convolution(u)) + shortcut))
