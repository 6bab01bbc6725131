import torch
from torch import nn

from foveal.train.nonfinite import first_non_finite


def test_the_first_module_that_breaks_is_named():
    class Logarithm(nn.Module):
        def forward(self, x):
            return x.log()

    net = nn.Sequential(nn.Identity(), Logarithm(), nn.Identity())
    assert first_non_finite(net, -torch.ones(1, 2)) == "module '1' (Logarithm)"
    assert "every module's output was finite" in first_non_finite(net, torch.ones(1, 2))
    assert "the images themselves" in first_non_finite(net, torch.full((1, 2), float("nan")))
    assert not net[1]._forward_hooks
