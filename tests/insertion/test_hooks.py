"""How blocks hang on their sites."""

import torch
import torchvision
from torch import nn

import foveal


def test_a_site_called_by_keyword_takes_its_block_before_it():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(4, 4, 1), torchvision.ops.StochasticDepth(0.9, "row")

        def forward(self, x):
            return x + self.drop(input=self.conv(x))

    net = nn.Sequential(nn.Conv2d(3, 4, 1), Dropping())
    image = torch.randn(8, 3, 8, 8)
    foveal.insert(net, "se", at="1.drop", example=image, hidden=2)
    seen = []
    (one,) = foveal.inserted(net)
    assert one.before
    one.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.train()(image)
    assert (seen[0] != 0).any((1, 2, 3)).all()
    assert not foveal.remove(net).get_submodule("1.drop")._forward_pre_hooks_with_kwargs
